"""Every published layout of the audio weights gives the output of the fp32 weights, to its format's error."""

import json
import os
import random
import re
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from multitalk_nodes.multitalk_core.errors import WeightsError
from multitalk_nodes.multitalk_core.model import AdapterShape, MultiTalkAdapter
from multitalk_nodes.multitalk_core.weights.gguf import BLOCKS, unpack
from multitalk_nodes.tests.support import layouts
from multitalk_nodes.tools.launch import launched

NAME = "tiny_infinitetalk"
HEADS = 4


def file_of(folder, layout):
    path = folder / f"{NAME}.{'gguf' if layout in layouts.GGUF else 'safetensors'}"
    layouts.write(path, layout)
    return path


def outputs(adapter):
    """The context tokens of two random voices, and what all blocks together add to x for them."""
    seed = torch.Generator().manual_seed(3)
    tokens = adapter.audio_proj(torch.randn(2, 9, 5, 2, 128, generator=seed))
    x = torch.randn(1, 3 * 16, layouts.SHAPE.dim, generator=seed)
    labels = torch.rand(1, 3 * 16, generator=seed) * 24
    audio_labels = torch.tensor([2.0, 2.0, 22.0, 22.0])
    heard = x
    for block in adapter.blocks:
        heard = block(heard, tokens, HEADS, labels, audio_labels)
    return [tokens, heard - x]


def reference(state=None):
    adapter = MultiTalkAdapter(layouts.SHAPE)
    adapter.load_state_dict(state or layouts.weights())
    return adapter.eval().requires_grad_(False)


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("layout", [*layouts.SAFETENSORS, *layouts.GGUF])
def test_a_layout_gives_the_output_of_fp32_to_its_formats_error(comfy, tmp_path, layout):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    loaded = load_weights(str(file_of(tmp_path, layout)), NAME)
    assert loaded.family.name == "infinitetalk" and loaded.shape == layouts.SHAPE
    bound = layouts.GGUF.get(layout) or layouts.SAFETENSORS[layout][1]
    made, true = outputs(loaded.adapter), outputs(reference())
    assert all(tensor.dtype == torch.float32 for tensor in made)
    assert distance(made[0], true[0]) < 2 * bound  # many keep the projection in fp32
    assert 0 < distance(made[1], true[1]) < 2 * bound


@pytest.mark.parametrize("layout", [*layouts.SAFETENSORS, *layouts.GGUF])
def test_packed_weights_compute_what_they_unpack_to(comfy, tmp_path, layout):
    """Against plain fp32 layers that hold the same numbers; GGUF's are unpacked by the package gguf."""
    from multitalk_nodes.comfy_bridge.weights import load_weights

    path = file_of(tmp_path, layout)
    adapter = load_weights(str(path), NAME).adapter
    same = load_weights(str(path), NAME, dtype=torch.float32).adapter.state_dict()
    assert {tensor.dtype for tensor in same.values()} == {torch.float32}
    if layout in layouts.GGUF:
        for tensor in gguf.GGUFReader(path).tensors:
            oracle = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))).reshape(same[tensor.name].shape)
            assert torch.equal(same[tensor.name], oracle.float()), tensor.name
    for made, true in zip(outputs(adapter), outputs(reference(same)), strict=True):
        assert distance(made, true) < 1e-6


@pytest.mark.parametrize("layout", [*layouts.SAFETENSORS, *layouts.GGUF])
def test_nothing_is_kept_wider_than_in_the_file(comfy, tmp_path, layout):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    path = file_of(tmp_path, layout)
    adapter = load_weights(str(path), NAME).adapter
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*adapter.parameters(), *adapter.buffers()])
    assert held < path.stat().st_size


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_of_bytes_unpacks_as_gguf_unpacks_it(kind):
    """All bit patterns, not only those that a packer makes; the scales are finite."""
    blocks = np.random.default_rng(5).integers(0, 256, (512, BLOCKS[kind].bytes), dtype=np.uint8)
    halves = {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(kind, [0, 2])
    for place in halves:
        blocks[:, place : place + 2] = np.random.default_rng(6).normal(size=(512, 1)).astype(np.float16).view(np.uint8)
    oracle = gguf.quants.dequantize(blocks.copy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(unpack(torch.from_numpy(blocks), kind), torch.from_numpy(oracle))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_weights_compute_in_the_models_precision(comfy, tmp_path, dtype):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    layer = load_weights(str(file_of(tmp_path, "Q4_K")), NAME).adapter.blocks[0].audio_cross_attn.proj
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    made = layer(x.to(dtype))
    assert made.dtype == dtype and distance(made.float(), layer(x)) < 0.01


SIZES = {"dim": 5120, "token_dim": 768, "intermediate": 512, "audio_features": 12 * 768, "context_tokens": 32}  # the published ones


def sparse(path, layout, size=2_000_000_000):
    """A file of the published sizes and about `size` bytes whose numbers are zeros that take no disk."""
    stored = {"fp16": ("F16", 2), "fp8": ("F8_E4M3", 1)}.get(layout)
    blocks = 15 if layout == "fp16" else 30
    with torch.device("meta"):
        tensors = MultiTalkAdapter(AdapterShape(blocks=blocks, **SIZES)).state_dict()
    if layout == "Q8_0":
        return sparse_gguf(path, tensors)
    header, at = {}, 0
    for key, tensor in tensors.items():
        dtype, width = stored if layouts.is_matrix(key) else ("F32", 4)
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at := at + tensor.numel() * width]}
        if layout == "fp8" and layouts.is_matrix(key):
            header[key.replace("weight", "scale_weight")] = {"dtype": "F32", "shape": [], "data_offsets": [at, at := at + 4]}
    found = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(found)) + found)
    os.truncate(path, 8 + len(found) + at)
    return path


def sparse_gguf(path, tensors):
    writer, total = gguf.GGUFWriter(path, "wan"), 0
    for key, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if layouts.is_matrix(key) else gguf.GGMLQuantizationType.F32
        size = tensor.numel() // 32 * 34 if layouts.is_matrix(key) else tensor.numel() * 4
        writer.add_tensor_info(key, tuple(tensor.shape), np.dtype(np.float32), size, raw_dtype=kind)
        total += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + total)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells memory by kind")
@pytest.mark.parametrize("layout", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "fp8")), "Q8_0"])
def test_loading_takes_a_tenth_of_the_file_in_memory_at_most(comfy, tmp_path, layout):
    layouts.write(tmp_path / "infinitetalk.safetensors", "fp16 throughout")
    path = sparse(tmp_path / f"large_infinitetalk.{'gguf' if layout == 'Q8_0' else 'safetensors'}", layout)
    assert path.stat().st_size > 1_900_000_000
    program = launched("tests.support.weights_memory", str(tmp_path / "infinitetalk.safetensors"), str(path))
    result = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < 0.1


@pytest.mark.parametrize("layout", ["fp16 throughout", "Kijai fp8_e4m3fn scaled", "MeiGen int8, merged with WAN", "Q4_K", "Q8_0"])
def test_a_model_that_is_loaded_in_part_computes_the_same(comfy, tmp_path, layout):
    """What --lowvram and --novram do to the layers, as far as a CPU can: the manager keeps weights away and casts them at their use."""
    from multitalk_nodes.comfy_bridge.weights import load_weights

    patcher = load_weights(str(file_of(tmp_path, layout)), NAME).patcher
    true = outputs(patcher.model)
    cpu, loaded = torch.device("cpu"), []
    for options in ({"full_load": True}, {"lowvram_model_memory": patcher.model_size() // 2}, {"lowvram_model_memory": 1}):
        patcher.load(cpu, **options)
        loaded.append(sum(hasattr(m, "comfy_patched_weights") for m in patcher.model.modules()))
        made = outputs(patcher.model)
        assert all(torch.equal(one, other) for one, other in zip(made, true, strict=True))
        patcher.detach()
    modules = sum(bool(list(m.parameters(recurse=False))) for m in patcher.model.modules())
    assert loaded[0] == modules and 0 < loaded[1] < modules and loaded[2] == 0


@pytest.mark.parametrize("layout", ["MeiGen fp32", "fp16 throughout", "Kijai fp8_e4m3fn scaled", "MeiGen int8, merged with WAN", "Q4_K"])
def test_layers_that_core_makes_without_weights_get_all_of_them(comfy, tmp_path, layout, monkeypatch):
    """Under dynamic VRAM core's Linear begins empty, and core would fill what it finds missing with zeros."""
    import comfy.memory_management

    from multitalk_nodes.comfy_bridge.weights import build_weights, load_weights
    from multitalk_nodes.multitalk_core.families import MULTITALK
    from multitalk_nodes.multitalk_core.weights.files import read_header
    from multitalk_nodes.multitalk_core.weights.gguf import map_gguf

    path = file_of(tmp_path, layout)
    true = outputs(load_weights(str(path), NAME).adapter)
    header = read_header(path) if layout in layouts.GGUF else None
    tensors = map_gguf(path, header, lambda key: True) if header else load_file(path)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    adapter = build_weights(tensors, NAME, MULTITALK, header=header).adapter
    monkeypatch.undo()
    made = outputs(adapter)
    assert all(torch.equal(one, other) for one, other in zip(made, true, strict=True))


def refusal(folder, tensors):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / "infinitetalk.safetensors")
    with pytest.raises(WeightsError) as error:
        load_weights(str(folder / "infinitetalk.safetensors"), "infinitetalk")
    return str(error.value)


LAYER = "blocks.1.audio_cross_attn.proj"


def scaled_file(**changes):
    tensors = layouts.SAFETENSORS["Kijai fp8_e4m3fn scaled"][0](layouts.weights())
    return tensors | {key.replace("__", "."): value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({f"{LAYER}.scale_weight": torch.ones(3)}, r"has a scale of shape \[3\]; one number, or one a row"),
        ({f"{LAYER}.scale_weight": torch.ones(1, 256)}, r"has a scale of shape \[1, 256\]"),
        ({"blocks.0.norm_x.scale_weight": torch.ones(256)}, r"norm_x.weight' of shape \[256\] has a scale of shape \[256\]"),
        ({f"{LAYER}.scale_weight": None}, rf"'{LAYER}.weight' has no scale, where others of the file have"),
        ({f"{LAYER}.weight_scale_inv": torch.ones(())}, "neither a weight of MultiTalk's nor a scale that is known"),
        ({f"{LAYER}.weight.scale": torch.ones(())}, "neither a weight of MultiTalk's nor a scale that is known"),
        ({f"{LAYER}.scale_bias": torch.ones(())}, "neither a weight of MultiTalk's nor a scale that is known"),
        ({f"{LAYER}.weight": torch.zeros(256, 256, dtype=torch.int16)}, r"is stored as int16.*fp16"),
        ({f"{LAYER}.comfy_quant": b'{"format": "int8_tensorwise", "convrot": true}'}, "in a way that is not known here"),
        ({f"{LAYER}.comfy_quant": b'{"format": "nvfp4"}'}, "in a way that is not known here"),
        ({f"{LAYER}.comfy_quant": b"nothing"}, "in a way that is not known here"),
    ],
)
def test_what_would_load_as_noise_is_refused(comfy, tmp_path, change, given):
    tensors = scaled_file()
    for key, value in change.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = torch.tensor(list(value), dtype=torch.uint8) if isinstance(value, bytes) else value
    assert re.search(given, refusal(tmp_path, tensors))


def test_a_file_named_as_the_other_container_is_told_its_name(comfy, tmp_path):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    layouts.write(tmp_path / "a", "fp16 throughout")
    (tmp_path / "a").rename(tmp_path / "infinitetalk.gguf")
    with pytest.raises(WeightsError, match="is a safetensors file by its contents. Rename it to .safetensors"):
        load_weights(str(tmp_path / "infinitetalk.gguf"), "infinitetalk.gguf")


def gguf_with(path, extra, kinds):
    """A good Q8_0 file, and more tensors."""
    writer = gguf.GGUFWriter(path, "wan")
    for key, tensor in (layouts.weights() | extra).items():
        kind = kinds.get(key)
        if kind is None:
            writer.add_tensor(key, tensor.half().numpy())
        else:
            data = tensor.numpy() if kind in ("Q3_K", "I32") else layouts.packed(tensor.numpy()[None], kind)[0]
            writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        part()


def test_what_a_gguf_file_holds_beside_our_weights_does_not_matter(comfy, tmp_path):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    extra = {"blocks.0.self_attn.q.weight": torch.zeros(2, 110, dtype=torch.uint8), "steps": torch.zeros(3, dtype=torch.int32)}
    extra["blocks.0.audio_cross_attn.q_linear.bias"] = layouts.weights()["blocks.0.audio_cross_attn.q_linear.bias"]
    kinds = {"blocks.0.self_attn.q.weight": "Q3_K", "steps": "I32", "blocks.0.audio_cross_attn.q_linear.bias": "Q8_0"}
    gguf_with(tmp_path / "infinitetalk.gguf", extra, kinds)
    adapter = load_weights(str(tmp_path / "infinitetalk.gguf"), "infinitetalk").adapter
    assert distance(outputs(adapter)[1], outputs(reference())[1]) < 0.02


def test_a_block_format_of_our_weights_that_is_not_known_is_named_with_those_that_are(comfy, tmp_path):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    key = "blocks.0.audio_cross_attn.proj.weight"
    gguf_with(tmp_path / "infinitetalk.gguf", {key: torch.zeros(256, 110, dtype=torch.uint8)}, {key: "Q3_K"})
    with pytest.raises(WeightsError, match=f"'{key}' is stored as Q3_K; known are F32, F16, BF16, Q8_0, .*Q6_K"):
        load_weights(str(tmp_path / "infinitetalk.gguf"), "infinitetalk")


@pytest.mark.parametrize("layout", ["Kijai fp8_e4m3fn scaled", "Q4_K"])
def test_a_damaged_header_with_all_of_its_data_is_loaded_or_refused(comfy, tmp_path, layout):
    """200 files with one to three bytes of the header changed."""
    from multitalk_nodes.comfy_bridge.weights import load_weights
    from multitalk_nodes.multitalk_core.weights.files import read_header

    path, random_, loaded = file_of(tmp_path, layout), random.Random(11), 0
    whole = path.read_bytes()
    end = min(entry.start for entry in read_header(path).tensors.values())
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(random_.randint(1, 3)):
            data[random_.randrange(end)] = random_.randrange(256)
        path.write_bytes(data)
        try:
            load_weights(str(path), NAME)
            loaded += 1
        except WeightsError:
            pass
    assert loaded < 200
