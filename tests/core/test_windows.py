"""Clips, mirrored tails and audio windows, against counting by hand."""

import pytest
import torch

from multitalk_nodes.multitalk_core.audio.wav2vec import StreamedEmbeds
from multitalk_nodes.multitalk_core.clock import embed_frames, video_frames
from multitalk_nodes.multitalk_core.windows import (
    audio_windows,
    fitting_frames,
    latent_frames,
    parse_cuts,
    plan_clips,
    plan_shots,
    reflect,
    stretch_of,
    window_indices,
)

PLANS = [(81, 25), (81, 9), (81, 1), (5, 4), (5, 1), (2, 1), (33, 13), (121, 25)]


@pytest.mark.parametrize(("clip_frames", "overlap"), PLANS)
def test_clips_keep_every_frame_once(clip_frames, overlap):
    for frames in range(1, 401):
        kept = [i for c in plan_clips(frames, clip_frames, overlap) for i in range(c.start + c.drop, c.start + c.drop + c.keep)]
        assert kept == list(range(frames))


@pytest.mark.parametrize(("clip_frames", "overlap"), PLANS)
def test_clips_are_equally_long_and_advance_by_what_is_new(clip_frames, overlap):
    for frames in (1, 80, 81, 82, 137, 138, 400):
        clips = plan_clips(frames, clip_frames, overlap)
        assert [c.index for c in clips] == list(range(len(clips)))
        assert {c.stop - c.start for c in clips} == {clip_frames}
        assert [c.start for c in clips] == [i * (clip_frames - overlap) for i in range(len(clips))]
        assert [c.drop for c in clips] == [0] + [overlap] * (len(clips) - 1)


@pytest.mark.parametrize(("clip_frames", "overlap"), PLANS)
def test_the_last_clip_ends_with_the_audio_and_is_needed(clip_frames, overlap):
    for frames in range(1, 401):
        *before, last = plan_clips(frames, clip_frames, overlap)
        assert last.start + last.drop + last.keep == frames and last.keep > 0
        assert all(c.stop < frames for c in before)


@pytest.mark.parametrize(
    ("frames", "clip_frames", "overlap"), [(0, 81, 25), (-3, 81, 25), (100, 81, 81), (100, 81, 90), (100, 81, 0), (9, 1, 1)]
)
def test_what_cannot_be_planned_is_refused(frames, clip_frames, overlap):
    with pytest.raises(ValueError, match=r"cannot be planned|leave nothing new"):
        plan_clips(frames, clip_frames, overlap)


def test_a_latent_holds_the_first_frame_or_four():
    for frames in range(1, 200):
        assert latent_frames(frames) == 1 + sum(1 for i in range(1, frames) if i % 4 == 0)


def test_fitting_frames_is_the_smallest_4n_plus_1_that_holds_them():
    for frames in range(1, 300):
        assert fitting_frames(frames) == next(n for n in range(frames, frames + 4) if n % 4 == 1)


@pytest.mark.parametrize("frames", [0, -5])
def test_fitting_frames_is_never_less_than_one(frames):
    assert fitting_frames(frames) == 1


def mirrored(index: int, length: int) -> int:
    """A ball between two walls: after the last frame it comes back, starting with the last one again."""
    position, step = 0, 1
    for _ in range(index):
        if 0 <= position + step < length:
            position += step
        else:
            step = -step
    return position


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40])
def test_the_tail_is_mirrored_as_often_as_needed(length):
    indices = torch.arange(5 * length + 3)
    assert reflect(indices, length).tolist() == [mirrored(i, length) for i in indices.tolist()]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 81), (1, 4), (56, 137), (1000, 1005)])
def test_a_frame_hears_two_neighbours_on_each_side(start, stop):
    expected = [[max(0, frame + d) for d in (-2, -1, 0, 1, 2)] for frame in range(start, stop)]
    assert window_indices(start, stop).tolist() == expected


def naive_windows(track: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    rows = [[track[mirrored(max(0, frame + d), len(track))] for d in (-2, -1, 0, 1, 2)] for frame in range(start, stop)]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("length", [1, 3, 30, 60])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 33), (20, 53), (40, 73)])
def test_audio_windows_are_naive_indexing(length, start, stop):
    tracks = [torch.randn(length, 2, 3) for _ in range(2)]
    windows = audio_windows(tracks, start, stop)
    assert windows.shape == (2, stop - start, 5, 2, 3)
    assert torch.equal(windows, torch.stack([naive_windows(track, start, stop) for track in tracks]))


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 33), (20, 53), (95, 128)])
def test_windows_of_a_file_are_those_of_the_tensor(tmp_path, start, stop):
    track = torch.randn(100, 2, 3)
    streamed = StreamedEmbeds(2, 3, tmp_path)
    for block in track.split(37):
        streamed.append(block)
    assert torch.equal(audio_windows([streamed], start, stop), audio_windows([track], start, stop))


DURATIONS = [round(0.02 + i * (90 - 0.02) / 39, 3) for i in range(40)]


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_video_ends_with_the_audio_to_half_a_frame(rate):
    for seconds in DURATIONS:
        samples = round(seconds * rate)
        frames = video_frames(samples, rate)
        assert frames >= 1
        assert abs(frames / 25 - samples / rate) <= 0.02 + 1e-9 or frames == 1


def test_a_track_has_a_whole_embedding_for_every_640_samples():
    for seconds in DURATIONS:
        samples = round(seconds * 16_000)
        assert embed_frames(samples) == max(1, samples // 640)


def test_embeddings_are_at_most_a_frame_short_of_the_video():
    for samples in range(1, 40_000, 7):
        assert 0 <= video_frames(samples) - embed_frames(samples) <= 1


@pytest.mark.parametrize(
    ("frames", "cuts", "bounds"),
    [
        (100, [], [0, 100]),
        (100, [2.0, 1.0], [0, 25, 50, 100]),
        (100, [0.0, 4.0], [0, 100]),
        (100, [1.0, 1.01, 1.019], [0, 25, 100]),
        (3, [0.05], [0, 1, 3]),
    ],
)
def test_shots_lie_between_cuts_and_number_their_clips_through(frames, cuts, bounds):
    shots = plan_shots(frames, cuts, 13, 5)
    assert [shot.start for shot in shots] + [shots[-1].stop] == bounds
    clips = [clip for shot in shots for clip in shot.clips]
    assert [clip.index for clip in clips] == list(range(len(clips)))
    for shot in shots:
        assert shot.clips[0].drop == shot.clips[0].start == 0
        assert sum(clip.keep for clip in shot.clips) == shot.stop - shot.start


def test_a_cut_behind_the_end_is_refused_with_the_videos_length():
    with pytest.raises(ValueError, match=r"The video is 4.00 s long.*the cut at 4.5, 9 s"):
        plan_shots(100, [1.0, 4.5, 9.0], 13, 5)


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("", ()),
        ("12.5, 1:30", (12.5, 90)),
        ("12.5; 1:30", (12.5, 90)),
        ("1 2\n3", (1, 2, 3)),
        ("1,2,3", (1, 2, 3)),
        ("１２．５，１：３０", (12.5, 90)),
        ("1、2", (1, 2)),
        ("1:30,2:00", (90, 120)),
        ("0, 8", (0, 8)),
    ],
)
def test_cuts_as_people_write_them(text, cuts):
    assert parse_cuts(text) == cuts


@pytest.mark.parametrize(("text", "readings"), [("0,8", "'0; 8' or '0.8'"), ("1,5 2,5", "'1; 5 2; 5' or '1.5 2.5'")])
def test_cuts_that_can_be_read_in_two_ways_are_refused_with_both(text, readings):
    with pytest.raises(ValueError, match=readings):
        parse_cuts(text)


def test_a_stretch_is_a_track_of_its_own():
    track = torch.randn(40, 2, 3)
    stretch, alone = stretch_of(track, 10, 30), track[10:30]
    assert stretch.shape == alone.shape
    assert torch.equal(audio_windows([stretch], 0, 45), audio_windows([alone], 0, 45))
    assert torch.equal(stretch_of(track, 35, 50)[0:9], track[35:40])
    assert stretch_of(track, 40, 41).shape[0] == 1


def test_cuts_are_times_with_commas_or_spaces():
    assert parse_cuts("") == parse_cuts(" , ") == ()
    assert parse_cuts("12.5, 30 1:45.5, 1:00:00") == (12.5, 30.0, 105.5, 3600.0)
    for text in ("a", "-1", "nan", "inf", "1:2:3:4", "1:", ":5"):
        with pytest.raises(ValueError, match=f"'3, {text}' are no cuts: '{text}' is no time"):
            parse_cuts(f"3, {text}")
