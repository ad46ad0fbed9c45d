"""A clip through ComfyUI's VAE, CLIP vision, model and sampler: by itself in a graph, or as the loop's backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..multitalk_core.generate import Condition, with_grey
from ..multitalk_core.guidance import Projection
from ..multitalk_core.sizes import LATENT_STRIDE
from ..multitalk_core.windows import latent_frames
from .conditioning import Conditioning, PictureError, at_second, check_clip, encode_clip, with_clip
from .guider import MultiTalkGuider
from .patches import MotionNoise, hold_motion, motion_noise, patch_model
from .weights import MultiTalkWeights

AnyScene = TypeVar("AnyScene", bound="Scene")
Made = TypeVar("Made")
StepCallback = Callable[[int, Tensor, Tensor, int], None]


class Remembered(Generic[Made]):
    """A function whose latest result is remembered, for when it is asked the same again: an image is the source of every clip."""

    def __init__(self, function: Callable[..., Made]) -> None:
        self._function = function
        self._kept: tuple[tuple[Any, ...], Made] | None = None

    def __call__(self, *given: Any) -> Made:
        if self._kept is None or not all(map(_same, given, self._kept[0])):
            made = self._function(*given)
            self._kept = tuple(g.clone() if isinstance(g, Tensor) else g for g in given), made
        return self._kept[1]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device) and torch.equal(one, other)
    return one == other


def device_with(memory: int) -> torch.device:
    """What ComfyUI computes on, with so many bytes free; models make room."""
    device = comfy.model_management.get_torch_device()
    if not comfy.model_management.is_device_cpu(device):
        comfy.model_management.free_memory(memory, device)
    return device


def encode_with_grey(vae: Any, known: Tensor, frames: int) -> Tensor:
    """Known frames [n, H, W, 3] and grey up to `frames` through a comfy.sd.VAE → [1, C, T, h, w]."""
    return vae.encode(with_grey(known, frames))


@dataclass(frozen=True)
class Scene:
    """Models, prompts and places: what stays the same for every clip of a video."""

    model: comfy.model_patcher.ModelPatcher
    weights: MultiTalkWeights
    vae: Any  # comfy.sd.VAE
    positive: Conditioning
    negative: Conditioning
    masks: Tensor | None  # [S + 1, N] on the token grid; None for a single speaker
    clip_vision: comfy.clip_vision.ClipVisionModel | None = None
    clip_vision_output: comfy.clip_vision.Output | None = None  # in place of the model's, the same for every clip
    motion_noise: MotionNoise = motion_noise
    encode_known: Remembered[Tensor] = field(default_factory=lambda: Remembered(encode_with_grey), repr=False, compare=False)
    look_at: Remembered[comfy.clip_vision.Output] = field(default_factory=lambda: Remembered(encode_clip), repr=False, compare=False)

    def device_with(self, memory: int) -> torch.device:
        return device_with(memory)

    def at(self: AnyScene, second: float) -> AnyScene:
        """The same scene with the prompts that hold at a time of the video."""
        return replace(self, positive=at_second(self.positive, second), negative=at_second(self.negative, second))

    def encode(self, frames: Tensor) -> Tensor:
        """VAE: [F, H, W, 3] → [1, C, T, h, w].

        Raises:
            PictureError: a VAE of another model.
        """
        return self._checked(self.vae.encode(frames[..., :3]), frames.shape[0], frames)

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        """VAE: the source [1, H, W, 3] and grey up to `frames` → [1, C, T, h, w], made once for clips that have it in common.

        Raises:
            PictureError: a VAE of another model.
        """
        return self._checked(self.encode_known(self.vae, source[..., :3], frames), frames, source)

    def _checked(self, latent: Tensor, frames: int, shown: Tensor) -> Tensor:
        height, width = (side // LATENT_STRIDE for side in shown.shape[1:3])
        expected = (1, self.model.model.latent_format.latent_channels, latent_frames(frames), height, width)
        if latent.shape != expected:
            raise PictureError(
                f"The VAE makes latents of shape {tuple(latent.shape)}, but WAN 2.1 needs {expected}. Load wan_2.1_vae.safetensors."
            )
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """VAE: [1, C, T, h, w] → [F, H, W, 3]."""
        return self.vae.decode(latent).flatten(end_dim=-4)

    def see(self, condition: Condition) -> Any:
        """CLIP's view of the clip's picture, or None without CLIP vision."""
        seen = self.clip_vision_output
        if seen is None and self.clip_vision is not None:
            seen = self.look_at(self.clip_vision, condition.clip_picture)
        if seen is not None:
            check_clip(self.model, seen)
        return seen

    def conditionings(self, condition: Condition) -> tuple[Conditioning, Conditioning]:
        """Positive and negative with the clip's picture, mask and voices."""
        tokens, null_tokens = self.weights.tokens(condition.windows)
        clip = (condition.known_latent, condition.known_latent_frames, self.see(condition), tokens, null_tokens)
        return with_clip(self.positive, *clip), with_clip(self.negative, *clip)

    def listening_model(self, condition: Condition) -> comfy.model_patcher.ModelPatcher:
        """The model with the audio patches, its first latents held where the family says so."""
        model = patch_model(self.model, self.weights, self.masks)
        return model if condition.motion is None else hold_motion(model, condition.motion, self.motion_noise)


@dataclass(frozen=True, kw_only=True)
class ComfyBackend(Scene):
    """multitalk_core.generate.Backend: a scene, guidance and a schedule."""

    sigmas: Tensor
    text_scale: float
    audio_scale: float
    projection: Projection | None = None
    sampler: comfy.samplers.Sampler | None = None  # None is Euler, as published
    callback: StepCallback | None = None

    def denoise(self, condition: Condition, seed: int) -> Tensor:
        """One clip from noise of `seed`: → [1, C, T, h, w]."""
        empty = torch.zeros_like(condition.known_latent)
        chosen = self.sampler or comfy.samplers.sampler_object("euler")
        quiet = self.callback is not None
        denoised = self.guider(condition).sample(
            self.noise(empty, seed), empty, chosen, self.sigmas, callback=self.callback, disable_pbar=quiet, seed=seed
        )
        return denoised.to(comfy.model_management.intermediate_device())

    def guider(self, condition: Condition) -> MultiTalkGuider:
        """The clip's model, conditionings and guidance."""
        return MultiTalkGuider(
            self.listening_model(condition), *self.conditionings(condition), self.text_scale, self.audio_scale, self.projection
        )

    def noise(self, empty: Tensor, seed: int) -> Tensor:
        """ComfyUI's noise of a seed, which is torch.randn on the CPU as in the published code."""
        return comfy.sample.prepare_noise(empty, seed)
