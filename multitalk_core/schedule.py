"""The published noise schedule. Sigmas are timesteps / 1000; ComfyUI's SIGMAS are the same numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sigmas(steps: int, shift: float) -> Tensor:
    """Noise levels of a run, [steps + 1] float32 from 1 to 0.

    u = linspace(1000, 1, steps) / 1000, then 0;  σ = shift · u / (1 + (shift − 1) · u)

    The last level above 0 is shift · 0.001 / (…), far lower than ComfyUI's schedulers end (0.007 against 0.152 at 40 steps and
    shift 7).

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate() and timestep_transform().
    Raises:
        ValueError: no steps, or a shift that is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(
            f"A schedule of {steps} steps with shift {shift} cannot be made; at least 1 step and a positive shift were expected."
        )
    u = torch.from_numpy(np.append(np.linspace(1000, 1, steps, dtype=np.float32), np.float32(0))) / 1000
    return shift * u / (1 + (shift - 1) * u)


def renoise(latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """A clean latent at noise level σ on the rectified-flow path: (1 − σ) · latent + σ · noise."""
    return (1 - sigma) * latent + sigma * noise
