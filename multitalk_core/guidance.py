"""Guidance by text and by audio, in velocity.

Branches are the model's answers to four questions; only those that matter to the sum are asked:
    cond        prompt, voices
    drop_text   negative prompt, voices
    drop_audio  prompt, null audio
    uncond      negative prompt, null audio
Null audio is one speaker of zero windows, also when several speak.

Shapes: every velocity is [B, C, T, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Branch = Literal["cond", "drop_text", "drop_audio", "uncond"]


@dataclass(frozen=True)
class Projection:
    """Settings of adaptive projected guidance (APG, arXiv 2410.02416), in units of velocity as MultiTalk uses them."""

    momentum: float = -0.75
    norm_threshold: float = 55.0  # 0 is no limit
    eta: float = 0.0  # share of the part parallel to cond that is kept


def branches(text_scale: float, audio_scale: float) -> tuple[Branch, ...]:
    """The evaluations that the sum of `combine` really needs: three, two or one.

    Scale 1 is where guidance by text or by audio cancels out, so those evaluations are never made. The official code always
    makes two or three; the sum is the same.
    """
    if text_scale == 1:
        return ("cond",) if audio_scale == 1 else ("cond", "drop_audio")
    if audio_scale == 1:
        return ("cond", "drop_text")
    return ("cond", "drop_text", "uncond")


def combine(pred: Mapping[str, Tensor], text_scale: float, audio_scale: float) -> Tensor:
    """Two-scale classifier-free guidance.

    text_scale ≠ 1:  v = uncond + t · (cond − drop_text) + a · (drop_text − uncond)
    text_scale = 1:  v = drop_audio + a · (cond − drop_audio)

    Args:
        pred: the velocities that `branches` asks for.
    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate().
    """
    if text_scale == 1:
        if audio_scale == 1:
            return pred["cond"]
        return pred["drop_audio"] + audio_scale * (pred["cond"] - pred["drop_audio"])
    if audio_scale == 1:
        return pred["drop_text"] + text_scale * (pred["cond"] - pred["drop_text"])
    return pred["uncond"] + text_scale * (pred["cond"] - pred["drop_text"]) + audio_scale * (pred["drop_text"] - pred["uncond"])


@dataclass
class ProjectedGuidance:
    """APG over one run: every difference has a momentum of its own, which starts at zero and ends with the run."""

    settings: Projection
    _running: dict[str, Tensor] = field(default_factory=dict)

    def combine(self, pred: Mapping[str, Tensor], text_scale: float, audio_scale: float) -> Tensor:
        """Projected two-scale guidance.

        text_scale ≠ 1:  v = cond + (t − 1) · P(cond − drop_text) + (a − 1) · P(drop_text − uncond)
        text_scale = 1:  v = cond + (a − 1) · P(cond − drop_audio)

        Source: arXiv 2410.02416, algorithm 1; MeiGen-AI/MultiTalk@c1ad840 wan/utils/multitalk_utils.py,
        adaptive_projected_guidance().
        """
        cond = pred["cond"]
        guided = cond
        if text_scale != 1:
            guided = guided + (text_scale - 1) * self._project("text", cond - pred["drop_text"], cond)
        if audio_scale != 1:
            difference = cond - pred["drop_audio"] if text_scale == 1 else pred["drop_text"] - pred["uncond"]
            guided = guided + (audio_scale - 1) * self._project("audio", difference, cond)
        return guided

    def _project(self, name: str, difference: Tensor, cond: Tensor) -> Tensor:
        """Average with momentum, limit the norm, and keep what is orthogonal to `cond`; norms are per sample."""
        if name in self._running:
            difference = difference + self.settings.momentum * self._running[name]
        self._running[name] = difference
        dims = tuple(range(1, difference.ndim))
        if self.settings.norm_threshold > 0:
            norm = torch.linalg.vector_norm(difference, dim=dims, keepdim=True)
            difference = difference * (self.settings.norm_threshold / norm).clamp(max=1.0)
        along = in_float64(cond)
        along = along / torch.linalg.vector_norm(along, dim=dims, keepdim=True).clamp(min=1e-12)
        precise = in_float64(difference)
        parallel = (precise * along).sum(dim=dims, keepdim=True) * along
        return (precise - parallel + self.settings.eta * parallel).to(difference)


def in_float64(tensor: Tensor) -> Tensor:
    """For small differences of large numbers; devices that may lack float64 (MPS, XPU, DirectML) stay in float32."""
    return tensor.double() if tensor.device.type in ("cpu", "cuda") else tensor.float()
