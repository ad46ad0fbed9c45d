"""Segments: every clip's file, and joining them without encoding again."""

import hashlib
import math
import wave

import av
import pytest
import torch

from multitalk_nodes.multitalk_core.audio_files import read_sound
from multitalk_nodes.multitalk_core.segments import CODECS, SegmentError, join_segments, read_frames, write_segment, write_sound

COUNTS = (1, 81, 56, 2, 3)
RATE = 44_100


def pictures(start, count, height=48, width=64):
    """Frames whose green tells their number."""
    frames = torch.zeros(count, height, width, 3)
    frames[..., 0] = torch.linspace(0, 1, width)
    frames[..., 1] = ((torch.arange(start, start + count) % 50) / 50)[:, None, None]
    return frames


def beep(frames, channels=1):
    samples = round(frames / 25 * RATE)
    return 0.5 * torch.sin(torch.arange(samples) / RATE * 2 * math.pi * 440).repeat(channels, 1)


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]


@pytest.fixture
def segments(tmp_path, codec):
    files, start = [], 0
    for number, count in enumerate(COUNTS):
        files.append(tmp_path / f"{number}{codec.suffix}")
        write_segment(files[-1], pictures(start, count), codec)
        start += count
    return files


def sound_file(folder, codec, waveform):
    file = folder / f"sound{codec.suffix}"
    write_sound(file, waveform, RATE, codec)
    return file


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("channels", [1, 2])
def test_joined_segments_are_all_their_frames_and_all_the_sound(tmp_path, codec, segments, channels):
    sound = beep(sum(COUNTS), channels)
    out = tmp_path / f"out{codec.suffix}"
    join_segments(out, segments, COUNTS, sound_file(tmp_path, codec, sound))
    shown = torch.stack([*read_frames(out)])
    assert shown.shape == (sum(COUNTS), 48, 64, 3)
    tolerance = 0.05 if codec.suffix == ".mp4" else 0.5 / 255 + 1e-6
    assert (shown - pictures(0, sum(COUNTS))).abs().max() < tolerance
    heard, rate = read_sound(out)
    assert rate == RATE and heard.shape[0] == channels and 0 <= heard.shape[1] - sound.shape[1] < 1024
    assert (heard[:, : sound.shape[1]] - sound).abs().mean() < 0.01
    with av.open(str(out)) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
        assert [round(time * 25) for time in times] == list(range(sum(COUNTS)))


def test_segments_and_joins_are_the_same_bytes_every_time(tmp_path, codec, segments):
    again = tmp_path / f"again{codec.suffix}"
    for _ in range(3):
        write_segment(again, pictures(1, 81), codec)
        assert digest(again) == digest(segments[1])
    outs = [tmp_path / f"out_{n}{codec.suffix}" for n in range(2)]
    for out in outs:
        join_segments(out, segments, COUNTS, sound_file(tmp_path, codec, beep(sum(COUNTS))))
    assert digest(outs[0]) == digest(outs[1])


def test_what_was_encoded_is_not_encoded_again(tmp_path, codec, segments):
    """The joined file's pictures are those of the segments to the bit."""
    out = tmp_path / f"out{codec.suffix}"
    join_segments(out, segments, COUNTS)
    apart = torch.cat([torch.stack([*read_frames(file)]) for file in segments])
    assert torch.equal(torch.stack([*read_frames(out)]), apart)
    with av.open(str(out)) as container:
        assert not container.streams.audio


def test_a_range_of_frames_can_be_had_alone(tmp_path, codec, segments):
    out = tmp_path / f"out{codec.suffix}"
    join_segments(out, segments, COUNTS, sound_file(tmp_path, codec, beep(sum(COUNTS))))
    everything = torch.stack([*read_frames(out)])
    assert torch.equal(torch.stack([*read_frames(out, 70, 95)]), everything[70:95])
    assert torch.equal(torch.stack([*read_frames(out, 140)]), everything[140:])
    assert [*read_frames(out, 500)] == []


def test_a_segment_of_another_length_is_told(tmp_path, codec, segments):
    with pytest.raises(SegmentError, match=rf"'1{codec.suffix}' holds 81 frames; 80 were expected"):
        join_segments(tmp_path / f"out{codec.suffix}", segments, (1, 80, 56, 2, 3))


def test_a_file_that_is_no_video_is_told(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(SegmentError, match=r"'text\.mp4' cannot be read as video"):
        list(read_frames(tmp_path / "text.mp4"))
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    with pytest.raises(SegmentError, match="no video stream"):
        list(read_frames(tmp_path / "sound.wav"))


def test_a_video_file_says_how_its_colours_are_meant(tmp_path):
    write_segment(tmp_path / "a.mp4", pictures(0, 3), CODECS["h264"])
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
