"""Sound files as node, dubbing and worker hear them: the same table of files (sounds.py) is run against all three."""

import io
import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.audio.files import read_channels, read_sound
from multitalk_nodes.multitalk_core.audio.sound import CHANNEL_NAMES, mono_16k, playable, sound_of, to_mono, to_stereo
from multitalk_nodes.multitalk_core.clock import video_frames
from multitalk_nodes.multitalk_core.errors import AudioError
from multitalk_nodes.multitalk_core.notes import noting
from multitalk_nodes.multitalk_core.people.dialogue import dialogue
from multitalk_nodes.multitalk_core.people.speakers import Speaker
from multitalk_nodes.multitalk_core.people.voices import encode_voices
from multitalk_nodes.multitalk_core.video.sources import SourceError, VideoSource
from multitalk_nodes.tests.support.graphs import SAMPLES
from multitalk_nodes.tests.support.sounds import FILES, RATE, SECONDS, USELESS, aac, encoded, long_voice, mp3, sized, voice, written
from serverless.errors import JobError
from serverless.sniff import HEAD, suffix_of
from serverless.video import seconds_of_sound

FRAME = 1 / 25  # s


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_heard_to_its_end(tmp_path, name):
    make, seconds, said = FILES[name]
    file = tmp_path / name
    file.write_bytes(make())
    with noting() as notes:
        waveform, rate = read_sound(file)
    heard = waveform.shape[1] / rate
    assert torch.isfinite(waveform).all() and waveform.abs().max() > 0.1
    if seconds:
        assert -0.02 < heard - seconds < 0.16  # encoders put some in front and behind
    assert [said in note and f"'{name}'" in note for note in notes] == [True] * bool(said)
    assert abs(seconds_of_sound(file) - heard) <= 1 / rate, "the worker counts what the node hears"
    last = mono_16k(waveform, rate)[-RATE // 2 :]
    assert last.square().mean().sqrt() > 0.05, "the end is sound, too"


@pytest.mark.parametrize("name", FILES)
def test_the_worker_takes_every_file_as_a_voice(tmp_path, name):
    import asyncio

    from serverless import schema
    from serverless.inputs import Inputs
    from serverless.settings import Settings
    from serverless.storage import Bucket

    content = FILES[name][0]()
    if suffix_of(content[:HEAD], "audio") is None:  # the file is decoded then
        import base64

        inline = schema.Inline(base64=base64.b64encode(content).decode())
        asyncio.run(Inputs(tmp_path, Bucket(Settings.of({}).storage)).file(inline, "audio", "audio_1"))


@pytest.mark.parametrize("name", USELESS)
def test_what_holds_no_sound_is_told_in_our_words(tmp_path, name):
    content, said = USELESS[name]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(AudioError, match=said) as found:
        read_sound(file)
    assert f"'{name}'" in str(found.value) and not any(word in str(found.value) for word in ("Errno", "Invalid data", "None", "array"))
    with pytest.raises(JobError):
        seconds_of_sound(file)


@pytest.mark.parametrize("start", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    "name", ["whole.wav", "size 0.wav", "whole.flac", "whole.vorbis.ogg", "whole.opus", "whole.mp3", "without count.mp3"]
)
def test_a_stretch_is_the_same_stretch_of_the_whole(tmp_path, name, start):
    file = tmp_path / name
    file.write_bytes(FILES[name][0]())
    whole, rate = read_sound(file)
    part, _ = read_sound(file, start, 0.4)
    assert part.shape[1] == round(0.4 * rate)
    torch.testing.assert_close(part, whole[:, round(start * rate) : round(start * rate) + round(0.4 * rate)], atol=2e-3, rtol=0)
    with pytest.raises(AudioError, match=r"has no sound from 60 s on"):
        read_sound(file, 60)


@pytest.mark.parametrize("name", ["chained, mono and stereo.vorbis.ogg", "joined, then 48 kHz.flac", "joined.wav"])
def test_a_stretch_goes_over_the_seam(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(FILES[name][0]())
    waveform, rate = read_sound(file, 2.0, 1.0)
    assert waveform.shape[1] / rate == pytest.approx(1.0, abs=1e-3)
    only, rate = read_sound(file, 3.0, 1.0)
    assert only.shape[1] / rate == pytest.approx(1.0, abs=1e-3)


EXACT = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS")]
EXACT += [("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "PCM_16")]


@pytest.mark.parametrize(("form", "subtype"), EXACT)
def test_whole_files_are_libsndfile_s_samples(tmp_path, form, subtype):
    import soundfile

    file = tmp_path / f"a.{form.lower()}"
    file.write_bytes(written(voice(48_000, 2), 48_000, form, subtype))
    with soundfile.SoundFile(file) as opened:
        opened.seek(0)
        expected = opened.read(dtype="float32", always_2d=True).T
    assert np.array_equal(read_sound(file)[0].numpy(), expected)


def test_what_is_damaged_keeps_the_clock(tmp_path):
    """Behind the hole, everything is where it was."""
    whole = written(long_voice(), 48_000, "OGG", "OPUS")
    file = tmp_path / "a.opus"
    file.write_bytes(whole)
    right, rate = read_sound(file)
    file.write_bytes(FILES["damaged.opus"][0]())
    with noting():
        mended, _ = read_sound(file)
    torch.testing.assert_close(mended[:, 15 * rate : 19 * rate], right[:, 15 * rate : 19 * rate], atol=1e-3, rtol=0)
    assert not torch.allclose(mended, right, atol=1e-3)


def test_an_early_start_in_a_long_file_needs_little_memory(tmp_path):
    file = tmp_path / "long.flac"
    file.write_bytes(written(np.zeros((16_000 * 600, 1), np.float32) + 0.1, 16_000, "FLAC"))
    tracemalloc.start()
    read_sound(file, 590, 1)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_a_title_in_another_encoding_does_not_matter(tmp_path):
    title = b"INFOINAM" + (6).to_bytes(4, "little") + "José".encode("latin-1") + b"\0\0"
    file = tmp_path / "a.wav"
    file.write_bytes(sized(written(voice(), subtype="MS_ADPCM"), 0) + b"LIST" + len(title).to_bytes(4, "little") + title)
    assert read_sound(file)[0].shape[1] / RATE >= SECONDS


@pytest.mark.parametrize(
    "name", ["whole.wav", "whole.aiff", "size unknown.caf", "size 0.rf64.wav", "chained.opus", "joined.mp4", "joined.mp3"]
)
def test_changed_heads_are_heard_or_told(tmp_path, name):
    """Never another error than ours, and never another length in the worker."""
    random, content, file = np.random.default_rng(1), FILES[name][0](), tmp_path / name
    for _ in range(12):
        changed = bytearray(content)
        for at in random.integers(0, 160, 3):
            changed[at] = random.choice([0, 1, 127, 255])
        file.write_bytes(changed)
        try:
            waveform, rate = read_sound(file)
        except AudioError:
            continue
        assert seconds_of_sound(file) == pytest.approx(waveform.shape[1] / rate, abs=1 / rate)


def test_a_video_without_sound_says_so():
    with pytest.raises(AudioError, match="'silent_face.mp4' has no sound track"):
        read_sound(SAMPLES / "silent_face.mp4")


def test_an_encrypted_file_says_so(tmp_path):
    content = aac("mp4")
    at = content.rindex(b"mp4a")
    content = bytearray(content[:at] + b"enca" + content[at + 4 :])
    begin = content.index(b"mdat") + 8
    content[begin : begin + 20_000] = np.random.default_rng(0).bytes(20_000)
    file = tmp_path / "a.m4a"
    file.write_bytes(content)
    with pytest.raises(AudioError, match="'a.m4a' is encrypted"):
        read_sound(file)


def test_an_mp4_without_its_index_says_so(tmp_path):
    file = tmp_path / "a.m4a"
    file.write_bytes(aac("mp4")[:20_000])
    with pytest.raises(AudioError, match="without its index"):
        read_sound(file)
    with pytest.raises(SourceError, match="without its index"):
        VideoSource(file)


def test_a_cover_is_no_video(tmp_path):
    import av

    picture = (SAMPLES / "face.png").read_bytes()
    frame = b"\0image/png\0\x03\0" + picture
    tag = b"APIC" + struct.pack(">I", len(frame)) + b"\0\0" + frame
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    file = tmp_path / "song.mp3"
    file.write_bytes(b"ID3\x03\0\0" + size + tag + mp3())
    with av.open(str(file)) as container:
        assert container.streams.video
    with pytest.raises(SourceError, match="no video stream"):
        VideoSource(file)
    assert read_sound(file)[0].shape[1] / 44_100 == pytest.approx(SECONDS, abs=0.06)


# channels

LAYOUTS = {"2.1": "FL FR LFE", "3.0": "FL FR FC", "quad": "FL FR BL BR", "4.0": "FL FR FC BC", "5.0": "FL FR FC BL BR",
           "5.1": "FL FR FC LFE BL BR", "5.1(side)": "FL FR FC LFE SL SR", "7.1": "FL FR FC LFE BL BR SL SR"}  # fmt: skip


def surround(layout, only):
    """A WAV whose voice is on one channel, by the name of that."""
    names = LAYOUTS[layout].split()
    samples = np.zeros((len(voice()), len(names)), np.float32)
    samples[:, names.index(only)] = voice()[:, 0]
    return encoded("wav", (samples, RATE, "pcm_f32le", layout))


def level(waveform):
    """dB, of what both sides play together."""
    return 10 * math.log10(float(waveform.double().square().sum(dim=0).mean()) + 1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_surround_is_as_loud_as_it_was(tmp_path, layout):
    original = level(torch.from_numpy(voice().T))
    for name in LAYOUTS[layout].split():
        file = tmp_path / f"{name}.wav"
        file.write_bytes(surround(layout, name))
        waveform, _ = read_sound(file)
        expected = {"LFE": -math.inf, "FL": 0, "FR": 0, "FC": 0}.get(name, -3.01)
        assert waveform.shape[0] == 2
        assert level(waveform) < -100 if expected == -math.inf else level(waveform) - original == pytest.approx(expected, abs=0.02)
        if name == "FC":
            assert torch.equal(waveform[0], waveform[1])


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", None), ("WAVEX", None)])
def test_the_centre_is_the_centre_in_every_container(tmp_path, form, subtype):
    """Vorbis has an order of its own."""
    place = 1 if form == "OGG" else 2
    samples = np.zeros((48_000, 6), np.float32)
    samples[:, place] = voice(48_000)[:48_000, 0]
    file = tmp_path / "a"
    file.write_bytes(written(samples, 48_000, form, subtype))
    recording = read_channels(file)
    assert recording.names[2] == "FC" and int(recording.waveform.square().sum(dim=1).argmax()) == 2


@pytest.mark.parametrize("form", ["FLAC", "WAVEX"])
def test_eight_channels_are_read(tmp_path, form):
    file = tmp_path / "eight"
    file.write_bytes(written(voice(channels=8), RATE, form))
    torch.testing.assert_close(read_channels(file).waveform, torch.from_numpy(voice(channels=8).T), atol=1e-4, rtol=0)


def test_channels_without_names_are_no_surround(tmp_path):
    file = tmp_path / "six.wav"
    file.write_bytes(written(voice(channels=6)))
    recording = read_channels(file)
    assert recording.names == () and recording.waveform.shape[0] == 6
    with noting() as notes:
        sound = sound_of({"waveform": recording.waveform[None], "sample_rate": RATE, CHANNEL_NAMES: recording.names})
    assert sound[0].shape[0] == 6 and "does not say" in notes[0]
    assert torch.equal(playable(*sound)[0][0], recording.waveform.mean(dim=0))


def test_six_channels_of_other_nodes_are_taken_for_surround(tmp_path):
    waveform = torch.from_numpy(voice(channels=6).T)[None]
    with noting() as notes:
        speaker = Speaker.of({"waveform": waveform, "sample_rate": RATE}, None, None, None)
    assert speaker.waveform.shape[0] == 2 and "FL, FR, FC, LFE, BL, BR" in notes[0]


def test_a_dialogue_of_channels_keeps_them_all(tmp_path):
    file = tmp_path / "four.flac"
    samples = np.zeros((4 * RATE, 4), np.float32)
    for i in range(4):
        samples[i * RATE : (i + 1) * RATE, i] = voice()[:RATE, 0]
    file.write_bytes(written(samples, RATE, "FLAC"))
    recording = read_channels(file)
    assert recording.names == ("FL", "FR", "BL", "BR"), "FLAC knows no four channels but these"
    assert len(dialogue([(recording.waveform, recording.rate)], "channels").speakers) == 4


def test_a_mix_that_would_clip_is_scaled_as_a_whole():
    names = LAYOUTS["5.1"].split()
    loud = torch.ones(6, 100)
    assert float(to_stereo(loud, names).max()) == pytest.approx(1.0)
    assert torch.equal(to_stereo(loud[:2], names[:2]), loud[:2])


@pytest.mark.parametrize(("gain", "noise"), [(1.0, 0.0), (0.9, 0.0), (1.1, 0.0), (1.0, 0.01)])
def test_channels_that_cancel_out_keep_the_voice(gain, noise):
    left = torch.from_numpy(voice()[:, 0])
    right = -gain * left + noise * torch.randn(len(left), generator=torch.Generator().manual_seed(0))
    with noting() as notes:
        mono = to_mono(torch.stack([left, right]), RATE)
    assert torch.equal(mono, left if left.square().sum() >= right.square().sum() else right)
    assert "cancel" in notes[0]
    stereo = torch.stack([left, right])
    assert torch.equal(playable(stereo, RATE)[0], stereo), "what is played stays"


@pytest.mark.parametrize(("offset", "hum"), [(0.05, 0.0), (0.0, 0.3)])
def test_neither_an_offset_nor_a_hum_hides_that_channels_cancel_out(offset, hum):
    left = torch.from_numpy(long_voice(2, RATE)[:, 0])
    common = offset + hum * left.square().mean().sqrt() * torch.sin(torch.arange(len(left)) * 2 * torch.pi * 50 / RATE)
    with noting() as notes:
        mono = to_mono(torch.stack([left + common, common - left]), RATE)
    assert abs(float(torch.corrcoef(torch.stack([mono, left]))[0, 1])) > 0.9 and "cancel" in notes[0]


def test_a_half_that_cancels_out_is_not_lost():
    left = torch.from_numpy(voice()[:, 0])
    right = left.clone()
    right[len(right) // 2 :] *= -1
    with noting() as notes:
        assert torch.equal(to_mono(torch.stack([left, right]), RATE), left)
    assert notes


@pytest.mark.parametrize("kind", ["same", "one side", "a person on each side", "delayed", "half of the level, negative", "silence"])
def test_ordinary_stereo_is_the_plain_mean(kind):
    left = torch.from_numpy(long_voice(2, RATE)[:, 0])
    other = torch.from_numpy(np.random.default_rng(3).normal(0, 0.1, len(left)).astype(np.float32))
    right = {"same": left, "one side": 0 * left, "a person on each side": other, "delayed": torch.roll(left, 20)}
    right |= {"half of the level, negative": -0.5 * left, "silence": 0 * left}
    stereo = torch.stack([left if kind != "silence" else 0 * left, right[kind]])
    with noting() as notes:
        assert torch.equal(to_mono(stereo, RATE), stereo.mean(dim=0))
    assert not notes


@pytest.mark.parametrize(("level", "seconds"), [(0.0, 2.0), (0.0, 0.2), (1e-5, 2.0)])
def test_a_silent_voice_is_said_with_its_speaker(level, seconds):
    speakers = [voices_of(0.1, "Anna"), voices_of(level, "Ben", seconds), Speaker(name="Cleo")]
    with noting() as notes:
        encode_voices(speakers, _Ear(), "sequential")
    assert len(notes) == 1 and notes[0].startswith("Speaker 2 (Ben): the audio is silent, so the mouth keeps still.")


def voices_of(level, name, seconds=2.0):
    samples = level * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(0))
    return Speaker(samples, RATE, name=name)


class _Ear:
    """An encoder that hears nothing in particular."""

    def encode(self, voice, folder=None):
        return torch.zeros(video_frames(len(voice)), 1, 1)


def test_video_frames_of_the_field(tmp_path):
    """An MP3 without its count, as streaming programs write it, counts as many frames of video as it lasts."""
    file = tmp_path / "a.mp3"
    file.write_bytes(mp3(count=False))
    assert video_frames(len(mono_16k(*read_sound(file)))) == 63


def test_a_buffer_is_not_needed_whole(tmp_path):
    """A part reads as a file does: forwards, backwards, and over its end."""
    from multitalk_nodes.multitalk_core.audio.sound_parts import Part

    file = tmp_path / "a"
    file.write_bytes(bytes(range(100)))
    with Part(file, 10, 50, b"head").open() as part:
        assert part.read(6) == b"head\x0a\x0b"
        part.seek(-2, io.SEEK_END)
        assert part.read() == bytes([48, 49]) and part.read(5) == b""
        part.seek(0)
        assert len(part.read()) == 44
