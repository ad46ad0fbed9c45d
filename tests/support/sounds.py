"""Sound files of every kind, whole, joined, cut, damaged and with headers that lie: each is made here, in memory.

VOICE is what most of them hold: 2.5 s, 16 kHz.
"""

import io
import re
import struct
from fractions import Fraction

import numpy as np

SECONDS = 2.5
RATE = 16_000


def voice(rate=RATE, channels=1, seconds=SECONDS):
    """[N, C]; different on every channel."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 220 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    return np.stack([tone * (1 - 0.1 * i) for i in range(channels)], axis=1).astype(np.float32)


def written(samples, rate=RATE, form="WAV", subtype=None):
    """By libsndfile."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def encoded(form, *tracks, **options):
    """By FFmpeg; a track is (samples [N, C], rate, codec, layout) and perhaps options and disposition."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=form, options={"fflags": "+bitexact"} | options) as container:
        made = []
        for samples, rate, codec, layout, *more in tracks:
            stream = container.add_stream(codec, rate=rate, layout=layout, options=more[0] if more else {})
            if len(more) > 1:
                stream.disposition = more[1]
            stream.codec_context.open()
            made.append((stream, samples, rate, layout))
        for stream, samples, rate, layout in made:
            context = stream.codec_context
            resampler = av.AudioResampler(format=context.format, layout=layout, rate=rate, frame_size=context.frame_size)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode())
    return file.getvalue()


def aac(form="adts", rate=44_100, channels=1, **options):
    return encoded(form, (voice(rate, channels), rate, "aac", "mono" if channels == 1 else "stereo"), **options)


def mp3(count=True):
    quality = {"q": "6", "flags": "+qscale", "global_quality": "700"}
    return encoded("mp3", (voice(44_100), 44_100, "libmp3lame", "mono", {} if count else quality), write_xing=str(int(count)))


def patched(content, at, value, form="<I"):
    packed = struct.pack(form, value)
    return content[:at] + packed + content[at + len(packed) :]


def sized(content, size, chunk=b"data", form="<I"):
    """With another size of the sound in the header."""
    return patched(content, content.index(chunk) + 4, size, form)


def damaged(content, share=0.5, count=400):
    at = int(len(content) * share)
    return content[:at] + b"\xaa" * count + content[at + count :]


def long_voice(seconds=20, rate=48_000):
    noise = np.random.default_rng(0).normal(0, 0.05, (seconds * rate, 1)).astype(np.float32)
    return voice(rate, seconds=seconds) + noise


def _wav():
    return written(voice())


def _flac(rate=RATE, channels=1):
    return written(voice(rate, channels), rate, "FLAC")


def _ogg(subtype="VORBIS", channels=1, rate=RATE):
    return written(voice(rate, channels), rate, "OGG", subtype)


def _streamed_rf64():
    wav = written(voice(), form="RF64")
    at = wav.index(b"ds64") + 8
    return wav[:at] + bytes(24) + wav[at + 24 :]


def _total(content, total):
    """FLAC's number of samples in its head; 0 is unknown."""
    return patched(patched(content, 21, content[21] & 0xF0, "B"), 22, total, ">I")


def _undecodable_first(content):
    """The first AAC track of an MP4 under a name that no decoder has."""
    at = content.index(b"mp4a", content.index(b"moov"))
    return content[:at] + content[at:].replace(b"mp4a", b"apac", 1).replace(b"esds", b"dapa", 1)


TAG = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
LIST = b"LIST" + struct.pack("<I", 14) + b"INFOINAM" + struct.pack("<I", 2) + b"a\0"
ODD = b"junk" + struct.pack("<I", 3) + b"abc"


# what it is: how it is made, how long it must be heard (s), what must be said of it
def _two_chunks(content):
    """Half of the sound in a chunk, and half in another."""
    head, sound = content[:36], content[44:]
    half = len(sound) // 2
    chunks = (b"data" + struct.pack("<I", len(part)) + part for part in (sound[:half], sound[half:]))
    return patched(head + b"".join(chunks), 4, len(content))


def _pcm(form, layout, codec="pcm_s16be"):
    """Samples that are not compressed, in a layout that the file describes; the voice is in the centre."""
    count = {"7.1": 8, "6.1": 7, "5.1": 6}[layout]
    samples = np.zeros((round(SECONDS * RATE), count), np.float32)
    samples[:, 2] = voice()[:, 0]
    return encoded(form, (samples, RATE, codec, layout))


def _with_picture(form, late):
    """A grey picture, and a voice that begins so many seconds after it."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        picture, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=44_100, layout="mono")
        picture.width = picture.height = 32
        for number in range(round(25 * (SECONDS + late))):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        _add(container, sound, voice(44_100), 44_100, late)
        container.mux(sound.encode())
    return file.getvalue()


def _with_gap(form, seconds):
    """A voice that pauses in its middle, for which the file has no packets."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        half = round(SECONDS * RATE / 2)
        _add(container, sound, voice()[:half], RATE, 0)
        _add(container, sound, voice()[half:], RATE, SECONDS / 2 + seconds)
        container.mux(sound.encode())
    return file.getvalue()


def _add(container, stream, samples, rate, start):
    """Samples [N, 1], in frames of 1024, from `start` s on."""
    import av

    for at in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[at : at + 1024].T), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate) + at, Fraction(1, rate)
        for part in av.AudioResampler(format=stream.codec_context.format or "s16", layout="mono", rate=rate).resample(frame):
            container.mux(stream.encode(part))


def _without_page(content, number):
    """An Ogg without one of its pages."""
    starts = [found.start() for found in re.finditer(rb"OggS\0", content)]
    stop = starts[number + 1] if number + 1 else len(content)
    return content[: starts[number]] + content[stop:]


FILES = {
    "whole.wav": (_wav, SECONDS, None),
    "float.wav": (lambda: written(voice(), subtype="FLOAT"), SECONDS, None),
    "adpcm.wav": (lambda: written(voice(), subtype="IMA_ADPCM"), SECONDS, None),
    "whole.aiff": (lambda: written(voice(), form="AIFF"), SECONDS, None),
    "whole.w64": (lambda: written(voice(), form="W64"), SECONDS, None),
    "whole.flac": (_flac, SECONDS, None),
    "whole.vorbis.ogg": (_ogg, SECONDS, None),
    "whole.opus": (lambda: _ogg("OPUS"), SECONDS, None),
    "whole.mp3": (mp3, SECONDS, None),
    "whole.m4a": (lambda: aac("mp4"), SECONDS, None),
    "whole.amr": (lambda: encoded("amr", (voice(8000), 8000, "libopencore_amrnb", "mono")), SECONDS, None),
    "whole.ts": (lambda: aac("mpegts"), SECONDS, None),
    "whole.avi": (lambda: aac("avi"), SECONDS, None),
    # headers that lie
    "size 0.wav": (lambda: sized(_wav(), 0), SECONDS, None),
    "both sizes 0.wav": (lambda: patched(sized(_wav(), 0), 4, 0), SECONDS, None),
    "size ffffffff.wav": (lambda: patched(sized(_wav(), 0xFFFFFFFF), 4, 0xFFFFFFFF), SECONDS, None),
    "size 7ffff000.wav": (lambda: sized(_wav(), 0x7FFFF000), SECONDS, None),
    "size too large.wav": (lambda: sized(_wav(), 200_000), SECONDS, "cut off: its header promises 6.25 s, and 2.50 s"),
    "size too small.wav": (lambda: sized(_wav(), 40_000), SECONDS, "header counts 1.25 s, but 2.50 s"),
    "size too small.aiff": (lambda: sized(written(voice(), form="AIFF"), 40_008, b"SSND", ">I"), SECONDS, "counts 1.25 s, but 2.50 s"),
    "size 0.aiff": (lambda: sized(written(voice(), form="AIFF"), 0, b"SSND", ">I"), SECONDS, None),
    "size 0.au": (lambda: patched(written(voice(), form="AU"), 8, 0, ">I"), SECONDS, None),
    "size unknown.au": (lambda: patched(written(voice(), form="AU"), 8, 0xFFFFFFFF, ">I"), SECONDS, None),
    "size unknown.caf": (lambda: sized(written(voice(), form="CAF"), -1, form=">q"), SECONDS, None),
    "size 0.rf64.wav": (_streamed_rf64, SECONDS, None),
    "a chunk before.wav": (lambda: _wav()[:36] + ODD + b"\0" + _wav()[36:], SECONDS, None),
    "an odd chunk before.wav": (lambda: _wav()[:36] + ODD + _wav()[36:], SECONDS, None),
    "a chunk behind.wav": (lambda: _wav() + LIST, SECONDS, None),
    "a large chunk behind.wav": (lambda: _wav() + b"bext" + struct.pack("<I", 30_000) + b"\x01" * 30_000, SECONDS, None),
    "a tag before.wav": (lambda: TAG + _wav(), SECONDS, None),
    "filled up with zeros.wav": (lambda: _wav() + bytes(40_000), SECONDS, None),
    "total unknown.flac": (lambda: _total(_flac(), 0), SECONDS, None),
    "total too small.flac": (lambda: _total(_flac(), 20_000), SECONDS, None),
    "without count.mp3": (lambda: mp3(count=False), 2.53, None),
    "garbage before.mp3": (lambda: bytes(1000) + mp3(), SECONDS, None),
    "a tag behind.mp3": (lambda: mp3() + b"TAG" + bytes(125), SECONDS, None),
    "without duration.webm": (lambda: encoded("webm", (voice(48_000), 48_000, "libopus", "mono"), live="1"), SECONDS, None),
    "in fragments.mp4": (lambda: aac("mp4", movflags="frag_keyframe+empty_moov", frag_duration="500000"), SECONDS, None),
    # joined, and changed in the middle
    "joined.wav": (lambda: _wav() + _wav(), 5.0, None),
    "joined.flac": (lambda: _flac() + _flac(), 5.0, None),
    "joined, then stereo.flac": (lambda: _flac() + _flac(channels=2), 5.0, None),
    "joined, then 48 kHz.flac": (lambda: _flac() + _flac(48_000), 5.0, None),
    "joined.mp3": (lambda: mp3() + mp3(), 5.0, None),
    "joined, without count.mp3": (lambda: mp3(count=False) + mp3(count=False), 5.06, None),
    "joined.aac": (lambda: aac() + aac(), 5.06, None),
    "mono, then stereo.aac": (lambda: aac() + aac(channels=2), 5.06, None),
    "stereo, then mono.aac": (lambda: aac(channels=2) + aac(), 5.06, None),
    "16, then 44.1 kHz.aac": (lambda: aac(rate=16_000) + aac(), 5.16, None),
    "joined.mp4": (lambda: aac("mp4") + aac("mp4"), 5.0, None),
    "joined.webm": (lambda: encoded("webm", (voice(48_000), 48_000, "libopus", "mono"), live="1") * 2, 5.0, None),
    "chained.vorbis.ogg": (lambda: _ogg() + _ogg(), 5.0, None),
    "chained.opus": (lambda: _ogg("OPUS") + _ogg("OPUS"), 5.0, None),
    "chained, mono and stereo.vorbis.ogg": (lambda: _ogg() + _ogg(channels=2) + _ogg(), 7.5, None),
    "chained, stereo and mono.opus": (lambda: _ogg("OPUS", 2) + _ogg("OPUS"), 5.0, None),
    "chained, then 48 kHz.vorbis.ogg": (lambda: _ogg() + _ogg(rate=48_000), 5.0, None),
    "chained, another codec.ogg": (lambda: _ogg() + _ogg("OPUS"), 5.0, None),
    "chained.flac.ogg": (lambda: encoded("ogg", (voice(), RATE, "flac", "mono")) * 2, 5.0, None),
    # cut and damaged
    "joined, then 24 bits.flac": (lambda: _flac() + written(voice(), form="FLAC", subtype="PCM_24"), 5.0, None),
    "joined, 44.1 then 48 kHz and stereo.flac": (lambda: _flac(44_100) + _flac(48_000, 2), 5.0, None),
    "two chunks of sound.wav": (lambda: _two_chunks(_wav()), SECONDS, None),
    "7.1.mov": (lambda: _pcm("mov", "7.1"), SECONDS, None),
    "7.1.aiff": (lambda: _pcm("aiff", "7.1"), SECONDS, None),
    "7.1.caf": (lambda: _pcm("caf", "7.1"), SECONDS, None),
    "6.1, 24 bits.mov": (lambda: _pcm("mov", "6.1", "pcm_s24le"), SECONDS, None),
    "5.1.mov": (lambda: _pcm("mov", "5.1"), SECONDS, None),
    "begins 3 s after the picture.mp4": (lambda: _with_picture("mp4", 3), SECONDS + 3, None),
    "begins 3 s after the picture.mkv": (lambda: _with_picture("matroska", 3), SECONDS + 3, None),
    "with a picture.mp4": (lambda: _with_picture("mp4", 0), SECONDS, None),
    "6 s without sound.mkv": (lambda: _with_gap("matroska", 6), SECONDS + 6, "6.0"),
    "a page is missing.opus": (lambda: _without_page(written(long_voice(), 48_000, "OGG", "OPUS"), 5), 20.0, "is damaged: "),
    "the first page of sound is missing.vorbis.ogg": (
        lambda: _without_page(written(long_voice(), 48_000, "OGG", "VORBIS"), 3), 20.0, "is damaged: "
    ),
    "the last page but one is missing.opus": (
        lambda: _without_page(written(long_voice(), 48_000, "OGG", "OPUS"), -2), None, "is damaged: "
    ),
    "cut.adpcm.wav": (lambda: written(voice(), subtype="IMA_ADPCM")[:12_000], None, "of the sound that its header promises is there"),
    "cut.caf": (lambda: written(voice(), form="CAF")[:50_000], None, "of the sound that its header promises is there"),
    "cut.wav": (lambda: _wav()[:50_001], 1.56, "cut off: its header promises 2.50 s, and 1.56 s"),
    "cut.flac": (lambda: _flac()[: len(_flac()) // 2], 1.02, "cut off: its header promises 2.50 s"),
    "cut.mp3": (lambda: mp3()[: len(mp3()) // 2], 1.23, "cut off: its header promises"),
    "cut.opus": (lambda: written(long_voice(), 48_000, "OGG", "OPUS")[:-30_000], None, "cut off: its last page is not whole"),
    "damaged.m4a": (lambda: damaged(aac("mp4")), SECONDS, "is damaged: 0.0"),
    "damaged.flac": (lambda: damaged(written(long_voice(), 48_000, "FLAC")), 20.0, "is damaged: 0.0"),
    "damaged.vorbis.ogg": (lambda: damaged(written(long_voice(), 48_000, "OGG", "VORBIS")), 20.0, "is damaged: 0."),
    "damaged.opus": (lambda: damaged(written(long_voice(), 48_000, "OGG", "OPUS")), 20.0, "is damaged: "),
    # several tracks
    "default is second.mp4": (
        lambda: encoded("mp4", (0 * voice(), RATE, "aac", "mono", {}, 0), (voice(), RATE, "aac", "mono", {}, 1)),
        SECONDS,
        "track 2 is heard, the default one",
    ),
    "first has no decoder.mp4": (
        lambda: _undecodable_first(encoded("mp4", (0 * voice(), RATE, "aac", "mono", {}, 1), (voice(), RATE, "aac", "mono", {}, 0))),
        SECONDS,
        "track 2 is heard, the first that can be decoded",
    ),
}  # fmt: skip

# what no sound can be had from, and what must be said
USELESS = {
    "text.mp3": (b"This is no sound.\n" * 100, "it is a text file"),
    "page.mp3": (b"\n<!DOCTYPE html><html>404</html>", "it is a web page"),
    "list.mp3": (b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nwhole.wav\n#EXT-X-ENDLIST\n", "it is a playlist"),
    "nothing.wav": (b"", "it is an empty file"),
    "zeros.mp3": (bytes(10_000), "nothing but zeros"),
    "noise.wav": (np.random.default_rng(0).bytes(20_000), "damaged, or of an unknown kind"),
    "archive.wav": (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
    "notes.mp3": (b"MThd" + bytes(100), "MIDI"),
    "no sound.wav": (sized(_wav()[:44], 0) + LIST, "is empty"),
}
