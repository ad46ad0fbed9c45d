"""Sampling one latent, as core's Sampler Custom Advanced does."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from .guider import MultiTalkGuider


def sample_clip(guider: MultiTalkGuider, latent: dict[str, Any], sigmas: Tensor, sampler_name: str, seed: int) -> dict[str, Any]:
    """LATENT → LATENT with progress and previews; whatever else the latent carries goes on with it."""
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(guider.model_patcher, sigmas.shape[-1] - 1)
    denoised = guider.sample(
        noise,
        samples,
        comfy.samplers.sampler_object(sampler_name),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": denoised.to(comfy.model_management.intermediate_device())}
