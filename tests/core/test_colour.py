"""Colour matching in Lab, with kornia as the oracle of Lab."""

import pytest
import torch

from multitalk_nodes.multitalk_core.colour import _lab, _rgb, match_colours, memory_needed

SHAPES = [(1, 16, 24), (3, 17, 23), (2, 64, 64)]


def pictures(frames: int, height: int, width: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def lab(frames: torch.Tensor) -> torch.Tensor:
    kornia = pytest.importorskip("kornia")
    return kornia.color.rgb_to_lab(frames.double().movedim(-1, 1)).movedim(1, -1)


def our_lab(frames: torch.Tensor) -> torch.Tensor:
    return _lab(frames.movedim(-1, 0)).movedim(0, -1)


def moments(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = lab(frames).flatten(1, 2)
    return flat.mean(dim=1), flat.std(dim=1, correction=0)


def test_lab_is_kornia_s():
    frames = pictures(2, 32, 32)
    frames[0, 0] = 0.0
    frames[0, 1] = 1.0
    frames[0, 2] = torch.linspace(0, 0.05, 32)[:, None]  # the linear foot of both curves
    torch.testing.assert_close(our_lab(frames).double(), lab(frames), rtol=0, atol=2e-3)


def test_rgb_comes_back_from_lab():
    levels = torch.linspace(0, 1, 18)
    every = torch.cartesian_prod(levels, levels, levels).T
    torch.testing.assert_close(_rgb(_lab(every)), every, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("frames", "height", "width"), SHAPES)
def test_a_matched_frame_has_the_mean_and_deviation_of_the_reference(frames, height, width):
    reference = pictures(1, 20, 30, 0.4, 0.6, seed=1) * torch.tensor([1.0, 0.9, 0.8])
    matched = match_colours(pictures(frames, height, width, 0.3, 0.7), reference)
    for ours, target in zip(moments(matched), moments(reference), strict=True):
        torch.testing.assert_close(ours, target.expand_as(ours), rtol=0, atol=5e-3)


def test_every_frame_is_matched_on_its_own():
    frames, reference = pictures(3, 16, 16), pictures(1, 16, 16, seed=1)
    one_by_one = torch.cat([match_colours(frame[None], reference) for frame in frames])
    assert torch.equal(match_colours(frames, reference), one_by_one)


def test_a_matched_frame_matches_already():
    reference = pictures(1, 16, 16, 0.3, 0.7)
    torch.testing.assert_close(match_colours(reference, reference), reference, rtol=0, atol=2e-5)


def test_strength_zero_changes_nothing():
    frames = pictures(2, 8, 8, -0.5, 1.5)
    assert torch.equal(match_colours(frames, pictures(1, 8, 8, seed=1), 0.0), frames)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_strength_blends_in_rgb(strength):
    frames, reference = pictures(2, 8, 8), pictures(1, 8, 8, seed=1)
    full = match_colours(frames, reference, 1.0)
    torch.testing.assert_close(match_colours(frames, reference, strength), (1 - strength) * frames + strength * full)


@pytest.mark.parametrize("level", [0.0, 0.02, 0.5, 1 / 3, 1.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 23), (64, 65)])
def test_a_frame_of_one_colour_becomes_the_reference_s_mean(level, height, width):
    reference = pictures(1, 16, 16, 0.3, 0.7, seed=1)
    frame = torch.tensor([level, level / 2, 1 - level]).expand(1, height, width, 3)
    matched = match_colours(frame, reference)
    mean = moments(reference)[0]
    torch.testing.assert_close(lab(matched).flatten(0, 2), mean.expand(height * width, 3), rtol=0, atol=2e-2)


def test_a_black_and_white_frame_gets_the_reference_s_tint():
    """Its chroma has no deviation but rounding, which must not be blown up to the reference's."""
    reference = pictures(1, 16, 16, 0.4, 0.6, seed=1)
    grey = pictures(1, 17, 23, 0.3, 0.7)[..., :1].expand(-1, -1, -1, 3)
    chroma = lab(match_colours(grey, reference)).flatten(0, 2)[:, 1:]
    torch.testing.assert_close(chroma, moments(reference)[0][:, 1:].expand_as(chroma), rtol=0, atol=2e-2)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_reference_of_one_colour_colours_everything(level):
    reference = torch.full((1, 8, 8, 3), level)
    matched = match_colours(pictures(2, 16, 16), reference)
    torch.testing.assert_close(matched, torch.full_like(matched, level), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_number_type_stays_and_the_maths_is_float32(dtype):
    frames, reference = pictures(2, 8, 8).to(dtype), pictures(1, 8, 8, seed=1).to(dtype)
    matched = match_colours(frames, reference)
    assert matched.dtype == dtype
    assert torch.equal(matched, match_colours(frames.float(), reference.float()).to(dtype))


@pytest.mark.parametrize("reference", [0.0, 1.0, None])
def test_results_are_colours(reference):
    """No NaN and nothing outside of 0…1, also for frames outside of it and references at the edge of the gamut."""
    target = pictures(1, 8, 8).round() if reference is None else torch.full((1, 8, 8, 3), reference)
    for frames in (pictures(2, 16, 16, -0.5, 1.5), torch.zeros(1, 8, 8, 3), torch.ones(1, 8, 8, 3), pictures(1, 8, 8).round()):
        matched = match_colours(frames, target)
        assert torch.isfinite(matched).all() and matched.min() >= 0 and matched.max() <= 1
        assert matched.shape == frames.shape


def test_the_result_lies_in_pixels_whatever_the_frames_lie_in():
    """A VAE decodes to planes; what goes on from the result must not depend on that."""
    planes = pictures(2, 8, 8).movedim(-1, 1).contiguous().movedim(1, -1)
    assert not planes.is_contiguous()
    assert match_colours(planes, pictures(1, 8, 8, seed=1)).is_contiguous()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (480, 832), (720, 1280)])
def test_it_needs_no_more_memory_than_it_says(comfy, height, width):
    from multitalk_nodes.lab.benchmarks.counted import count

    frames, reference = pictures(5, height, width), pictures(1, height, width)
    beside = count(lambda: match_colours(frames, reference)).peak_bytes - frames.nbytes
    assert 0.4 * memory_needed(frames) < beside <= memory_needed(frames)


@pytest.mark.gpu
def test_a_card_makes_the_same_colours_also_when_somebody_set_it_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    frames, reference = pictures(3, 480, 832, 0.1, 0.9), pictures(1, 480, 832, 0.3, 0.7, seed=1)
    matched = match_colours(frames, reference, make_room=lambda memory: torch.device("cuda"))
    assert matched.device == frames.device
    torch.testing.assert_close(matched, match_colours(frames, reference), rtol=0, atol=2e-5)
