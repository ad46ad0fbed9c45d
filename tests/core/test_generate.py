"""The loop over clips with a backend that only does arithmetic."""

import weakref

import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.colour import match_colours, memory_needed
from multitalk_nodes.multitalk_core.families import FAMILIES, INFINITETALK, MULTITALK
from multitalk_nodes.multitalk_core.generate import GREY, Condition, Video, clip_seed, condition_clip
from multitalk_nodes.multitalk_core.generate import generate as generate_clips
from multitalk_nodes.multitalk_core.generate import with_grey as filled_up
from multitalk_nodes.multitalk_core.windows import Shot, audio_windows, latent_frames, plan_clips

SIDE = 8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small only make threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Arithmetic:
    """Encodes by pooling, denoises to random latents of the seed, decodes by repeating; notes what it was asked.

    What it hands out lies in numpy arrays, so that one can see when the memory is freed.
    """

    def __init__(self, recording: bool = True) -> None:
        self.recording = recording  # what is noted stays in memory
        self.encoded: list[torch.Tensor] = []
        self.conditions: list[Condition] = []
        self.seeds: list[int] = []
        self.decoded: list[torch.Tensor] = []
        self.alive: list[weakref.ref] = []
        self.alive_when_decoding: list[int] = []
        self.asked_for: list[int] = []

    def make_room(self, memory: int) -> torch.device:
        self.asked_for.append(memory)
        return torch.device("cpu")

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        if self.recording:
            self.encoded.append(frames.clone())
        return pooled(frames)

    def encode_source(self, source: torch.Tensor, frames: int) -> torch.Tensor:
        return self.encode(filled_up(source, frames))

    def denoise(self, condition: Condition, seed: int) -> torch.Tensor:
        if self.recording:
            self.conditions.append(condition)
        self.seeds.append(seed)
        return torch.rand(condition.known_latent.shape, generator=torch.Generator().manual_seed(seed % 2**63))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        frames = latent[0].movedim(0, -1).repeat_interleave(4, dim=0)[3:]
        frames = frames.repeat_interleave(SIDE // 2, dim=1).repeat_interleave(SIDE // 2, dim=2)
        memory = np.ascontiguousarray((frames * torch.linspace(0.8, 1, len(frames))[:, None, None, None]).numpy())
        self.alive.append(weakref.ref(memory))
        self.alive_when_decoding.append(sum(clip() is not None for clip in self.alive))
        result = torch.from_numpy(memory)
        if self.recording:
            self.decoded.append(result.clone())
        return result


def pooled(frames: torch.Tensor) -> torch.Tensor:
    """[F, H, W, 3] → [1, 3, T, 2, 2]: the last frame of every latent."""
    latents = frames[0::4]
    return torch.nn.functional.adaptive_avg_pool2d(latents.movedim(-1, 1), 2).movedim(0, 1)[None]


def moving_source(frame: int) -> torch.Tensor:
    return torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(frame))


def still_source(frame: int) -> torch.Tensor:
    return moving_source(0)


def voices(frames: int, speakers: int = 2) -> list[torch.Tensor]:
    return [torch.randn(frames, 2, 3, generator=torch.Generator().manual_seed(s)) for s in range(speakers)]


def generate(backend, family, plan, source, tracks, seed, colour=1.0):
    """The new frames of every clip of a single shot."""
    video = Video(family, [Shot(0, plan[-1].stop, tuple(plan))], source, tracks, seed, colour)
    for made in generate_clips(backend, video):
        frames = made.frames
        del made
        yield frames
        del frames


def run(family, frames, clip_frames=33, overlap=None, source=moving_source, seed=7, strength=1.0):
    """The backend after a run, its plan, and the new frames of every clip."""
    backend = Arithmetic()
    plan = plan_clips(frames, clip_frames, overlap or family.motion_frames)
    return backend, plan, list(generate(backend, family, plan, source, voices(frames), seed, strength))


families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@families
@pytest.mark.parametrize("frames", [1, 2, 32, 33, 34, 41, 57, 58, 59, 100, 150])
def test_the_video_is_as_long_as_planned(family, frames):
    _, plan, new = run(family, frames)
    assert [len(clip) for clip in new] == [clip.keep for clip in plan]
    assert sum(len(clip) for clip in new) == frames


@families
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_new_frames_are_the_matched_decoded_ones_behind_the_overlap(family, strength):
    backend, plan, new = run(family, 100, strength=strength)
    for clip, decoded, kept in zip(plan, backend.decoded, new, strict=True):
        matched = match_colours(decoded, moving_source(0), strength)
        assert torch.equal(kept, matched[clip.drop : clip.drop + clip.keep])


@families
def test_colours_are_matched_by_what_computes(family):
    """Asked once a clip for the memory that they need there, and not at all for none."""
    backend, plan, _ = run(family, 100)
    assert len(plan) > 1 and backend.asked_for == [memory_needed(frames) for frames in backend.decoded]
    assert run(family, 100, strength=0.0)[0].asked_for == []


@families
def test_every_clip_hears_its_own_windows(family):
    backend, plan, _ = run(family, 100)
    for clip, condition in zip(plan, backend.conditions, strict=True):
        assert torch.equal(condition.windows, audio_windows(voices(100), clip.start, clip.stop))


def with_grey(known: torch.Tensor, frames: int) -> torch.Tensor:
    return torch.cat([known, torch.full((frames - len(known), SIDE, SIDE, 3), 0.5)])


def ends(backend, overlap: int, strength: float) -> list[torch.Tensor | None]:
    """Before every clip: the corrected end of the one before."""
    return [None, *(match_colours(decoded, moving_source(0), strength)[-overlap:] for decoded in backend.decoded[:-1])]


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(("clip_frames", "overlap"), [(33, 25), (33, 5), (33, 1), (81, 25)])
def test_multitalk_goes_on_from_the_corrected_last_frames(clip_frames, overlap, strength):
    backend, plan, _ = run(MULTITALK, 150, clip_frames, overlap, strength=strength)
    assert len(plan) > 1
    for clip, condition, motion in zip(plan, backend.conditions, ends(backend, overlap, strength), strict=True):
        known = moving_source(0) if motion is None else motion
        assert torch.equal(condition.known_latent, pooled(with_grey(known, clip.stop - clip.start)))
        assert condition.known_latent_frames == (1 if motion is None else latent_frames(overlap))
        assert torch.equal(condition.clip_picture, known[-1:])
        if motion is None:
            assert condition.motion is None
        else:
            assert condition.motion.noised
            assert torch.equal(condition.motion.latent, condition.known_latent[:, :, : latent_frames(overlap)])


@pytest.mark.parametrize("source", [still_source, moving_source], ids=["image", "video"])
@pytest.mark.parametrize(("clip_frames", "overlap"), [(33, 9), (33, 5), (33, 1), (81, 9)])
def test_infinitetalk_looks_at_the_source_and_holds_the_motion_clean(clip_frames, overlap, source):
    backend, plan, _ = run(INFINITETALK, 150, clip_frames, overlap, source)
    assert len(plan) > 1
    for clip, condition, motion in zip(plan, backend.conditions, ends(backend, overlap, 1.0), strict=True):
        picture = source(clip.start)
        assert torch.equal(condition.known_latent, pooled(with_grey(picture, clip.stop - clip.start)))
        assert condition.known_latent_frames == 1
        assert torch.equal(condition.clip_picture, picture)
        assert not condition.motion.noised
        assert torch.equal(condition.motion.latent, pooled(picture if motion is None else motion))
        assert condition.motion.latent.shape[2] == (1 if motion is None else latent_frames(overlap))


@families
def test_motion_frames_never_reach_what_infinitetalk_encodes_as_known(family):
    """MultiTalk encodes once a clip; InfiniteTalk twice, the motion apart from the known frames."""
    backend, plan, _ = run(family, 100)
    lengths = [len(frames) for frames in backend.encoded]
    if family is MULTITALK:
        assert lengths == [33] * len(plan)
    else:
        assert lengths == [33, 1] + [33, 9] * (len(plan) - 1)


def test_unknown_frames_are_mid_grey():
    backend, _, _ = run(INFINITETALK, 33)
    assert GREY == 0.5 and (backend.encoded[0][1:] == 0.5).all()


@families
def test_the_first_colour_is_the_reference_of_all(family):
    asked = []

    def source(frame: int) -> torch.Tensor:
        asked.append(frame)
        return moving_source(frame)

    _, plan, _ = run(family, 100, source=source)
    assert asked == [0, *(clip.start for clip in plan)]


@families
def test_a_picture_s_number_type_is_kept(family):
    """The grey frames must not widen it."""
    source = moving_source(0).half()
    backend = Arithmetic()
    backend.encode = lambda frames: torch.zeros(1, 3, latent_frames(len(frames)), 2, 2, dtype=frames.dtype)
    (clip,) = plan_clips(20, 33, 9)
    condition = condition_clip(backend, family, clip, source, None, voices(20))
    assert condition.known_latent.dtype == torch.float16


# randomness


def test_the_first_clip_keeps_the_user_s_seed():
    assert [clip_seed(seed, 0) for seed in (0, 7, 2**64 - 1)] == [0, 7, 2**64 - 1]


def test_seeds_of_clips_are_distinct_and_fit_a_generator():
    seeds = [clip_seed(seed, index) for seed in [*range(50), 2**63, 2**64 - 1] for index in range(1, 60)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@families
def test_the_seed_of_a_clip_does_not_depend_on_the_others(family):
    long, short = run(family, 150)[0].seeds, run(family, 60)[0].seeds
    assert long[: len(short)] == short and len(set(long)) == len(long)
    assert run(family, 150, seed=8)[0].seeds[1:] != long[1:]


@families
def test_a_run_is_the_same_again(family):
    first, second = run(family, 100)[2], run(family, 100)[2]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@families
def test_the_start_of_a_longer_video_is_the_shorter_one(family):
    """All but the tail, whose windows are mirrored, and which this backend does not hear."""
    short, long = torch.cat(run(family, 60)[2]), torch.cat(run(family, 120)[2])
    assert torch.equal(long[:60], short)


# one clip at a time


@families
def test_nothing_is_made_before_it_is_asked_for(family):
    backend = Arithmetic()
    clips = generate(backend, family, plan_clips(150, 33, 9), moving_source, voices(150), 0)
    assert not backend.seeds
    for made in (1, 2, 3):
        next(clips)
        assert len(backend.seeds) == made


@families
def test_only_one_clip_is_held(family):
    """When a clip is decoded, the memory of the one before it is free: its end may be a copy, but not a view of all of it."""
    backend = Arithmetic(recording=False)
    plan = plan_clips(200, 33, family.motion_frames)
    clips = generate(backend, family, plan, moving_source, voices(200), 0, colour=0.0)
    frames = sum(len(next(clips)) for _ in plan)
    assert frames == 200
    assert max(backend.alive_when_decoding) == 1, f"clips in memory at each decode: {backend.alive_when_decoding}"


@families
def test_clips_before_the_last_two_are_gone(family):
    """The weaker fact: memory does not grow with the video."""
    backend = Arithmetic(recording=False)
    plan = plan_clips(200, 33, family.motion_frames)
    for _ in generate(backend, family, plan, moving_source, voices(200), 0, colour=0.0):
        assert sum(clip() is not None for clip in backend.alive) <= 2
    assert len(plan) > 4


def test_families_differ_as_published():
    assert (MULTITALK.motion_frames, MULTITALK.known, MULTITALK.motion_latents) == (25, "motion", "noised")
    assert (INFINITETALK.motion_frames, INFINITETALK.known, INFINITETALK.motion_latents) == (9, "reference", "clean")
    assert set(FAMILIES) == {"multitalk", "infinitetalk"}
