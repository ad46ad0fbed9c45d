"""The four files that ComfyUI's and the pack's loaders read, in fp16, with what they are in their metadata."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.ldm.wan.vae as wan
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...comfy_bridge.demo import AUDIO, VAE, WAN, WAV2VEC
from ...multitalk_core.families import FAMILIES
from ...multitalk_core.wav2vec import Wav2Vec2
from .dit import Talker, configuration
from .train_encoder import configuration as encoder_configuration

COMMON = {"format": "pt", "license": "Apache-2.0"}


def write_files(folder: Path, talker: Talker, vae: wan.WanVAE, encoder: Wav2Vec2, plan: Any) -> None:
    """Replace the four files; `eval-demo --record` adds what it measured to their metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    common = COMMON | {"commit": _commit(), "training": json.dumps(asdict(plan) | {"seeds": "1 to 4, 10, 11"})}
    encoder_config = encoder_configuration().to_diff_dict() | {"model_type": "wav2vec2", "do_normalize": True}
    rows: tuple[tuple[str, Mapping[str, Tensor], dict[str, str]], ...] = (
        (WAN, talker.wan.state_dict(), {"description": "WAN 2.1 image-to-video, demo size", "config": configuration()}),
        (AUDIO, talker.weights.adapter.state_dict(), {"description": "MultiTalk audio layers for the demo WAN"} | _families()),
        (VAE, vae.state_dict(), {"description": "WAN 2.1 VAE, demo size"}),
        (WAV2VEC, encoder.network.state_dict(), {"description": "Wav2Vec2, demo size", "config": json.dumps(encoder_config)}),
    )
    for name, tensors, metadata in rows:
        half = {key: tensor.detach().cpu().to(torch.float16).contiguous() for key, tensor in tensors.items()}
        save_file(half, str(folder / name), common | metadata)


def _families() -> dict[str, str]:
    """One file that follows either model's rules."""
    return {"multitalk_family": " ".join(FAMILIES)}


def _commit() -> str:
    """What the weights were trained by, with a plus where files were changed since."""
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=root, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"
