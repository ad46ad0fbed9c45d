"""A job's key: the same for the same video, another for anything that changes a pixel of it."""

import copy
import shutil
import sys
from dataclasses import field, make_dataclass
from types import SimpleNamespace

import pytest
import torch

from multitalk_nodes.tests.support.graphs import SAMPLES, Graph


@pytest.fixture
def keys(comfy, tmp_path, monkeypatch):
    """The module, with an input and a model folder of its own."""
    import folder_paths

    from multitalk_nodes.comfy_bridge import fingerprints, job_key

    for name in ("input", "models", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "models")], {".safetensors"}))
    for sample in (*SAMPLES.glob("*.wav"), *SAMPLES.glob("*.png")):
        shutil.copyfile(sample, tmp_path / "input" / sample.name)
    (tmp_path / "models" / "style.safetensors").write_bytes(bytes(1000))
    return SimpleNamespace(**vars(fingerprints) | vars(job_key))


def prompt(**changes):
    graph = Graph(speakers=2).prompt()
    graph["lora"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "style.safetensors", "strength_model": 1.0}}
    graph["clip"]["inputs"]["model"] = ["lora", 0]
    for name, inputs in changes.items():
        graph[name]["inputs"].update(inputs)
    return graph


def key(keys, graph, arrived=None, node="decode"):
    return keys.job_key(node, graph.__getitem__, arrived or {})


def test_numbers_names_and_places_of_files_do_not_matter(keys, tmp_path):
    graph = prompt()
    before = key(keys, graph)
    (tmp_path / "input" / "voice_1.wav").rename(tmp_path / "input" / "renamed.wav")
    (tmp_path / "models" / "sub").mkdir()
    (tmp_path / "models" / "style.safetensors").rename(tmp_path / "models" / "sub" / "other.safetensors")
    again = prompt(audio_1={"audio": "renamed.wav"}, lora={"lora_name": "sub/other.safetensors"})
    renumbered = {f"{name}_x": copy.deepcopy(node) for name, node in again.items()}
    for node in renumbered.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = [f"{value[0]}_x", value[1]]
    assert keys.job_key("decode_x", renumbered.__getitem__, {}) == before
    assert len(before) == 32


def test_what_is_not_upstream_does_not_matter(keys):
    assert key(keys, prompt(save={"filename_prefix": "elsewhere"})) == key(keys, prompt())


@pytest.mark.parametrize(
    "change",
    [
        {"sample": {"seed": 2}},
        {"sample": {"positive": ["clip", 2]}},
        {"clip": {"frames": 9}},
        {"lora": {"strength_model": 0.9}},
        {"image": {"image": "face_small.png"}},
        {"audio_2": {"audio": "voice_1.wav"}},
        {"speaker_2": {"box": "1, 2, 3, 4"}},
    ],
)
def test_every_input_upstream_matters(keys, change):
    assert key(keys, prompt(**change)) != key(keys, prompt())


def test_what_the_nodes_own_widgets_say_is_for_the_caller_to_tell(keys):
    assert key(keys, prompt(decode={"colour": 0.5})) == key(keys, prompt())
    lines = [key(keys, prompt(), {"colour": colour, "later": None}) for colour in (1.0, 0.5)]
    assert lines[0] != lines[1] and lines[0] == key(keys, prompt(), {"colour": 1.0})


def test_a_node_that_gets_another_input_keeps_its_jobs(keys, monkeypatch):
    """As long as the input is at its default."""
    defaults = {"added": 1.5, "seed": 0}
    monkeypatch.setattr(sys.modules[keys.job_key.__module__], "_defaults", lambda kind: defaults if kind == "MultiTalkSampler" else {})
    before = key(keys, prompt())
    assert key(keys, prompt(sample={"added": 1.5})) == before != key(keys, prompt(sample={"added": 2.0}))


def test_records_with_another_field_tell_the_same_values_apart(keys):
    old = make_dataclass("Record", ["kept"])
    new = make_dataclass("Record", ["kept", ("added", float, 1.5), ("more", tuple, field(default_factory=tuple))])
    assert keys.as_json(old("a")) == keys.as_json(new("a")) != keys.as_json(new("a", 2.0))


def test_what_the_editor_adds_where_it_shows_a_video_does_not_matter(keys):
    shown = {"video-preview": ""}
    assert key(keys, prompt(sample=shown, image=shown)) == key(keys, prompt())


def test_a_file_under_the_same_name_with_other_content_matters(keys, tmp_path):
    before = key(keys, prompt())
    audio = tmp_path / "input" / "voice_1.wav"
    whole = audio.read_bytes()
    audio.write_bytes(whole[:-100])
    cut = key(keys, prompt())
    audio.write_bytes(whole)
    assert cut != before and key(keys, prompt()) == before
    (tmp_path / "models" / "style.safetensors").write_bytes(bytes(999) + b"\1")
    assert key(keys, prompt()) != before


def test_a_models_large_file_is_told_by_its_size_its_header_and_pieces_from_all_over(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[keys.file_fingerprint.__module__], "SMALL", 0)
    file = tmp_path / "large.bin"
    data = bytearray(2**21)
    file.write_bytes(data)
    before = keys.model_file_fingerprint(file)
    for place in (0, 500_000, len(data) - 1):
        data[place] ^= 1
        file.write_bytes(data)
        assert keys.model_file_fingerprint(file) != before
        data[place] ^= 1
    file.write_bytes(data + b"\0")
    assert keys.model_file_fingerprint(file) != before


def test_every_byte_of_a_recording_matters(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[keys.file_fingerprint.__module__], "SMALL", 2**20)
    file = tmp_path / "input" / "voice_1.wav"
    file.write_bytes(bytes(2**22))
    before, whole_path = key(keys, prompt()), key(keys, prompt(audio_1={"audio": str(file)}))
    changed = bytearray(2**22)
    changed[1_234_567] = 1
    file.write_bytes(changed)
    assert key(keys, prompt()) != before
    assert key(keys, prompt(audio_1={"audio": str(file)})) != whole_path


def test_a_value_of_two_texts_is_no_link(keys):
    assert key(keys, prompt(save={}, sample={"chosen": ["a", "b"]})) != key(keys, prompt(sample={"chosen": ["a", "c"]}))


def test_text_is_text_unless_it_names_a_file(keys):
    assert keys._value("a face talks") == "a face talks"
    assert keys._value("") == "" and keys._value("..") == ".." and keys._value("/") == "/"
    assert set(keys._value("voice_1.wav")) == {"files"}
    assert keys._value("two\nlines") == "two\nlines"


def test_what_arrives_matters_by_its_numbers(keys):
    text = [[torch.ones(1, 4, 8), {"pooled": torch.zeros(3), "hooks": None}]]
    other = copy.deepcopy(text)
    assert keys.as_json(text) == keys.as_json(other)
    other[0][0][0, 2, 3] += 1e-3
    assert keys.as_json(text) != keys.as_json(other)
    other = [[text[0][0], {"pooled": torch.zeros(3), "hooks": None, "strength": 0.5}]]
    assert keys.as_json(text) != keys.as_json(other)
    assert keys.tensor_fingerprint(torch.zeros(0)) != keys.tensor_fingerprint(torch.zeros(0, 2))
    assert keys.tensor_fingerprint(torch.zeros(4)) != keys.tensor_fingerprint(torch.zeros(4, dtype=torch.float16))


def test_every_number_of_a_picture_and_of_a_voice_matters(keys):
    from multitalk_nodes.multitalk_core.people.speakers import Speaker

    picture, sound = torch.rand(1, 480, 832, 3), torch.rand(1, 1_000_000)
    before = keys.as_json([picture, [Speaker(sound, 16_000)]])
    picture[0, 100, 200, 1] += 0.5
    after = keys.as_json([picture, [Speaker(sound, 16_000)]])
    assert after != before
    sound[0, 777_777] += 0.5
    assert keys.as_json([picture, [Speaker(sound, 16_000)]]) != after


def test_a_patched_model_matters_and_a_loaded_one_does_not(keys):
    import comfy.model_management

    from multitalk_nodes.tests.support.tiny import wan

    model = wan()
    before = keys.as_json(model)
    assert keys.as_json(wan()) == before != keys.as_json(wan(seed=5))

    patched = model.clone()
    name = "diffusion_model.blocks.0.ffn.0.weight"
    patched.add_patches({name: ("diff", (torch.ones(128, 96),))}, 0.5)
    fingerprint = keys.as_json(patched)
    assert fingerprint != before
    stronger = model.clone()
    stronger.add_patches({name: ("diff", (torch.ones(128, 96),))}, 0.6)
    assert keys.as_json(stronger) not in (before, fingerprint)

    whole = patched.model.state_dict()[name].clone()
    comfy.model_management.load_models_gpu([patched])
    assert not torch.equal(patched.model.state_dict()[name], whole)
    assert keys.as_json(patched) == fingerprint, "although the patch is in the weights now"
    assert keys.as_json(model) == before

    replaced = model.clone()
    replaced.set_model_attn2_patch(lambda arguments: arguments)
    assert keys.as_json(replaced) != before
    comfy.model_management.unload_all_models()
