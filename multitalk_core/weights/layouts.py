"""The spellings in which MultiTalk's and InfiniteTalk's weights are published, brought to one: the official keys.

Which file has which spelling, and what proves it: docs/guide/weights.md.

A layer's weight is one of
    plain numbers        X.weight                                     fp32, fp16, bf16, fp8
    numbers and a scale  X.weight with X.scale_weight or X.weight_scale; quanto: X.weight._data with X.weight._scale
    blocks               X.weight of a GGUF file
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WeightsError
from .gguf import BLOCKS, unpack

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
OURS = re.compile(r"audio_proj\.|blocks\.\d+\.(audio_cross_attn|norm_x)\.")
SCALES = (".scale_weight", ".weight_scale", ".weight._scale")
UNUSED = (".scale_input", ".input_scale", ".output_scale")  # for arithmetic on rounded inputs, which the published model does not do
NOTE = ".comfy_quant"  # JSON on how a layer is stored (ComfyUI comfy/ops.py, _load_quantized_module)
NOTED = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # its formats that are numbers with a scale
SCALED_FILE = "scaled_fp8"  # a tensor that says: all fp8 matrices have scales (ComfyUI comfy/utils.py, convert_old_quants)
SCALED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)  # what a scale is for
INSTEAD = "Take the fp16 file, for example wan2.1_infiniteTalk_single_fp16.safetensors."


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
        if self.block:
            return unpack(self.data, self.block).reshape(self.shape).to(dtype or torch.float32)
        if self.scale is not None:
            return scaled(self.data, self.scale, dtype or torch.float32)
        return self.data if dtype is None else self.data.to(dtype)


def scaled(data: Tensor, scale: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Stored data [O, ..] times its scale, rounded once."""
    if isinstance(scale, Tensor) and scale.ndim:
        return (data.float() * scale.float()).to(dtype)
    return data.to(dtype) * float(scale)  # torch multiplies by a number in float32


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
        if key.endswith(NOTE):
            _check_note(key, tensors[source])
            continue
        official = key.removesuffix("._data")
        if not official.endswith((".weight", ".bias")):
            raise WeightsError(f"'{key}' is neither a weight of MultiTalk's nor a scale that is known here. {INSTEAD}")
        layer = official.removesuffix(".weight")
        scale = next((tensors[ours[layer + end]] for end in SCALES if layer + end in ours), None)
        kind, shape = (blocks or {}).get(source, ("", tuple(tensors[source].shape)))
        found[official] = _checked(official, Stored(tensors[source], tuple(shape), scale, kind if kind in BLOCKS else ""))
    all_scaled = any(plain_key(key) == SCALED_FILE for key in tensors) or any(stored.scale is not None for stored in found.values())
    for key, stored in found.items():
        if all_scaled and stored.scale is None and stored.data.dtype in SCALED and len(stored.shape) > 1:
            raise WeightsError(f"'{key}' has no scale, where others of the file have: it is incomplete. Get it again.")
    return found


def _check_note(key: str, note: Tensor) -> None:
    try:
        data = json.loads(bytes(note.flatten().tolist()))
        known = data["format"] in NOTED and not {**data, **data.get("params", {})}.get("convrot")
    except (ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        raise WeightsError(f"'{key}' says that the layer is stored in a way that is not known here. {INSTEAD}")


def _checked(key: str, stored: Stored) -> Stored:
    """Raises WeightsError for what would load as noise."""
    dtype, scale, shape = stored.data.dtype, stored.scale, stored.shape
    if scale is not None and scale.numel() == 1:
        scale = scale.reshape(())
    elif scale is not None and len(shape) == 2 and tuple(scale.shape) in ((shape[0],), (shape[0], 1)):
        scale = scale.reshape(-1, 1)
    elif scale is not None:
        raise WeightsError(
            f"'{key}' of shape {list(shape)} has a scale of shape {list(scale.shape)}; one number, or one a row, was expected. {INSTEAD}"
        )
    if not stored.block and not dtype.is_floating_point and (dtype not in SCALED or scale is None):
        kind = str(dtype).removeprefix("torch.")
        raise WeightsError(f"'{key}' is stored as {kind}, which nothing in the file says how to read. {INSTEAD}")
    return Stored(stored.data, shape, scale, stored.block)
