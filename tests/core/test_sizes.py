"""Size buckets, fitting pictures and masks, and what CLIP sees."""

import math

import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.sizes import (
    BUCKETS,
    CLIP_MEAN,
    CLIP_STD,
    bucket,
    center_crop,
    clip_input,
    fit_mask,
    fit_picture,
    fitted,
    opaque,
)

SIZES = list(BUCKETS)
PICTURES = [(480, 640), (1080, 1920), (1920, 1080), (37, 51), (640, 640), (100, 900), (900, 100)]
TARGETS = [(640, 640), (448, 896), (832, 448)]


def picture(height: int, width: int, frames: int = 1, seed: int = 0) -> torch.Tensor:
    """Any 8-bit picture."""
    levels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(levels).float() / 255


@pytest.mark.parametrize(("size", "side"), [("multitalk-480", 640), ("multitalk-720", 960)])
def test_buckets_are_multiples_of_64_of_about_the_same_area(size, side):
    for _, height, width in BUCKETS[size]:
        assert height % 64 == 0 and width % 64 == 0
        assert abs(height * width / side**2 - 1) < 0.14


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_of_a_bucket_s_ratio_gets_that_bucket(size):
    for ratio, height, width in BUCKETS[size]:
        assert bucket(round(ratio * 10_000), 10_000, size) == (height, width)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("height", "width"), PICTURES)
def test_no_bucket_is_nearer(size, height, width):
    ratios = {(h, w): ratio for ratio, h, w in BUCKETS[size]}
    chosen = bucket(height, width, size)
    assert abs(ratios[chosen] - height / width) == min(abs(ratio - height / width) for ratio in ratios.values())


@pytest.mark.parametrize(("height", "width"), PICTURES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_fitted_picture_covers_the_target_and_keeps_its_shape(height, width, target):
    tall, wide = fitted(height, width, *target)
    assert tall >= target[0] and wide >= target[1]
    assert tall - target[0] <= 1 or wide - target[1] <= 1  # one side fits
    assert abs(tall - wide * height / width) <= 1 + height / width


@pytest.mark.parametrize(("height", "width"), PICTURES)
@pytest.mark.parametrize("target", TARGETS)
def test_pictures_and_masks_come_out_at_the_target_s_size(height, width, target):
    fit = fit_picture(picture(height, width, frames=2), *target)
    assert fit.shape == (2, *target, 3) and fit.dtype == torch.float32
    assert fit.min() >= 0 and fit.max() <= 1
    assert fit_mask(torch.ones(3, height, width), *target).shape == (3, *target)


def test_a_picture_of_the_right_size_is_kept():
    exact = picture(64, 128, frames=3)
    assert torch.equal(fit_picture(exact, 64, 128), exact)
    assert torch.equal(fit_mask(exact[..., 0], 64, 128), exact[..., 0])


def test_fitted_pictures_are_in_steps_of_one_255th():
    fit = fit_picture(picture(50, 70), 64, 64) * 255
    torch.testing.assert_close(fit, fit.round(), rtol=0, atol=1e-4)


def test_values_outside_of_zero_to_one_are_clipped():
    wild = torch.tensor([-0.5, 1.5, 0.0])
    assert torch.equal(fit_picture(wild.expand(1, 64, 64, 3), 64, 64)[0, 0, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_what_is_see_through_becomes_white():
    clear = torch.cat([picture(4, 5), torch.linspace(0, 1, 20).reshape(1, 4, 5, 1)], dim=-1)
    expected = [
        [[clear[0, y, x, c] * clear[0, y, x, 3] + 1 * (1 - clear[0, y, x, 3]) for c in range(3)] for x in range(5)] for y in range(4)
    ]
    torch.testing.assert_close(opaque(clear), torch.tensor([expected]))
    assert torch.equal(opaque(picture(4, 5)), picture(4, 5))


@pytest.mark.parametrize(("height", "width", "target"), [(100, 150, (40, 30)), (101, 151, (33, 64)), (30, 20, (64, 64)), (7, 5, (64, 128))])
def test_what_is_left_is_the_middle(height, width, target):
    """A ramp stays centred: left and right, top and bottom lose the same, to a pixel."""
    ramp = torch.linspace(0, 1, width).expand(height, width)
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    fit = fit_picture(torch.stack([ramp, rows, ramp], dim=-1)[None], *target)[0]
    pixel = 2 / 255 + 2 / min(fitted(height, width, *target))
    assert fit[..., 0].mean().item() == pytest.approx(0.5, abs=pixel)
    assert fit[..., 1].mean().item() == pytest.approx(0.5, abs=pixel)


@pytest.mark.parametrize(
    ("height", "width", "target"), [(200, 300, (64, 64)), (300, 200, (128, 64)), (40, 60, (128, 128)), (333, 111, (64, 192))]
)
def test_a_mask_stays_on_its_place_in_the_picture(height, width, target):
    mask = torch.zeros(height, width)
    mask[height * 2 // 5 : height * 3 // 5, width * 2 // 5 : width // 2] = 1
    seen = fit_picture(mask[None, ..., None].expand(-1, -1, -1, 3), *target)[0, ..., 0] > 0.5
    kept = fit_mask(mask[None], *target)[0] > 0
    for side in (0, 1):
        in_picture, in_mask = seen.any(dim=side).nonzero(), kept.any(dim=side).nonzero()
        step = math.ceil(max(t / s for t, s in zip(target, (height, width), strict=True)))  # pixels of one source pixel
        assert abs(in_picture.min() - in_mask.min()) <= step and abs(in_picture.max() - in_mask.max()) <= step


@pytest.mark.parametrize("height", range(6, 12))
@pytest.mark.parametrize("width", [6, 9])
def test_a_crop_takes_the_middle_with_halves_rounded_to_even(height, width):
    grid = torch.arange(height * width).reshape(1, height, width)
    top, left = round((height - 6) / 2), round((width - 6) / 2)
    assert torch.equal(center_crop(grid, 6, 6), grid[:, top : top + 6, left : left + 6])


def cubic(x: float) -> float:
    """Keys' kernel with a = −0.75."""
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def stretch_matrix(length: int, target: int = 224) -> np.ndarray:
    """[target, length]: four neighbours of every pixel centre, whatever the scale, edges repeated."""
    matrix = np.zeros((target, length))
    for i in range(target):
        where = (i + 0.5) * length / target - 0.5
        for neighbour in range(math.floor(where) - 1, math.floor(where) + 3):
            matrix[i, min(max(neighbour, 0), length - 1)] += cubic(where - neighbour)
    return matrix


@pytest.mark.parametrize(("height", "width"), [(100, 300), (640, 448), (224, 224)])
def test_clip_sees_the_whole_picture_stretched_by_a_bicubic_without_antialiasing(height, width):
    source = picture(height, width, frames=2)
    seen = clip_input(source)
    stretched = np.einsum("yh,fhwc,xw->fcyx", stretch_matrix(height), source.double().numpy(), stretch_matrix(width), optimize=True)
    expected = (stretched - np.array(CLIP_MEAN)[:, None, None]) / np.array(CLIP_STD)[:, None, None]
    assert seen.shape == (2, 3, 224, 224)
    np.testing.assert_allclose(seen.numpy(), expected, atol=2e-4)
