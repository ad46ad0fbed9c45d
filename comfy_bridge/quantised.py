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

from ..multitalk_core.layouts import Stored, as_numbers


class Quantised(comfy.ops.manual_cast):
    """Core's operations, with a Linear that can hold a packed weight."""

    class Linear(comfy.ops.manual_cast.Linear):
        block: str | None = None  # GGUF's name, or "" for numbers with a scale; None: the weight is plain

        def put(self, weight: Stored) -> None:
            """Take a packed weight as it is; nothing is copied."""
            self.block = weight.block
            self.weight = torch.nn.Parameter(weight.data, requires_grad=False)
            if weight.scale is not None:
                self.register_buffer("weight_scale", weight.scale, persistent=False)

        def forward_comfy_cast_weights(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.block is None:
                return super().forward_comfy_cast_weights(input, *args, **kwargs)
            packed, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=self.weight.dtype, device=input.device, bias_dtype=input.dtype, offloadable=True
            )
            weight = as_numbers(packed, getattr(self, "weight_scale", None), self.block, input.dtype)
            result = F.linear(input, weight, bias)
            comfy.ops.uncast_bias_weight(self, packed, bias, stream)
            return result
