"""Our patches on a WAN model in every format that ComfyUI loads: they work in its precision, and the voices still matter."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from multitalk_nodes.tests.support import layouts

SIZES = {"in_dim": 36, "dim": 256, "ffn_dim": 256, "num_heads": 2, "num_layers": 2}
TEXT = 4096  # WAN's; files without ComfyUI's metadata are taken to have it
E4M3 = torch.float8_e4m3fn


def is_linear(key, tensor):
    return key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2


def cast(dtype):
    return lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()}


def fp8(tensors):
    """Kijai's: the blocks' matrices in fp8, the rest in fp16."""
    return {key: tensor.to(E4M3) if is_linear(key, tensor) else tensor.half() for key, tensor in tensors.items()}


def scaled(tensors):
    """Comfy-Org's fp8_scaled (comfy/utils.py, convert_old_quants)."""
    out = {"scaled_fp8": torch.empty(2).to(E4M3)}
    for key, tensor in tensors.items():
        if is_linear(key, tensor):
            scale = tensor.abs().max() / layouts.E4M3_MAX
            out |= {key: (tensor / scale).to(E4M3), f"{key.removesuffix('weight')}scale_weight": scale}
        else:
            out[key] = tensor.half()
    return out


# how the file is written, UNETLoader's model options, and the error that a step may have
FORMATS = {
    "fp32": (cast(torch.float32), {}, 1e-6),
    "fp16": (cast(torch.float16), {}, 2e-3),
    "bf16": (cast(torch.bfloat16), {}, 1.5e-2),
    "fp8": (fp8, {}, 0.1),
    "fp8 by UNETLoader's weight_dtype": (cast(torch.float16), {"dtype": E4M3}, 0.1),
    "fp8 scaled": (scaled, {}, 0.05),
}
GGUF = {"Q8_0": 0.02, "Q4_K": 0.15, "Q5_K": 0.1, "Q6_K": 0.05}


@pytest.fixture(autouse=True, scope="module")
def as_in_a_node():
    """ComfyUI runs loaders and samplers alike in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tensors(comfy):
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    from multitalk_nodes.tests.support.tiny import _fill

    return _fill(WanModel(model_type="i2v", operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32, **SIZES), 0, 0.05)


@pytest.fixture(scope="module")
def weights(comfy):
    from multitalk_nodes.comfy_bridge.weights import build_weights
    from multitalk_nodes.multitalk_core.families import MULTITALK

    return build_weights(layouts.weights(scale=0.1), "tiny", MULTITALK)


def step(model, weights, audio=True, speakers=1):
    """What one step adds to the noise. With one speaker, because two have labels, which jump where two classes are as likely."""
    from types import SimpleNamespace

    import comfy.samplers

    from multitalk_nodes.comfy_bridge.conditioning import with_clip
    from multitalk_nodes.comfy_bridge.guider import MultiTalkGuider
    from multitalk_nodes.comfy_bridge.patches import patch_model
    from multitalk_nodes.tests.support import tiny

    seed = torch.Generator().manual_seed(9)
    windows = torch.randn(speakers, tiny.FRAMES, 5, 2, 128, generator=seed) * audio
    prompt = [[torch.randn(1, 8, TEXT, generator=seed), {}]]
    seen = SimpleNamespace(penultimate_hidden_states=torch.randn(1, 257, 1280, generator=seed))
    conditioning = with_clip(prompt, tiny.known_latent(), 1, seen, *weights.tokens(windows))
    masks = tiny.halves(speakers) if speakers > 1 else None
    guider = MultiTalkGuider(patch_model(model, weights, masks), conditioning, conditioning, 1.0, 1.0)
    noise = torch.randn(tiny.known_latent().shape, generator=torch.Generator().manual_seed(3))
    sampler, levels = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5])
    end = guider.sample(noise, torch.zeros_like(noise), sampler, levels, disable_pbar=True, seed=1)
    return end - noise


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def reference(tensors, weights, tmp_path_factory):
    import comfy.sd

    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    save_file(tensors, path)
    model = comfy.sd.load_diffusion_model(str(path), {"dtype": torch.float32})
    return step(model, weights), step(model, weights, audio=False), step(model, weights, speakers=2)


def check(model, weights, reference, bound):
    made, silent = step(model, weights), step(model, weights, audio=False)
    voices = distance(reference[1], reference[0])
    assert voices > 0.02
    assert distance(made, reference[0]) < bound
    # what the voices change is the same, up to the format's error
    assert distance(silent - made, reference[1] - reference[0]) < max(3 * bound / voices, 1e-4)
    two = step(model, weights, speakers=2)
    assert distance(two, reference[2]) < max(4 * bound, 1e-5) and distance(two, made) > 0.02


@pytest.mark.parametrize("form", FORMATS)
def test_a_step_is_that_of_fp32_to_the_formats_error(tensors, weights, reference, tmp_path, form):
    import comfy.sd

    write, options, bound = FORMATS[form]
    save_file({key: tensor.contiguous().clone() for key, tensor in write(tensors).items()}, tmp_path / "wan.safetensors")
    check(comfy.sd.load_diffusion_model(str(tmp_path / "wan.safetensors"), options), weights, reference, bound)


@pytest.mark.parametrize("layout", ["Kijai fp8_e4m3fn scaled", "MeiGen int8, merged with WAN", "Q4_K"])
@pytest.mark.parametrize("form", ["fp16", "bf16", "fp8 scaled"])
def test_packed_audio_weights_go_with_a_packed_wan(tensors, reference, tmp_path, form, layout):
    import comfy.sd

    from multitalk_nodes.comfy_bridge.weights import load_weights

    write, options, bound = FORMATS[form]
    save_file({key: tensor.contiguous().clone() for key, tensor in write(tensors).items()}, tmp_path / "wan.safetensors")
    audio = tmp_path / f"multitalk.{'gguf' if layout in layouts.GGUF else 'safetensors'}"
    layouts.write(audio, layout, layouts.weights(scale=0.1))
    packed = load_weights(str(audio), "multitalk")
    of_audio = layouts.GGUF.get(layout) or layouts.SAFETENSORS[layout][1]
    model = comfy.sd.load_diffusion_model(str(tmp_path / "wan.safetensors"), options)
    assert distance(step(model, packed), reference[0]) < bound + of_audio


@pytest.mark.parametrize("kind", GGUF)
def test_gguf_through_city96s_loader(tensors, weights, reference, tmp_path, kind, monkeypatch):
    """With the real pack: MULTITALK_GGUF_PACK is a folder with a checkout of city96/ComfyUI-GGUF."""
    if not (folder := os.environ.get("MULTITALK_GGUF_PACK")):
        pytest.skip("set MULTITALK_GGUF_PACK to a checkout of city96/ComfyUI-GGUF")
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "wan.gguf", "wan")
    for key, tensor in tensors.items():
        if is_linear(key, tensor):
            writer.add_tensor(key, layouts.packed(tensor.numpy(), kind), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            numbers = tensor.numpy() if tensor.ndim < 2 else tensor.half().numpy()
            if numbers.ndim == 5:  # ggml has four dimensions
                writer.add_array(f"comfy.gguf.orig_shape.{key}", [int(n) for n in numbers.shape])
                numbers = numbers.reshape(-1, *numbers.shape[2:])
            writer.add_tensor(key, np.ascontiguousarray(numbers))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        part()
    import folder_paths

    monkeypatch.syspath_prepend(str(Path(folder).parent))
    pack = importlib.import_module(Path(folder).name)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".gguf"}))
    (model,) = sys.modules[f"{pack.__name__}.nodes"].UnetLoaderGGUF().load_unet("wan.gguf")
    assert type(model).__name__ == "GGUFModelPatcher"
    check(model, weights, reference, GGUF[kind])
