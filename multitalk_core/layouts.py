"""The spellings in which MultiTalk's and InfiniteTalk's weights are published, brought to one: the official keys.

Which file has which spelling, and what proves it: docs/weights.md.

A layer's weight is one of
    plain numbers        X.weight                                     fp32, fp16, bf16, fp8
    numbers and a scale  X.weight with X.scale_weight or X.weight_scale; quanto: X.weight._data with X.weight._scale
    blocks               X.weight of a GGUF file
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .gguf_files import BLOCKS, unpack
from .model import WeightsError

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
OURS = re.compile(r"audio_proj\.|blocks\.\d+\.(audio_cross_attn|norm_x)\.")
SCALES = (".scale_weight", ".weight_scale", ".weight._scale")
# For arithmetic in fp8 with rounded inputs, which the published model does not do; and core's note of a layer's format
UNUSED = (".scale_input", ".input_scale", ".output_scale", ".comfy_quant")
SCALED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)  # what a scale is for


@dataclass(frozen=True)
class Stored:
    """A weight as its file has it."""

    data: Tensor
    shape: tuple[int, ...]
    scale: Tensor | None = None  # [] or [O, 1]: numbers are data · scale
    block: str = ""  # of GGUF

    @property
    def is_plain(self) -> bool:
        return self.scale is None and not self.block

    def numbers(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight itself, in the file's own type if it is plain and none is asked for."""
        if self.is_plain:
            return self.data if dtype is None else self.data.to(dtype)
        return as_numbers(self.data, self.scale, self.block, dtype or torch.float32)


def as_numbers(data: Tensor, scale: Tensor | None, block: str, dtype: torch.dtype) -> Tensor:
    """Stored data [O, ..] as a weight [O, I]; computed in float32, rounded once."""
    if block:
        return unpack(data, block).to(dtype)
    if scale is None:
        return data.to(dtype)
    return (data.float() * scale.float().to(data.device)).to(dtype)


def plain_key(key: str) -> str:
    """A tensor's name without what other programs put before it."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key.removeprefix("multitalk_") if key.startswith("multitalk_audio_proj.") else key


def collect(tensors: Mapping[str, Tensor], blocks: Mapping[str, tuple[str, tuple[int, ...]]] | None = None) -> dict[str, Stored]:
    """All of a file's weights that are MultiTalk's, by their official keys; a merged file's WAN part is left out.

    Args:
        blocks: of a GGUF file: {tensor: (type, shape)}.
    Raises:
        WeightsError: numbers without their scale, a scale of an odd shape, or parts that MultiTalk does not have.
    """
    ours = {plain_key(key): key for key in tensors if OURS.match(plain_key(key))}
    found: dict[str, Stored] = {}
    for key, source in ours.items():
        if key.endswith((*SCALES, *UNUSED)):
            continue
        official = key.removesuffix("._data")
        layer = official.removesuffix(".weight")
        scale = next((tensors[ours[layer + end]] for end in SCALES if layer + end in ours), None)
        kind, shape = (blocks or {}).get(source, ("", tuple(tensors[source].shape)))
        block = kind if kind in BLOCKS else ""
        found[official] = _checked(official, Stored(tensors[source], tuple(shape), scale if official.endswith(".weight") else None, block))
    return found


def _checked(key: str, stored: Stored) -> Stored:
    """Raises WeightsError for what would load as noise."""
    dtype, scale = stored.data.dtype, stored.scale
    if scale is not None and scale.numel() == 1:
        scale = scale.reshape(())
    elif scale is not None and scale.numel() == stored.shape[0]:
        scale = scale.reshape(-1, 1)
    elif scale is not None:
        raise WeightsError(
            f"'{key}' of shape {list(stored.shape)} has a scale of shape {list(scale.shape)}; one number, or one a row, was expected."
        )
    if not stored.block and not dtype.is_floating_point and (dtype not in SCALED or scale is None):
        raise WeightsError(
            f"'{key}' is stored as {str(dtype).removeprefix('torch.')}, which nothing in the file says how to read. "
            "Take the fp16 file, for example wan2.1_infiniteTalk_single_fp16.safetensors."
        )
    return Stored(stored.data, stored.shape, scale, stored.block)
