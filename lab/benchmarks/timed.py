"""A long video's backend that knows where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...comfy_bridge.backend import ComfyBackend


@dataclass(frozen=True, kw_only=True)
class TimedBackend(ComfyBackend):
    """A backend that knows how long each phase took, all clips together."""

    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, backend: ComfyBackend) -> TimedBackend:
        seconds: dict[str, float] = {}
        look_at = backend.scene.look_at
        scene = replace(backend.scene, look_at=lambda *given: _timed(seconds, "CLIP vision", look_at, *given))
        return cls(scene, backend.sampling, backend.callback, seconds=seconds)

    def encode(self, frames: Tensor) -> Tensor:
        return _timed(self.seconds, "VAE encode", super().encode, frames)

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        return _timed(self.seconds, "VAE encode", super().encode_source, source, frames)

    def decode(self, latent: Tensor) -> Tensor:
        return _timed(self.seconds, "VAE decode", super().decode, latent)

    def denoise(self, condition: Any, seed: int) -> Tensor:
        before = self.seconds.get("CLIP vision", 0.0)
        made = _timed(self.seconds, "denoise", super().denoise, condition, seed)
        self.seconds["denoise"] -= self.seconds.get("CLIP vision", 0.0) - before  # which is a part of it
        return made


def _timed(seconds: dict[str, float], phase: str, work: Callable[..., Any], *given: Any) -> Any:
    began = time.perf_counter()
    made = work(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - began
    return made
