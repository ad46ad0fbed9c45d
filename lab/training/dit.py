"""The demo's WAN and its audio layers: ComfyUI's model and the pack's adapter at a small size, with weights to begin training from.

Two things would take a small model long to find, and are put there as a start: that a token looks at its own place in the known first
frame (constant parts of q and k, which RoPE turns into a preference for equal rows and columns), and that a face listens to the voice
with its label (the same in the 1-D RoPE of the audio attention). With random weights the speakers' map is noise, and nothing could be
bound to it.

A token's 256 numbers begin as: 0–63 the noisy latent's 2 × 2 patch, 64–127 the known latent's, 128–143 the mask's, 144–207 what the first
block copies from the first frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.ldm.wan.model as wan
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import torch
from torch import Tensor, nn

from ...comfy_bridge.patches import AUDIO, patch_model
from ...comfy_bridge.weights import MultiTalkWeights, build_weights
from ...multitalk_core.families import MULTITALK
from ...multitalk_core.model import AdapterShape, MultiTalkAdapter
from .train_encoder import DIM as AUDIO_DIM
from .train_encoder import LAYERS as AUDIO_LAYERS

DIM, HEADS, BLOCKS = 256, 2, 4
HEAD_DIM = DIM // HEADS
LATENT, MASK = 16, 4
TEXT_DIM, STEPS = 4096, 1000  # of WAN: width of its prompts, timesteps
SHAPE = AdapterShape(dim=DIM, blocks=BLOCKS, audio_features=AUDIO_LAYERS * AUDIO_DIM, intermediate=64, token_dim=64, context_tokens=32)
PATCH = 4 * LATENT  # numbers of a latent's 2 × 2 patch
NOISY, KNOWN, MASKED, COPIED = 0, PATCH, 2 * PATCH, 2 * PATCH + 4 * MASK  # where a token has what
ROWS, COLUMNS, SLOWEST = 44, 86, 42  # first rotary numbers of a head for rows and columns, and the slowest one of time
# The rotary frequencies whose angle differs most between the labels 2 and 22, of the first two speakers.
BINDING = (12, 13, 14)
LISTENS_TO_NOTHING = (
    "img_emb",
    "text_embedding",
    "cross_attn.",
    "norm3",
)  # what they add is zero, and stays it


@dataclass(frozen=True)
class Talker:
    """The diffusion model and its audio layers, as the pack loads them."""

    model: comfy.model_patcher.ModelPatcher
    weights: MultiTalkWeights

    @property
    def wan(self) -> nn.Module:
        return self.model.model.diffusion_model

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that training changes."""
        parts = {"wan": self.wan, "audio": self.weights.adapter}
        named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
        return {name: p for name, p in named.items() if name.startswith("audio.") or not any(quiet in name for quiet in LISTENS_TO_NOTHING)}

    def tokens(self, windows: Tensor, heard: bool) -> Tensor:
        """Context tokens [B, T, S · M, C] of windows [B, S, F, 5, L, D], or of null audio."""
        project = self.weights.adapter.audio_proj
        return torch.cat([project(clip if heard else torch.zeros_like(clip[-1:])) for clip in windows])

    def velocity(self, noisy: Tensor, known: Tensor, mask: Tensor, sigma: Tensor, tokens: Tensor, masks: Tensor | None) -> Tensor:
        """One forward through the pack's patches: latents [B, 16, T, h, w], mask [B, 4, T, h, w] (1 is known), sigma [B]."""
        patched = patch_model(self.model, self.weights, masks)
        options = {**patched.model_options["transformer_options"], "cond_or_uncond": [0], "wrappers": patched.wrappers}
        text = torch.zeros(noisy.shape[0], 1, TEXT_DIM, device=noisy.device)
        inputs = torch.cat([noisy, mask, known], dim=1)
        return self.wan(inputs, sigma * STEPS, text, transformer_options=options, **{AUDIO: tokens})


def build(states: Mapping[str, Mapping[str, Tensor]] | None = None) -> Talker:
    """Model and audio layers with the weights given as "wan" and "audio", or with those that training begins from."""
    comfy.model_management.in_training = True  # attention and RoPE then have gradients
    states = states or _beginning()
    # ComfyUI takes what it loads out of the dict
    model = comfy.sd.load_diffusion_model_state_dict(
        dict(states["wan"]), model_options={"dtype": torch.float32}, metadata={"config": configuration()}
    )
    return Talker(model, build_weights(states["audio"], "demo", MULTITALK))


def configuration() -> str:
    """What ComfyUI's loader cannot see from the shapes, as it stands in the file's metadata."""
    return json.dumps({"transformer": {"num_heads": HEADS, "text_dim": TEXT_DIM}})


@torch.no_grad()
def _beginning() -> dict[str, dict[str, Tensor]]:
    operations = comfy.ops.disable_weight_init
    model = wan.WanModel(
        model_type="i2v",
        in_dim=2 * LATENT + MASK,
        dim=DIM,
        ffn_dim=2 * DIM,
        freq_dim=256,
        text_dim=TEXT_DIM,
        out_dim=LATENT,
        num_heads=HEADS,
        num_layers=BLOCKS,
        dtype=torch.float32,
        operations=operations,
    )
    adapter = MultiTalkAdapter(SHAPE, operations)
    for module in [*model.modules(), *adapter.modules()]:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    _silence(model)
    _begin_embedding(model)
    for number, (block, audio) in enumerate(zip(model.blocks, adapter.blocks, strict=True)):
        block.modulation.normal_(0, 0.02)
        block.modulation[:, 2::3] = 0.5  # both gates
        _begin_attention(block.self_attn, first=number == 0)
        block.ffn[2].weight.mul_(0.2)
        _begin_listening(audio.audio_cross_attn)
    _begin_head(model)
    return {"wan": model.state_dict(), "audio": adapter.state_dict()}


def _silence(model: nn.Module) -> None:
    """Prompts and CLIP vision add zero: there is no small text encoder to train them with."""
    for name, parameter in model.named_parameters():
        if any(quiet in name for quiet in LISTENS_TO_NOTHING) and "norm" not in name and "proj.0" not in name and "proj.4" not in name:
            parameter.zero_()


def _begin_embedding(model: nn.Module) -> None:
    """Every number of a patch gets a place of its own."""
    weight = model.patch_embedding.weight  # [C, 36, 1, 2, 2]
    weight.zero_()
    model.patch_embedding.bias.zero_()
    for first, channels, start, scale in ((0, LATENT, NOISY, 1.0), (LATENT, MASK, MASKED, 0.5), (LATENT + MASK, LATENT, KNOWN, 1.0)):
        for channel in range(channels):
            for corner in range(4):
                weight[start + 4 * channel + corner, first + channel, 0, corner // 2, corner % 2] = scale
    model.time_embedding[2].weight.mul_(0.3)
    model.time_projection[1].weight.mul_(0.3)


def _begin_attention(attention: nn.Module, first: bool) -> None:
    """A head looks at its own row and column; in the first block both do, at frames that the mask calls known, and copy them."""
    for linear, norm in ((attention.q, attention.norm_q), (attention.k, attention.norm_k)):
        linear.weight.mul_(0.25)
        for head in range(HEADS if first else 1):
            for number in [axis + 2 * fast for axis in (ROWS, COLUMNS) for fast in (0, 1)]:
                linear.bias[head * HEAD_DIM + number] = 4.0
                norm.weight[head * HEAD_DIM + number : head * HEAD_DIM + number + 2] = 1.5
            if first:
                norm.weight[head * HEAD_DIM + SLOWEST] = 1.5
    if not first:
        attention.o.weight.mul_(0.1)
        return
    for head in range(HEADS):
        number = head * HEAD_DIM + SLOWEST
        attention.q.bias[number] = 3.0
        attention.k.weight[number] = 0
        attention.k.weight[number, MASKED : MASKED + 4 * MASK] = 0.3
    rows = torch.arange(PATCH)
    attention.v.weight[:PATCH] = 0
    attention.v.weight[rows, KNOWN + rows] = 1.0
    attention.o.weight.zero_()
    attention.o.weight[COPIED + rows, rows] = 1.6


def _begin_listening(attention: nn.Module) -> None:
    """Labels that are alike attract."""
    attention.q_linear.weight.mul_(0.5)
    for head in range(HEADS):
        for frequency in BINDING:
            attention.q_linear.bias[head * HEAD_DIM + 2 * frequency] = 2.5
            attention.kv_linear.bias[head * HEAD_DIM + 2 * frequency] = 2.5
    attention.proj.weight.mul_(0.1)


def _begin_head(model: nn.Module) -> None:
    """The velocity is what is noisy minus what was copied."""
    model.head.modulation.zero_()
    weight = model.head.head.weight  # [4 corners · 16 channels, C]
    weight.zero_()
    for channel in range(LATENT):
        for corner in range(4):
            weight[corner * LATENT + channel, NOISY + 4 * channel + corner] = 0.85
            weight[corner * LATENT + channel, COPIED + 4 * channel + corner] = -0.85
