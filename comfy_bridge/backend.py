"""The loop's backend: one clip through ComfyUI's VAE, CLIP vision and sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.clip_vision
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..multitalk_core.generate import Condition
from ..multitalk_core.guidance import Projection
from .conditioning import Conditioning, encode_clip, with_clip
from .guider import MultiTalkGuider
from .patches import hold_motion, patch_model
from .weights import MultiTalkWeights

StepCallback = Callable[[int, Tensor, Tensor, int], None]


@dataclass(frozen=True)
class ComfyBackend:
    """multitalk_core.generate.Backend over a ComfyUI MODEL, VAE and CLIP_VISION."""

    model: comfy.model_patcher.ModelPatcher
    weights: MultiTalkWeights
    vae: Any  # comfy.sd.VAE
    clip_vision: comfy.clip_vision.ClipVisionModel | None
    positive: Conditioning
    negative: Conditioning
    masks: Tensor | None  # [S + 1, N] on the token grid
    sigmas: Tensor
    text_scale: float
    audio_scale: float
    projection: Projection | None = None
    sampler: comfy.samplers.Sampler | None = None  # None is Euler, as published
    callback: StepCallback | None = None

    def encode(self, frames: Tensor) -> Tensor:
        """VAE: [F, H, W, 3] → [1, C, T, h, w]."""
        return self.vae.encode(frames)

    def decode(self, latent: Tensor) -> Tensor:
        """VAE: [1, C, T, h, w] → [F, H, W, 3]."""
        return self.vae.decode(latent).flatten(end_dim=-4)

    def denoise(self, condition: Condition, seed: int) -> Tensor:
        """One clip from noise of `seed`: → [1, C, T, h, w]."""
        guider = self.guider(condition)
        empty = torch.zeros_like(condition.known_latent)
        noise = self.noise(empty, seed)
        return guider.sample(
            noise,
            empty,
            self.sampler or comfy.samplers.sampler_object("euler"),
            self.sigmas,
            callback=self.callback,
            disable_pbar=self.callback is not None,
            seed=seed,
        )

    def guider(self, condition: Condition) -> MultiTalkGuider:
        """The clip's model, conditionings and guidance."""
        tokens = self.weights.tokens(condition.windows)
        seen = self.see(condition)
        positive, negative = (
            with_clip(c, condition.known_latent, condition.known_latent_frames, seen, *tokens) for c in (self.positive, self.negative)
        )
        return MultiTalkGuider(self.listening_model(condition), positive, negative, self.text_scale, self.audio_scale, self.projection)

    def see(self, condition: Condition) -> Any:
        """CLIP's view of the clip's picture, or None without a CLIP vision model."""
        return None if self.clip_vision is None else encode_clip(self.clip_vision, condition.clip_picture)

    def listening_model(self, condition: Condition) -> comfy.model_patcher.ModelPatcher:
        """The model with the audio patches, its first latents held where the family says so."""
        model = patch_model(self.model, self.weights, self.masks)
        return model if condition.motion is None else hold_motion(model, condition.motion)

    def noise(self, empty: Tensor, seed: int) -> Tensor:
        return comfy.sample.prepare_noise(empty, seed)
