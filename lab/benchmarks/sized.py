"""WAN 2.1 image-to-video with MultiTalk's layers at any size, of random numbers, and one evaluation of it in three ways.

bare: WAN alone. ours: with our patches. core: with those of ComfyUI's own InfiniteTalk node, on the same weights and inputs.

Shapes: S speakers, T latent frames, N tokens of one latent frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.ldm.wan import model_multitalk as core_multitalk
from torch import Tensor

from ...comfy_bridge.patches import AUDIO, patch_model
from ...comfy_bridge.quantised import Quantised
from ...comfy_bridge.weights import LoadedAdapter, MultiTalkWeights
from ...multitalk_core.families import INFINITETALK
from ...multitalk_core.model import AdapterShape

IN_CHANNELS = 36  # the latent, the mask and the known latent
TEXT_TOKENS, TEXT_DIM = 512, 4096  # of umt5-xxl
CLIP_TOKENS, CLIP_DIM = 257, 1280  # of CLIP ViT-H
LAYERS, AUDIO_DIM = 12, 768  # of chinese-wav2vec2-base
SPREAD = 0.02  # standard deviation of the weights; activations stay finite in 16 bits


@dataclass(frozen=True)
class Size:
    """Of a model and a clip."""

    name: str
    dim: int
    heads: int
    ffn: int
    blocks: int
    latent: tuple[int, int, int]  # T, h, w

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens by time, height and width."""
        frames, height, width = self.latent
        return frames, height // 2, width // 2

    @property
    def adapter(self) -> AdapterShape:
        """Of the audio weights, whose other sizes are the published ones."""
        return AdapterShape(self.dim, self.blocks, LAYERS * AUDIO_DIM, 512, 768, 32)


WAN_14B = {"dim": 5120, "heads": 40, "ffn": 13824, "blocks": 40}
SIZES = {
    "480p": Size("WAN 14B, 832×480, 81 frames", **WAN_14B, latent=(21, 60, 104)),
    "720p": Size("WAN 14B, 1280×720, 81 frames", **WAN_14B, latent=(21, 90, 160)),
    "cpu": Size("dim 1024, 8 heads, 2 blocks, 6×15×26 tokens", 1024, 8, 2764, 2, (6, 30, 52)),
    "one block": Size("dim 1024, 8 heads, 1 block, 6×15×26 tokens", 1024, 8, 2764, 1, (6, 30, 52)),
    "tiny": Size("dim 64, 2 heads, 2 blocks, 4×4×6 tokens", 64, 2, 128, 2, (4, 8, 12)),
}


class Sized:
    """The models, and one evaluation of them.

    Args:
        filled: whether weights get numbers; without, they are whatever the memory holds, or nothing (FakeTensorMode).
    """

    def __init__(self, size: Size, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, filled: bool = True) -> None:
        self.size, self.device, self.dtype = size, torch.device(device), dtype
        self.model = wan(size, self.device, dtype)
        self.adapter = LoadedAdapter(size.adapter, Quantised, device=self.device, dtype=dtype).eval().requires_grad_(False)
        self.adapter.family, self.adapter.name = INFINITETALK, "random"
        if filled:
            fill(self.model.model.diffusion_model)
            fill(self.adapter)
        self.weights = MultiTalkWeights(comfy.model_patcher.ModelPatcher(self.adapter, load_device=self.device, offload_device=self.device))
        frames, height, width = size.latent
        self.latent = self.numbers(1, IN_CHANNELS, frames, height, width)
        self.text = self.numbers(1, TEXT_TOKENS, TEXT_DIM)
        self.seen = self.numbers(1, CLIP_TOKENS, CLIP_DIM)
        self.extra: dict[str, Any] = {}  # transformer_options of every evaluation
        self._tokens: dict[int, Tensor] = {}
        self.time = torch.full((1,), 500.0, device=self.device, dtype=dtype)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def masks(self, speakers: int) -> Tensor:
        """[S + 1, N]: everybody has a column of the picture, with background between them."""
        _, height, width = self.size.grid
        masks = torch.zeros(speakers + 1, height, width, device=self.device)
        for number in range(speakers):
            masks[number, :, width * number // speakers : width * (number + 1) // speakers - 1] = 1
        masks[-1] = 1 - masks[:-1].amax(dim=0)
        return masks.flatten(1)

    def tokens(self, speakers: int) -> Tensor:
        """Of the voices: [1, T, S · 32, 768]."""
        if speakers not in self._tokens:
            shape = (1, self.size.latent[0], speakers * self.size.adapter.context_tokens, self.size.adapter.token_dim)
            self._tokens[speakers] = self.numbers(*shape)
        return self._tokens[speakers]

    def bare(self) -> Callable[[], Tensor]:
        return partial(self._evaluate, {})

    def ours(self, speakers: int) -> Callable[[], Tensor]:
        patched = patch_model(self.model, self.weights, self.masks(speakers) if speakers > 1 else None)
        options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
        return partial(self._evaluate, options, **{AUDIO: self.tokens(speakers)})

    def core(self, speakers: int) -> Callable[[], Tensor]:
        """ComfyUI's own patches know one speaker or two, and have no background."""
        patches = {"attn2_patch": [core_multitalk.MultiTalkCrossAttnPatch(SimpleNamespace(model=self._core_layers()))]}
        if speakers > 1:
            patches["attn1_patch"] = [core_multitalk.MultiTalkGetAttnMapPatch(self.masks(speakers)[:-1])]
        return partial(self._evaluate, {"patches": patches, "audio_embeds": self.tokens(speakers)})

    def _core_layers(self) -> Any:
        size, made = self.size, {"device": self.device, "dtype": self.dtype, "operations": Quantised}
        blocks = []
        for block in self.adapter.blocks:
            listening = core_multitalk.SingleStreamMultiAttention(size.dim, size.adapter.token_dim, size.heads, True, **made)
            listening.load_state_dict(block.audio_cross_attn.state_dict(), assign=True)
            blocks.append(SimpleNamespace(norm_x=block.norm_x, audio_cross_attn=listening))
        return SimpleNamespace(blocks=blocks)

    def _evaluate(self, options: dict[str, Any], **heard: Any) -> Tensor:
        """One branch through the network; the options are a copy of this call's own, as in ComfyUI."""
        options = {**options, **self.extra, "cond_or_uncond": [0]}
        with torch.no_grad():
            return self.model.model.diffusion_model(
                self.latent, self.time, self.text, clip_fea=self.seen, transformer_options=options, **heard
            )


def wan(size: Size, device: torch.device, dtype: torch.dtype) -> comfy.model_patcher.ModelPatcher:
    """A MODEL whose weights are not set yet, made where it stays."""
    config = comfy.supported_models.WAN21_I2V(
        {
            "image_model": "wan2.1",
            "model_type": "i2v",
            "in_dim": IN_CHANNELS,
            "out_dim": 16,
            "dim": size.dim,
            "num_heads": size.heads,
            "ffn_dim": size.ffn,
            "num_layers": size.blocks,
            "text_dim": TEXT_DIM,
        }
    )
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=device)
    model.diffusion_model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def fill(module: torch.nn.Module) -> None:
    """Random weights; what multiplies a norm is about 1."""
    for name, tensor in module.named_parameters():
        tensor.data.normal_(0, SPREAD)
        if "norm" in name and name.endswith("weight"):
            tensor.data.add_(1)
