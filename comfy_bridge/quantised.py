"""Layers that hold their weights as the file does - scaled fp8 or int8, GGUF blocks - and unpack one at a time as they compute.

ComfyUI has layers for scaled fp8 of its own, and city96's pack has some for GGUF; neither holds the other's, or knows quanto's int8.
These are a few lines on core's Linear, so that offloading, casting and streams stay core's.
"""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor

from ..multitalk_core.weights.gguf import unpack
from ..multitalk_core.weights.layouts import Stored, scaled


class Quantised(comfy.ops.manual_cast):
    """Core's operations, with a Linear that can hold a packed weight."""

    class Linear(comfy.ops.manual_cast.Linear):
        block: str | None = None  # GGUF's name, or "" for numbers with a scale; None: the weight is plain
        factor: float | None = None  # the scale, if it is one number

        def put(self, weight: Stored) -> None:
            """Take a packed weight as it is; nothing is copied."""
            self.block = weight.block
            self.weight = torch.nn.Parameter(weight.data, requires_grad=False)
            if weight.scale is not None:
                self.factor = None if weight.scale.ndim else float(weight.scale)
                self.register_buffer("weight_scale", weight.scale)

        def forward_comfy_cast_weights(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.block is None:
                return super().forward_comfy_cast_weights(input, *args, **kwargs)
            packed, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=self.weight.dtype, device=input.device, bias_dtype=input.dtype, offloadable=True
            )
            result = F.linear(input, self._numbers(packed, input.dtype), bias)
            comfy.ops.uncast_bias_weight(self, packed, bias, stream)
            return result

        def _numbers(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
            if self.block:
                return unpack(packed, self.block).to(dtype)
            if self.factor is not None:
                return scaled(packed, self.factor, dtype)
            if self.weight_scale.device != packed.device:  # of a layer that the manager keeps away: moved once, 40 kB at most
                self.weight_scale = self.weight_scale.to(packed.device)
            return scaled(packed, self.weight_scale, dtype)
