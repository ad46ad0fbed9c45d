"""MultiTalk weights under ComfyUI's model manager."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..multitalk_core.errors import WeightsError
from ..multitalk_core.families import FAMILIES, Family
from ..multitalk_core.model import AdapterShape, MultiTalkAdapter
from ..multitalk_core.upkeep.published import Manifest
from ..multitalk_core.weights.files import read_header
from ..multitalk_core.weights.gguf import map_gguf
from ..multitalk_core.weights.header import Header
from ..multitalk_core.weights.identify import AUDIO_FILE, KINDS_IN_WORDS, identify
from ..multitalk_core.weights.layouts import OURS, Stored, collect, plain_key
from .quantised import Quantised

logger = logging.getLogger(__name__)

METADATA_FAMILY = "multitalk_family"  # in files of our own making; "multitalk infinitetalk" where one file serves both
# What a file's name says, by its letters alone ("Wan2_1-InfiniTetalk-Single_fp16", "wan2.1_infiniteTalk_multi_fp16").
NAMES = (("infinitetalk", "infinitetalk"), ("infinitalk", "infinitetalk"), ("multitalk", "multitalk"))


class LoadedAdapter(MultiTalkAdapter):
    """The adapter, with what its file says; it travels through graphs inside a ModelPatcher, as MODEL_PATCH."""

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
        voices, null = self.adapter.audio_proj.with_null(windows.to(self.patcher.load_device))
        return voices.cpu(), null.cpu()


def load_weights(path: str, name: str, family: str = "auto", dtype: torch.dtype | None = None) -> MultiTalkWeights:
    """Load a safetensors or GGUF file in any of the published layouts; see multitalk_core.weights.layouts.

    Args:
        path: from folder_paths, never from the user as text.
        name: the file's name as the user knows it.
        family: "multitalk", "infinitetalk", or "auto": by metadata, then by name, then by hash.
        dtype: what to keep the weights in; None keeps the file's, quantised ones packed.
    Raises:
        WeightsError: not MultiTalk weights, damaged, or of a family that nothing tells.
    """
    header = read_header(Path(path))
    found = identify(header, name)
    if found.kind != "multitalk" or found.problem:
        value = found.problem if found.kind in ("multitalk", "other") else None  # what is wrong with another model is no matter here
        value = value or f"is {KINDS_IN_WORDS.get(found.kind, 'another model')}, not MultiTalk's audio weights. Get {AUDIO_FILE}."
        raise WeightsError(f"'{name}' {value}")
    chosen = choose_family(family, name, header.metadata, Path(path))  # asked for before anything is read
    if (header.container == "gguf") != (Path(path).suffix.lower() == ".gguf"):
        raise WeightsError(f"'{name}' is a {header.container} file by its contents. Rename it to .{header.container}.")
    try:
        if header.container == "gguf":
            mapped = map_gguf(Path(path), header, lambda key: OURS.match(plain_key(key)) is not None)
            tensors = {key: tensor.clone() for key, tensor in mapped.items()} if comfy.utils.DISABLE_MMAP else mapped
            return build_weights(tensors, name, chosen, dtype, header)
        tensors = comfy.utils.load_torch_file(path, safe_load=True)
    except (ValueError, KeyError, OSError, SafetensorError) as error:  # core raises several, by how the file is damaged
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"'{name}' cannot be loaded ({error}). Get it again, or take another file.") from error
    return build_weights(tensors, name, chosen, dtype)


def build_weights(
    tensors: Mapping[str, Tensor], name: str, family: Family, dtype: torch.dtype | None = None, header: Header | None = None
) -> MultiTalkWeights:
    """Weights from a state dict; every tensor and shape is checked here, because core would fill what is missing with zeros.

    Args:
        header: of a GGUF file, whose tensors are bytes.
    """
    blocks = {key: (entry.dtype, entry.shape) for key, entry in header.tensors.items()} if header else None
    stored = collect(tensors, blocks)
    shape = AdapterShape.of(stored)
    stored = MultiTalkAdapter(shape, device="meta").check_state(stored)  # core's own layers may have no weights to compare with yet
    if unused := len(tensors) - len(stored):
        logger.info("%s: %d tensors beside MultiTalk's weights (of WAN, or scales).", name, unused)
    adapter = LoadedAdapter(shape, Quantised, device="meta")
    adapter.family, adapter.name = family, name
    packed = {key: weight for key, weight in stored.items() if dtype is None and not weight.is_plain}
    for key, weight in packed.items():  # before the rest: core makes zeros of what is missing then
        _put(adapter, key, weight)
    plain = {key: weight.numbers(dtype) for key, weight in stored.items() if key not in packed}
    lacking = set(adapter.load_state_dict(plain, strict=False, assign=True).missing_keys)
    if lacking := sorted(key for key in lacking - packed.keys() if not key.endswith(".weight_scale")):
        raise WeightsError(f"'{name}': '{lacking[0]}' was not taken over by ComfyUI's layers. Please report this, with ComfyUI's version.")
    patcher = comfy.model_patcher.CoreModelPatcher(
        adapter.eval().requires_grad_(False),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return MultiTalkWeights(patcher)


def _put(adapter: MultiTalkAdapter, key: str, weight: Stored) -> None:
    """A packed weight into its layer; one that no layer unpacks (a norm's, a bias) becomes numbers."""
    place, _, part = key.rpartition(".")
    layer = adapter.get_submodule(place)
    if part == "weight" and isinstance(layer, Quantised.Linear):
        layer.put(weight)
    else:
        setattr(layer, part, torch.nn.Parameter(weight.numbers(), requires_grad=False))


def choose_family(asked: str, name: str, metadata: Mapping[str, str], path: Path | None = None, manifest: Manifest | None = None) -> Family:
    """The family of a file; MultiTalk and InfiniteTalk have the same shapes, so it is never guessed from them.

    Args:
        path: the file, which is hashed if nothing else tells and it is as long as a published one.
        manifest: the published files, if not the shipped list.
    """
    if asked in FAMILIES:
        return FAMILIES[asked]
    found = metadata.get(METADATA_FAMILY, "").split()
    if found and found[0] in FAMILIES:
        return FAMILIES[found[0]]
    plain = re.sub(r"[^a-z]", "", re.split(r"[\\/]", name.lower())[-1])  # the file's own name: folders are the user's
    named = {family for spelling, family in NAMES if spelling in plain}
    if len(named) == 1:
        return FAMILIES[named.pop()]
    if path and (published := (manifest or Manifest.load()).recognise(path)) and published.family in FAMILIES:
        return FAMILIES[published.family]
    raise WeightsError(
        f"Whether '{name}' is MultiTalk or InfiniteTalk cannot be told from the file: both have the same shapes. "
        "Choose the family in the loader."
    )
