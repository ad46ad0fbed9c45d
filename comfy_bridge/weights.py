"""MultiTalk weights under ComfyUI's model manager."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from safetensors import SafetensorError
from torch import Tensor

from ..multitalk_core.families import FAMILIES, Family
from ..multitalk_core.model import AdapterShape, MultiTalkAdapter, WeightsError, null_windows

logger = logging.getLogger(__name__)

METADATA_FAMILY = "multitalk_family"  # in files of our own making; "multitalk infinitetalk" where one file serves both
# What a file's name says, by its letters alone ("Wan2_1-InfiniTetalk-Single_fp16", "wan2.1_infiniteTalk_multi_fp16").
NAMES = (("infinitetalk", "infinitetalk"), ("infinitalk", "infinitetalk"), ("multitalk", "multitalk"))


class LoadedAdapter(MultiTalkAdapter):
    """The adapter with what its file told; it travels through graphs inside a ModelPatcher, as MODEL_PATCH."""

    family: Family
    name: str


@dataclass(frozen=True)
class MultiTalkWeights:
    """A loaded file: what the manager moves, and which rules it was trained for."""

    patcher: comfy.model_patcher.ModelPatcher

    @classmethod
    def of(cls, patch: Any) -> MultiTalkWeights:
        """The weights in a MODEL_PATCH.

        Raises:
            WeightsError: another kind of patch, or loaded by another node.
        """
        if not isinstance(getattr(patch, "model", None), LoadedAdapter):
            raise WeightsError(
                f"The MODEL_PATCH is {type(getattr(patch, 'model', patch)).__name__}, not MultiTalk weights of ours. "
                "Load the file with MultiTalk Model Loader: it keeps the file's precision and knows the family."
            )
        return cls(patch)

    @property
    def adapter(self) -> LoadedAdapter:
        return self.patcher.model

    @property
    def family(self) -> Family:
        return self.adapter.family

    @property
    def shape(self) -> AdapterShape:
        return self.adapter.shape

    @torch.inference_mode()
    def tokens(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens of the voices [1, T, S · M, C] and of null audio [1, T, M, C], in float32 on the CPU.

        Args:
            windows: [S, F, 5, L, D].
        """
        comfy.model_management.load_models_gpu([self.patcher])
        project = self.adapter.audio_proj
        windows = windows.to(self.patcher.load_device)
        return project(windows).cpu(), project(null_windows(windows)).cpu()


def load_weights(path: str, name: str, family: str = "auto", dtype: torch.dtype | None = None) -> MultiTalkWeights:
    """Load a safetensors file with the official keys.

    Args:
        path: from folder_paths, never from the user as text.
        name: the file's name as the user knows it.
        family: "multitalk", "infinitetalk", or "auto": by metadata, then by name.
        dtype: what to keep the weights in; None keeps the file's.
    Raises:
        WeightsError: not MultiTalk weights, damaged, or of a family that nothing tells.
    """
    try:
        tensors, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except (ValueError, SafetensorError) as error:  # core raises one or the other, by how the file is damaged
        raise WeightsError(f"'{name}' is damaged or not a safetensors file ({error}). Download it again.") from error
    AdapterShape.of(tensors)  # another kind of file is told before its family is asked for
    return build_weights(tensors, name, choose_family(family, name, metadata or {}), dtype)


def build_weights(tensors: Mapping[str, Tensor], name: str, family: Family, dtype: torch.dtype | None = None) -> MultiTalkWeights:
    """Weights from a state dict; every tensor and shape is checked here, because core would fill what is missing with zeros."""
    shape = AdapterShape.of(tensors)
    _check_format(tensors, name)
    adapter = LoadedAdapter(shape, comfy.ops.manual_cast, _video_attention, device="meta")
    adapter.family, adapter.name = family, name
    checked = adapter.check_state(tensors)
    if unused := len(tensors) - len(checked):
        logger.info("%s: %d tensors that are not MultiTalk's were left out.", name, unused)
    if dtype is not None:
        checked = {key: tensor.to(dtype) for key, tensor in checked.items()}
    adapter.load_state_dict(checked, assign=True)
    patcher = comfy.model_patcher.CoreModelPatcher(
        adapter.eval().requires_grad_(False),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return MultiTalkWeights(patcher)


def _check_format(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises WeightsError for weights that are not plain numbers: without their scales they would load as noise."""
    for key, tensor in tensors.items():
        if key.endswith(("scale_weight", "weight_scale", "scale_input", "input_scale", "scaled_fp8")) or not tensor.is_floating_point():
            raise WeightsError(
                f"'{name}' is quantised ('{key}'), which this loader does not read yet. Take the fp16 file, for example "
                "wan2.1_infiniteTalk_single_fp16.safetensors."
            )


def choose_family(asked: str, name: str, metadata: Mapping[str, str]) -> Family:
    """The family of a file; MultiTalk and InfiniteTalk have the same shapes, so it is never guessed from them."""
    if asked in FAMILIES:
        return FAMILIES[asked]
    told = metadata.get(METADATA_FAMILY, "").split()
    if told and told[0] in FAMILIES:
        return FAMILIES[told[0]]
    plain = re.sub(r"[^a-z]", "", re.split(r"[\\/]", name.lower())[-1])  # the file's own name: folders are the user's
    named = {family for spelling, family in NAMES if spelling in plain}
    if len(named) == 1:
        return FAMILIES[named.pop()]
    raise WeightsError(
        f"Whether '{name}' is MultiTalk or InfiniteTalk cannot be told from the file: both have the same shapes. "
        "Choose the family in the loader."
    )


def _video_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention backend that ComfyUI chose for the video, [B, H, n, d]."""
    return optimized_attention(q, k, v, heads=q.shape[1], skip_reshape=True, skip_output_reshape=True)
