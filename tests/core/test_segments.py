"""Segments: every clip's file, and joining them without encoding again."""

import hashlib
import math
import wave

import av
import pytest
import torch

from multitalk_nodes.multitalk_core.audio.files import read_sound
from multitalk_nodes.multitalk_core.video.segments import (
    CODECS,
    SegmentError,
    join_segments,
    read_frames,
    to_pixels,
    write_segment,
    write_sound,
)

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
        write_segment(files[-1], to_pixels(pictures(start, count)), codec)
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


def test_segments_are_the_same_bytes_every_time(tmp_path, codec):
    """At the smallest size that videos have here; of pictures of 64×48 x264 makes other bits in 2 of 1,000 files."""
    digests = set()
    for number in range(4):
        write_segment(tmp_path / f"{number}{codec.suffix}", to_pixels(pictures(1, 40, 128, 128)), codec)
        digests.add(digest(tmp_path / f"{number}{codec.suffix}"))
    assert len(digests) == 1


def test_joins_are_the_same_bytes_every_time(tmp_path, codec, segments):
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


@pytest.mark.slow
def test_after_ten_minutes_picture_and_sound_are_less_than_a_frame_apart(tmp_path, codec):
    """A white frame and a click at the same moment, at the beginning, every two minutes, and at the end."""
    counts = [81] + [56] * 266 + [23]
    moments = [0, 3000, 6000, 9000, 12000, sum(counts) - 1]
    flashes, files, start = torch.zeros(sum(counts)), [], 0
    flashes[moments] = 1
    for number, count in enumerate(counts):
        frames = flashes[start : start + count, None, None, None].expand(-1, 32, 32, 3)
        files.append(tmp_path / f"{number}{codec.suffix}")
        write_segment(files[-1], to_pixels(frames), codec)
        start += count
    sound = torch.zeros(1, sum(counts) * RATE // 25)
    for moment in moments:
        sound[0, moment * RATE // 25 : moment * RATE // 25 + 200] = 0.9
    out = tmp_path / f"out{codec.suffix}"
    join_segments(out, files, counts, sound_file(tmp_path, codec, sound))
    with av.open(str(out)) as container:
        bright = [float(frame.time) for frame in container.decode(video=0) if frame.to_ndarray(format="gray").mean() > 128]
    with av.open(str(out)) as container:
        stream = container.streams.audio[0]
        heard = [
            frame.time + (abs(frame.to_ndarray()[0]) > 0.4).argmax() / stream.rate
            for frame in container.decode(stream)
            if abs(frame.to_ndarray()[0]).max() > 0.4
        ]
    clicks = [time for number, time in enumerate(heard) if number == 0 or time - heard[number - 1] > 1]
    assert bright == [moment / 25 for moment in moments]
    assert len(clicks) == len(bright)
    assert max(abs(click - flash) for click, flash in zip(clicks, bright, strict=True)) < 0.01


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
    write_segment(tmp_path / "a.mp4", to_pixels(pictures(0, 3)), CODECS["h264"])
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
