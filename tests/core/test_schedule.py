"""The noise schedule, against its formula and its ends."""

import math

import pytest
import torch

from multitalk_nodes.multitalk_core.schedule import renoise, sigmas

STEPS = [1, 2, 4, 8, 40, 100, 1000]
SHIFTS = [0.5, 1.0, 2.0, 7.0, 11.0]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_noise_falls_from_one_to_zero(steps, shift):
    levels = sigmas(steps, shift)
    assert levels.shape == (steps + 1,) and levels.dtype == torch.float32
    assert levels[0] == 1 and levels[-1] == 0
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize("steps", STEPS)
def test_shift_one_is_evenly_spaced(steps):
    expected = [(1000 - 999 * i / max(1, steps - 1)) / 1000 for i in range(steps)] + [0]
    torch.testing.assert_close(sigmas(steps, 1.0), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_multiplies_the_odds_of_noise(steps, shift):
    """σ / (1 − σ) = shift · u / (1 − u): the same formula, solved the other way."""
    plain, shifted = sigmas(steps, 1.0)[1:].double(), sigmas(steps, shift)[1:].double()
    torch.testing.assert_close(shifted / (1 - shifted), shift * plain / (1 - plain), rtol=1e-3, atol=1e-9)  # 1 − σ cancels


def test_the_published_schedule_ends_low():
    assert sigmas(40, 7.0)[-2].item() == pytest.approx(0.007 / 1.006, abs=1e-7)


@pytest.mark.parametrize(("steps", "shift"), [(0, 7.0), (-1, 7.0), (40, 0.0), (40, -1.0), (40, math.nan)])
def test_a_schedule_that_cannot_be_made_is_refused(steps, shift):
    with pytest.raises(ValueError, match="positive shift"):
        sigmas(steps, shift)


def test_renoise_goes_straight_from_the_latent_to_the_noise():
    latent, noise = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(renoise(latent, noise, 0.0), latent)
    assert torch.equal(renoise(latent, noise, 1.0), noise)
    torch.testing.assert_close(renoise(latent, noise, 0.25), latent + 0.25 * (noise - latent))
