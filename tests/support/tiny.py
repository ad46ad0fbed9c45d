"""Real classes at tiny size, with random weights: a WAN 2.1 I2V model through ComfyUI's loader, and MultiTalk weights for it.

Import inside a test that has the fixture `comfy`.
"""

import json

import torch

from multitalk_nodes.multitalk_core.model import AdapterShape, MultiTalkAdapter

LAYERS, AUDIO_DIM = 2, 16  # of the audio encoder
SHAPE = AdapterShape(dim=96, blocks=2, audio_features=LAYERS * AUDIO_DIM, intermediate=24, token_dim=16, context_tokens=4)
HEADS, TEXT_DIM, TEXT_TOKENS = 2, 32, 8
FRAMES, HEIGHT, WIDTH = 9, 64, 96  # video frames and pixels: 3 latent frames of 8×12, 24 tokens each


def _fill(module: torch.nn.Module, seed: int, scale: float = 0.2) -> dict[str, torch.Tensor]:
    """Random weights large enough that every part of the model matters."""
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for key, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator) * scale
        filled[key] = 1 + noise if "norm" in key and key.endswith("weight") else noise
    return filled


def wan(seed: int = 0, dim: int = SHAPE.dim, layers: int = SHAPE.blocks, model_type: str = "i2v"):
    """A MODEL as UNETLoader makes it."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.wan.model import WanModel

    in_dim = 36 if model_type == "i2v" else 16
    sizes = {"in_dim": in_dim, "dim": dim, "ffn_dim": 128, "text_dim": TEXT_DIM, "num_heads": HEADS, "num_layers": layers}
    network = WanModel(model_type=model_type, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32, **sizes)
    metadata = {"config": json.dumps({"transformer": {"num_heads": HEADS, "text_dim": TEXT_DIM}})}
    return comfy.sd.load_diffusion_model_state_dict(_fill(network, seed), model_options={"dtype": torch.float32}, metadata=metadata)


def adapter_tensors(seed: int = 1, shape: AdapterShape = SHAPE) -> dict[str, torch.Tensor]:
    return _fill(MultiTalkAdapter(shape, device="meta"), seed)


def weights(seed: int = 1, family: str = "multitalk"):
    from multitalk_nodes.comfy_bridge.weights import build_weights
    from multitalk_nodes.multitalk_core.families import FAMILIES

    return build_weights(adapter_tensors(seed), "tiny", FAMILIES[family])


def windows(speakers: int, seed: int = 2, frames: int = FRAMES) -> torch.Tensor:
    """Audio windows [S, F, 5, L, D]."""
    return torch.randn(speakers, frames, 5, LAYERS, AUDIO_DIM, generator=torch.Generator().manual_seed(seed))


def halves(speakers: int = 2) -> torch.Tensor:
    """Token masks [S + 1, N] of speakers side by side."""
    from multitalk_nodes.multitalk_core.people.speakers import Speaker, ref_target_masks, source_masks, token_masks

    return token_masks(ref_target_masks(source_masks([Speaker()] * speakers, HEIGHT, WIDTH), HEIGHT, WIDTH))


def known_latent(seed: int = 3) -> torch.Tensor:
    return torch.randn(1, 16, (FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(seed))


def prompts() -> tuple[list, list]:
    """Positive and negative text conditioning."""
    generator = torch.Generator().manual_seed(4)
    return tuple([[torch.randn(1, TEXT_TOKENS, TEXT_DIM, generator=generator), {}]] for _ in range(2))


def conditionings(loaded, speakers: int = 2):
    """Positive and negative as they leave MultiTalk Conditioning."""
    from types import SimpleNamespace

    from multitalk_nodes.comfy_bridge.conditioning import with_clip

    seen = SimpleNamespace(penultimate_hidden_states=torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(5)))
    tokens = loaded.tokens(windows(speakers))
    return tuple(with_clip(prompt, known_latent(), 1, seen, *tokens) for prompt in prompts())
