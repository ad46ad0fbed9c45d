"""The embedded demo model through ComfyUI's own loaders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

from ..multitalk_core.families import Family
from .conditioning import Conditioning
from .encoder import ManagedEncoder, load_encoder
from .weights import MultiTalkWeights, load_weights

WAN, AUDIO = "multitalk-demo-wan21-i2v.safetensors", "multitalk-demo-audio.safetensors"
VAE, WAV2VEC = "multitalk-demo-vae.safetensors", "multitalk-demo-wav2vec2.safetensors"
TEXT_TOKENS = 512  # of WAN's text encoder


@dataclass(frozen=True)
class Demo:
    """Everything that the loader nodes give for a large model."""

    model: comfy.model_patcher.ModelPatcher
    weights: MultiTalkWeights
    vae: comfy.sd.VAE
    audio_encoder: ManagedEncoder
    prompt: Conditioning


def load_demo(folder: Path, family: Family) -> Demo:
    """Load the four files.

    Raises:
        FileNotFoundError: a file is missing, which means that the pack was not installed whole.
    """
    for name in (WAN, AUDIO, VAE, WAV2VEC):
        if not (folder / name).exists():
            raise FileNotFoundError(f"The demo's {name} is missing from {folder.parent.name}/{folder.name}. Install the pack again, whole.")
    model = comfy.sd.load_diffusion_model(str(folder / WAN))
    prompt = [[torch.zeros(1, TEXT_TOKENS, model.model.diffusion_model.text_dim), {}]]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / VAE), safe_load=True))
    return Demo(model, load_weights(str(folder / AUDIO), AUDIO, family.name), vae, load_encoder(folder / WAV2VEC), prompt)
