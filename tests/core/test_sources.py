"""A source video is seen at 25 frames a second, whatever it is made of."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.video.sources import SourceError, VideoSource

TICKS = 600  # a second


def write(path, times, height=32, width=48, gop=12, **options):
    """A video whose frame i is of brightness 4 · i, shown from times[i] seconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "0", "g": str(gop), "bf": "2", **options})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for i, time in enumerate(times):
            pixels = np.full((height, width, 3), 4 * (i % 60), np.uint8)
            pixels[: height // 2, : width // 2, 0] = 255  # red above on the left
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def number(frame):
    """Which frame of `write` it is, modulo 60."""
    return round(float(frame[0, -8:, -8:, 1].mean()) * 255 / 4)


def expected(times, n):
    """By definition: the last frame that began by then."""
    return max(i for i, time in enumerate(times) if time - times[0] <= n / 25 + 1e-9) % 60


RATES = {
    "30 a second": [i / 30 for i in range(120)],
    "24 a second": [i / 24 for i in range(100)],
    "12 a second": [i / 12 for i in range(50)],
    "60 a second": [i / 60 for i in range(240)],
    "a rate that varies": [*np.cumsum([0, *np.random.default_rng(0).uniform(0.02, 0.3, 40)]).round(2)],
    "a late beginning": [2 + i / 25 for i in range(60)],
}


@pytest.mark.parametrize("case", RATES)
def test_a_frame_is_what_is_shown_at_its_time(tmp_path, case):
    times = RATES[case]
    with VideoSource(write(tmp_path / "a.mp4", times)) as source:
        for n in range(round((times[-1] - times[0]) * 25)):
            assert number(source(n)) == expected(times, n), n


def test_frames_can_be_asked_for_in_any_order(tmp_path):
    times = [i / 30 for i in range(900)]
    with VideoSource(write(tmp_path / "a.mp4", times)) as source:
        for n in (700, 3, 0, 400, 399, 749, 56, 112):
            assert number(source(n)) == expected(times, n), n


def test_the_last_frame_stays(tmp_path):
    with VideoSource(write(tmp_path / "a.mp4", [i / 25 for i in range(10)])) as source:
        last = source(9)
        assert number(last) == 9
        assert torch.equal(source(10), last) and torch.equal(source(5000), last)
        assert number(source(4)) == 4


def test_a_part_of_a_video_that_is_in_memory(tmp_path):
    times = [i / 25 for i in range(50)]
    with io.BytesIO(write(tmp_path / "a.mp4", times).read_bytes()) as file, VideoSource(file, start=0.4, duration=1.0) as source:
        assert [number(source(n)) for n in (0, 5, 24, 25, 900)] == [10, 15, 34, 34, 34]


def test_the_shape_and_range_of_a_frame(tmp_path):
    with VideoSource(write(tmp_path / "a.mp4", [0, 0.04])) as source:
        frame = source(0)
    assert frame.shape == (1, 32, 48, 3) and frame.dtype == torch.float32
    assert 0.9 < frame[0, :8, :8, 0].mean() <= 1 and frame[0, -8:, -8:].max() < 0.05


def test_a_video_that_was_filmed_upright_is_turned(tmp_path):
    file = write(tmp_path / "a.mp4", [0, 0.04])
    with VideoSource(file) as source:
        lying = source(0)
    data = bytearray(file.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: where a version 0 header has it
    assert struct.unpack_from(">i", data, matrix)[0] == 1 << 16
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)  # a quarter turn to the right
    file.write_bytes(data)
    with VideoSource(file) as source:
        upright = source(0)
    assert upright.shape == (1, 48, 32, 3)
    assert torch.equal(upright[0], lying[0].rot90(-1, (0, 1)))
    assert upright[0, :8, -8:, 0].mean() > 0.9, "what was above on the left is above on the right"


def test_a_damaged_end_is_the_end(tmp_path):
    file = write(tmp_path / "a.mkv", [i / 25 for i in range(59)])
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with VideoSource(file) as source:
        assert number(source(10)) == 10
        assert 10 < number(source(58)) < 58


def test_damage_in_the_middle_does_not_end_the_video(tmp_path, caplog):
    file = write(tmp_path / "a.mkv", [i / 25 for i in range(59)])
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        place, size = next((packet.pos, packet.size) for packet in packets[25:] if packet.pos is not None)
    data = bytearray(file.read_bytes())
    data[place + 16 : place + size] = bytes(size - 16)
    file.write_bytes(data)
    with VideoSource(file) as source:
        assert number(source(10)) == 10 and number(source(58)) == 58


@pytest.mark.parametrize("name", ["text.mp4", "gone.mp4"])
def test_a_file_that_is_no_video_is_told(tmp_path, name):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(SourceError, match=f"'{name}' cannot be read as video"):
        VideoSource(tmp_path / name)


def test_a_file_without_pictures_is_told(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "sound.wav", np.zeros(1600), 16000)
    with pytest.raises(SourceError, match="no video stream"):
        VideoSource(tmp_path / "sound.wav")


@pytest.mark.parametrize(("codec", "kind"), [("libx264", "h264"), ("libx265", "hevc")])
def test_raw_video_is_told_to_have_no_time_stamps(tmp_path, codec, kind):
    with av.open(str(tmp_path / "raw.bin"), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, options={"x265-params": "log-level=none"} if kind == "hevc" else {})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match=f"'raw.bin' has no time stamps.*raw {kind.upper()} outside of any container.*-framerate 25"):
        VideoSource(tmp_path / "raw.bin")


def test_a_playlist_is_no_video_and_what_it_names_is_not_opened(tmp_path):
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:3,\nother.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError, match="it is a playlist"):
        VideoSource(tmp_path / "list.m3u8")
