"""Writes tiny random weights of every kind into a ComfyUI models folder. Run as a program: importing ComfyUI stays out of the tests."""

import json
import shutil
import sys
from pathlib import Path

from ...tools.launch import ROOT, start_comfy

start_comfy()

import comfy.ops
import torch
from comfy.ldm.wan.model import WanModel
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from multitalk_nodes.multitalk_core.model import AdapterShape, MultiTalkAdapter
from multitalk_nodes.tests.support import layouts
from multitalk_nodes.tests.support.tiny import _fill

LAYERS, DIM = 4, 32  # of the encoder
ENCODER = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": [32] * 7}
ENCODER |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "group", "do_stable_layer_norm": False}
ENCODER |= {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": False, "do_normalize": False}


def save(folder: Path, name: str, tensors: dict, **metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata or None)
    return folder / name


def wan(model_type: str) -> dict:
    sizes = {"in_dim": 36 if model_type == "i2v" else 16, "dim": 256, "ffn_dim": 256, "num_heads": 2, "num_layers": 2}
    return _fill(
        WanModel(model_type=model_type, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32, **sizes), 0, 0.05
    )


def adapter(dim: int, features: int = LAYERS * DIM) -> dict:
    return _fill(MultiTalkAdapter(AdapterShape(dim, 2, features, 32, 32, 8), device="meta"), 1, 0.05)


def main() -> int:
    models = Path(sys.argv[1])
    save(models / "diffusion_models", "tiny_wan.safetensors", wan("i2v"))
    save(models / "diffusion_models", "tiny_wan_t2v.safetensors", wan("t2v"))
    patches = models / "model_patches"
    whole = save(patches, "tiny_multitalk.safetensors", adapter(256))
    for name in ("tiny_infinitetalk.safetensors", "unnamed_14B.safetensors"):
        shutil.copyfile(whole, patches / name)
    layouts.write(patches / "tiny_infinitetalk_Q8_0.gguf", "Q8_0", adapter(256))
    layouts.write(patches / "tiny_multitalk_fp8_scaled.safetensors", "Kijai fp8_e4m3fn scaled", adapter(256))
    (patches / "page_multitalk.safetensors").write_text("<!DOCTYPE html><html>Log in to download</html>")
    save(patches, "tiny_multitalk_dim128.safetensors", adapter(128))
    (patches / "truncated_multitalk.safetensors").write_bytes(whole.read_bytes()[:-1000])
    torch.save({"audio_proj.proj1.weight": torch.zeros(1)}, patches / "pickle_multitalk.safetensors")
    torch.save({"audio_proj.proj1.weight": torch.zeros(1)}, patches / "multitalk.pt")
    encoders = models / "audio_encoders"
    settings = {key: value for key, value in ENCODER.items() if key != "do_normalize"}
    save(encoders, "tiny_wav2vec2.safetensors", Wav2Vec2Model(Wav2Vec2Config(**settings)).state_dict(), config=json.dumps(ENCODER))
    # the published size, because core's loader knows no other
    base = Wav2Vec2Model(Wav2Vec2Config(conv_bias=False, do_stable_layer_norm=False))
    save(encoders, "random_wav2vec2_768.safetensors", base.half().state_dict())
    shutil.copyfile(whole, encoders / "tiny_multitalk.safetensors")
    (encoders / "truncated_wav2vec2.safetensors").write_bytes((encoders / "tiny_wav2vec2.safetensors").read_bytes()[:-1000])
    save(patches, "tiny_multitalk_9216.safetensors", adapter(256, 9216))
    (models / "vae").mkdir(parents=True, exist_ok=True)
    save(models / "vae", "tiny_image_vae.safetensors", TAESD(latent_channels=4).state_dict())
    shutil.copyfile(ROOT / "demo" / "weights" / "multitalk-demo-vae.safetensors", models / "vae" / "tiny_vae.safetensors")
    return 0
