"""The loop's backend: a clip through ComfyUI's VAE, CLIP vision, model and sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..multitalk_core.generate import Condition
from .guider import MultiTalkGuider
from .sampling import Sampling
from .scene import Scene, make_room

StepCallback = Callable[[int, Tensor, Tensor, int], None]


@dataclass(frozen=True)
class ComfyBackend:
    """multitalk_core.generate.Backend on ComfyUI."""

    scene: Scene
    sampling: Sampling
    callback: StepCallback | None = None  # after every step, in place of ComfyUI's progress bar

    def make_room(self, memory: int) -> torch.device:
        return make_room(memory)

    def encode(self, frames: Tensor) -> Tensor:
        return self.scene.encode(frames)

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        return self.scene.encode_source(source, frames)

    def decode(self, latent: Tensor) -> Tensor:
        return self.scene.decode(latent)

    def denoise(self, condition: Condition, seed: int) -> Tensor:
        """One clip from noise of `seed`: → [1, C, T, h, w]."""
        empty = torch.zeros_like(condition.known_latent)
        denoised = self.guider(condition).sample(
            self.noise(empty, seed),
            empty,
            comfy.samplers.sampler_object(self.sampling.sampler_name),
            self.sampling.sigmas,
            callback=self.callback,
            disable_pbar=self.callback is not None,
            seed=seed,
        )
        return denoised.to(comfy.model_management.intermediate_device())

    def guider(self, condition: Condition) -> MultiTalkGuider:
        """The clip's model, conditionings and guidance."""
        model, prompts, chosen = self.scene.listening_model(condition), self.scene.conditionings(condition), self.sampling
        return MultiTalkGuider(model, *prompts, chosen.text_scale, chosen.audio_scale, chosen.projection)

    def noise(self, empty: Tensor, seed: int) -> Tensor:
        """ComfyUI's noise of a seed, which is torch.randn on the CPU as in the published code."""
        return comfy.sample.prepare_noise(empty, seed)
