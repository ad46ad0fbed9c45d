"""How a latent is sampled: the settings, and one latent sampled as core's Sampler Custom Advanced does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ..multitalk_core.guidance import Projection
from ..multitalk_core.schedule import sigmas
from .guider import MultiTalkGuider


@dataclass(frozen=True)
class Sampling:
    """Everything that a user chooses between a conditioned model and a finished latent, but for the seed."""

    steps: int
    shift: float
    text_scale: float
    audio_scale: float
    sampler_name: str = "euler"  # as published
    projection: Projection | None = None  # adaptive projected guidance

    @property
    def sigmas(self) -> Tensor:
        """[steps + 1] noise levels."""
        return sigmas(self.steps, self.shift)


def sample_clip(guider: MultiTalkGuider, latent: dict[str, Any], sampling: Sampling, seed: int, steps: int | None = None) -> dict[str, Any]:
    """LATENT → LATENT with progress and previews; whatever else the latent carries goes on with it.

    Args:
        steps: how many of the schedule's steps to make; all by default.
    """
    steps = sampling.steps if steps is None else steps
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    denoised = guider.sample(
        noise,
        samples,
        comfy.samplers.sampler_object(sampling.sampler_name),
        sampling.sigmas[: steps + 1],
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(guider.model_patcher, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": denoised.to(comfy.model_management.intermediate_device())}
