"""The four files that ComfyUI's and the pack's loaders read, in fp16, with what they are in their metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.ldm.wan.vae as wan
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...comfy_bridge.demo import AUDIO, VAE, WAN, WAV2VEC
from ...multitalk_core.audio.wav2vec import Wav2Vec2
from ...multitalk_core.families import FAMILIES
from .dit import Talker, configuration
from .stage import commit
from .train_encoder import configuration as encoder_configuration

COMMON = {"format": "pt", "license": "Apache-2.0"}


def write_files(folder: Path, talker: Talker, vae: wan.WanVAE, encoder: Wav2Vec2, training: Mapping[str, Any]) -> None:
    """Replace the four files; `eval-demo --record` adds what it measured to their metadata.

    Args:
        training: plan, seeds, and what happened in which stage: what somebody needs who wants to train them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = COMMON | {"commit": commit(), "training": json.dumps(training)}
    families = {"multitalk_family": " ".join(FAMILIES)}  # one file that follows either model's rules
    encoder_config = encoder_configuration().to_diff_dict() | {"model_type": "wav2vec2", "do_normalize": True}
    rows: tuple[tuple[str, Mapping[str, Tensor], dict[str, str]], ...] = (
        (WAN, talker.wan.state_dict(), {"description": "WAN 2.1 image-to-video, demo size", "config": configuration()}),
        (AUDIO, talker.weights.adapter.state_dict(), {"description": "MultiTalk audio layers for the demo WAN"} | families),
        (VAE, vae.state_dict(), {"description": "WAN 2.1 VAE, demo size"}),
        (WAV2VEC, encoder.network.state_dict(), {"description": "Wav2Vec2, demo size", "config": json.dumps(encoder_config)}),
    )
    for name, tensors, metadata in rows:
        half = {key: tensor.detach().cpu().to(torch.float16).contiguous() for key, tensor in tensors.items()}
        save_file(half, str(folder / f"{name}.partial"), common | metadata)
    for name, *_ in rows:  # once all are written, so that no set is mixed
        os.replace(folder / f"{name}.partial", folder / name)
