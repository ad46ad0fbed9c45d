"""A long video's backend that knows where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ...comfy_bridge.backend import ComfyBackend


@dataclass(frozen=True, kw_only=True)
class TimedBackend(ComfyBackend):
    """A backend that knows how long each phase took, all clips together."""

    seconds: dict[str, float]

    @classmethod
    def of(cls, backend: ComfyBackend) -> TimedBackend:
        return cls(**{field.name: getattr(backend, field.name) for field in fields(ComfyBackend)}, seconds={})

    def encode(self, frames: Tensor) -> Tensor:
        return self._timed("VAE encode", super().encode, frames)

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        return self._timed("VAE encode", super().encode_source, source, frames)

    def decode(self, latent: Tensor) -> Tensor:
        return self._timed("VAE decode", super().decode, latent)

    def denoise(self, condition: Any, seed: int) -> Tensor:
        before = self.seconds.get("CLIP vision", 0.0)
        made = self._timed("denoise", super().denoise, condition, seed)
        self.seconds["denoise"] -= self.seconds.get("CLIP vision", 0.0) - before  # which is a part of it
        return made

    def see(self, condition: Any) -> Any:
        return self._timed("CLIP vision", super().see, condition)

    def _timed(self, phase: str, work: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        made = work(*given)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
        return made
