"""What the model check says of folders: present, wrong, incomplete, missing; and the yaml that tells ComfyUI of them."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from multitalk_nodes.multitalk_core.manifest import Manifest
from multitalk_nodes.multitalk_core.model_check import NEEDED, ROLES, check_models
from multitalk_nodes.multitalk_core.model_folders import FOLDERS, as_yaml, places
from multitalk_nodes.tests.graphs import ROOT, node

Q = "encoder.layers.0.attention.q_proj.weight"
# keys that tell each kind, at sizes of nothing
KEYS = {
    "multitalk": {"audio_proj.proj1.weight": (4, 4), "blocks.0.audio_cross_attn.q_linear.weight": (4, 4)},
    "wan21": {"patch_embedding.weight": (4, 36, 1, 2, 2), "blocks.0.self_attn.q.weight": (4, 4), "img_emb.proj.1.weight": (4, 4)},
    "wav2vec": {"feature_extractor.conv_layers.0.conv.weight": (4, 1, 10), Q: (768, 4)},
    "vae": {"decoder.middle.0.residual.0.gamma": (4,), "encoder.conv1.weight": (4, 4)},
    "clip": {"vision_model.encoder.layers.0.mlp.fc1.weight": (4, 4)},
    "text_encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4), "shared.weight": (4, 4)},
}
FILES = {
    "multitalk": "model_patches/mine.safetensors",
    "wan21": "unet/folder/wan.safetensors",
    "wav2vec": "audio_encoders/wav2vec2.safetensors",
    "vae": "vae/wan_vae.safetensors",
    "clip": "clip_vision/clip.safetensors",
    "text_encoder": "clip/umt5.safetensors",
}


def save(file, kind):
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = KEYS[kind] if isinstance(kind, str) else kind
    save_file({name: torch.ones(shape, dtype=torch.float16) for name, shape in tensors.items()}, file)
    return file


@pytest.fixture
def models(tmp_path):
    """A models folder with one file of each kind."""
    for kind, name in FILES.items():
        save(tmp_path / name, kind)
    return tmp_path


def listed(file, kind, **changes):
    """A list with this file alone in it, and what is shipped for the rest."""
    shipped = json.loads((ROOT / "multitalk_core" / "models.json").read_text())
    content = file.read_bytes()
    row = {"repository": "a/b", "path": file.name, "folder": "vae", "kind": kind, "size": len(content)}
    row |= {"sha256": hashlib.sha256(content).hexdigest(), "confirmed": True} | changes
    place = file.parent / "list.json"
    place.write_text(json.dumps({"files": [*shipped["files"], row], "presets": shipped["presets"]}))
    return Manifest.load(place)


def only(checked, role):
    [file] = checked.of(role)
    return file


def test_a_complete_folder_is_complete_by_what_the_files_hold(models):
    checked = check_models(places(models))
    assert checked.complete and list(checked.available) == list(NEEDED) and all(checked.available.values())
    assert checked.state("lora") == "missing", "which is not needed"
    assert only(checked, "wan21").name == "folder/wan.safetensors" and only(checked, "wan21").folder == "diffusion_models"
    assert "Everything is there" in checked.table()
    told = json.loads(json.dumps(checked.told()))
    assert told["complete"] and list(told["models"]) == list(ROLES) and str(models) not in json.dumps(told)
    assert {"multitalk", "wan21", "wav2vec", "vae", "clip"} < set(told["model_info"]["models_available"])


@pytest.mark.parametrize("role", NEEDED)
def test_what_is_missing_is_named_with_the_file_to_get(models, role):
    (models / FILES[role]).unlink()
    checked = check_models(places(models))
    assert not checked.complete and checked.state(role) == "missing" and sum(checked.available.values()) == 5
    wanted = checked.told()["models"][role]["get"]
    assert wanted["file"] in Manifest.load().files and wanted["url"].startswith("https://huggingface.co/")
    assert f"for example {wanted['file']}" in checked.table() and "models get infinitetalk" in checked.table()


@pytest.mark.parametrize("role", NEEDED)
def test_a_file_cut_short_is_incomplete_whatever_its_name(models, role):
    file = models / FILES[role]
    file.write_bytes(file.read_bytes()[:-10])
    checked = check_models(places(models))
    assert checked.state(role) == "incomplete" and "incomplete" in only(checked, role).problem and not checked.complete


def test_a_published_file_of_another_size_is_incomplete_or_wrong(models):
    file = models / FILES["vae"]
    size = file.stat().st_size
    assert check_models(places(models), manifest=listed(file, "vae", size=size + 1)).state("vae") == "incomplete"
    assert check_models(places(models), manifest=listed(file, "vae", size=size - 1)).state("vae") == "wrong"
    assert check_models(places(models), manifest=listed(file, "vae")).state("vae") == "present"


@pytest.mark.parametrize(
    ("content", "state", "says"),
    [
        (b"<!DOCTYPE html><html>404</html>", "wrong", "web page"),
        (b"", "incomplete", "empty"),
        (b"PK\x03\x04" + b"x" * 100, "wrong", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "wrong", "git-lfs pointer"),
    ],
)
def test_a_file_that_is_no_weights_is_told_by_what_it_is(models, content, state, says):
    (models / FILES["vae"]).write_bytes(content)
    checked = check_models(places(models))
    assert checked.state("vae") == state and says in only(checked, "vae").problem and says in checked.table()


def test_the_wrong_model_in_a_place_is_wrong(models):
    shutil.copy(models / FILES["wan21"], models / "vae" / "wan_2.1_vae.safetensors")
    (models / FILES["vae"]).unlink()
    checked = check_models(places(models))
    assert checked.state("vae") == "wrong" and "holds wan21" in only(checked, "vae").problem
    shutil.move(models / FILES["wan21"], models / "vae" / "another.safetensors")
    checked = check_models(places(models))
    assert checked.state("wan21") == "wrong" and "Move it" in only(checked, "wan21").problem
    save(models / FILES["wav2vec"], {**KEYS["wav2vec"], Q: (1024, 4)})
    checked = check_models(places(models))
    assert checked.state("wav2vec") == "wrong" and "wav2vec2-large" in only(checked, "wav2vec").problem


def test_wan_for_text_alone_is_wrong(models):
    save(models / FILES["wan21"], {**KEYS["wan21"], "patch_embedding.weight": (4, 16, 1, 2, 2)})
    checked = check_models(places(models))
    assert checked.state("wan21") == "wrong" and "image-to-video" in only(checked, "wan21").problem


def test_parts_of_a_model_are_incomplete(models):
    (models / FILES["wan21"]).unlink()
    for number in (1, 3):
        save(models / "diffusion_models" / f"diffusion_pytorch_model-0000{number}-of-00007.safetensors", "wan21")
    checked = check_models(places(models))
    assert checked.state("wan21") == "incomplete" and "2 of 7 parts" in only(checked, "wan21").problem


def test_an_encoder_in_parts_is_present_when_all_are_there(models):
    (models / FILES["wav2vec"]).unlink()
    folder = models / "audio_encoders" / "wav2vec2-base"
    for number, name in enumerate(KEYS["wav2vec"], start=1):
        save(folder / f"model-0000{number}-of-00002.safetensors", {name: KEYS["wav2vec"][name]})
    (folder / "model.safetensors.index.json").write_text("{}")
    assert check_models(places(models)).state("wav2vec") == "present"
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert check_models(places(models)).state("wav2vec") == "incomplete"


def test_models_for_something_else_are_no_concern(models):
    save(models / "diffusion_models" / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (4, 4)})
    (models / "vae" / "broken.pt").write_bytes(b"PK\x03\x04")
    save(models / "loras" / "style.safetensors", {"a.lora_up.weight": (4, 4)})
    checked = check_models(places(models))
    assert checked.complete and len(checked.files) == 6


def test_a_published_name_is_always_looked_at(models):
    """Whoever downloads it again and again wants to know why it does not load, though another is there."""
    (models / "vae" / "wan_2.1_vae.safetensors").write_bytes(b"<html>")
    checked = check_models(places(models))
    assert checked.complete and {file.state for file in checked.of("vae")} == {"present", "wrong"}


def test_deep_compares_the_contents(models):
    file = models / FILES["vae"]
    heard = []
    manifest = listed(file, "vae")
    right = check_models(places(models), True, lambda done, of: heard.append((done, of)), manifest)
    assert only(right, "vae").sha256 == "SHA-256 is right" and heard == [(file.stat().st_size,) * 2]
    assert "no hash of it" in only(right, "clip").sha256
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert check_models(places(models), manifest=manifest).complete, "the header does not tell"
    wrong = check_models(places(models), True, None, manifest)
    assert wrong.state("vae") == "wrong" and "damaged, or another version" in only(wrong, "vae").problem
    unsure = check_models(places(models), True, None, listed(file, "vae", sha256="ab" * 32, confirmed=False))
    assert unsure.state("vae") == "present" and "nobody has confirmed" in only(unsure, "vae").sha256
    unknown = check_models(places(models), True, None, listed(file, "vae", sha256=None, confirmed=False))
    assert unknown.state("vae") == "present" and only(unknown, "vae").sha256 == "no hash is known of it"


def test_deep_can_be_broken_off(models):
    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_models(places(models), True, stop, listed(models / FILES["vae"], "vae"))


def test_the_command_ends_with_0_only_if_all_is_there(models):
    def run(*more):
        command = [sys.executable, str(ROOT / "dev.py"), "models", "check", "--models", str(models), *more]
        return subprocess.run(command, capture_output=True, text=True)

    assert run().returncode == 0
    (models / FILES["clip"]).unlink()
    done = run("--json")
    assert done.returncode == 1 and json.loads(done.stdout)["models"]["clip"]["state"] == "missing"


# -- extra_model_paths.yaml


def test_comfyui_reads_the_printed_paths(tmp_path):
    """In a process of its own: the folders stay in ComfyUI's list."""
    models = tmp_path / "my models: ü #1"
    (tmp_path / "paths.yaml").write_text(as_yaml(models), encoding="utf-8")
    program = f"""
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("pack", {str(ROOT / "tools" / "pack.py")!r})
pack = module_from_spec(spec); spec.loader.exec_module(pack); pack.start_comfy()
import folder_paths
from utils.extra_config import load_extra_path_config
load_extra_path_config({str(tmp_path / "paths.yaml")!r})
print(json.dumps({{name: folder_paths.get_folder_paths(name) for name in {list(FOLDERS)!r}}}))
"""
    (tmp_path / "run.py").write_text(program)
    done = subprocess.run([sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, check=True)
    read = json.loads(done.stdout.splitlines()[-1])
    for name, folders in FOLDERS.items():
        assert read[name][0].startswith(str(models)), "before ComfyUI's own"
        assert {str(models / folder) for folder in folders} <= set(read[name])


def test_the_worker_s_paths_are_the_same():
    def loaded(text):
        return yaml.safe_load(text)["multitalk"]

    shipped = (ROOT / "serverless" / "extra_model_paths.yaml").read_text()
    assert loaded(shipped) == loaded(as_yaml()) | {"base_path": "/runpod-volume/models"}


def test_every_folder_of_the_list_is_in_the_paths():
    assert {entry.folder for entry in Manifest.load().files.values()} < set(FOLDERS)


# -- the node


def test_the_node_looks_into_comfyui_s_folders(server):
    folders = server.base / "models"
    made = [save(folders / name, kind) for kind, name in FILES.items()]
    graph = {"check": node("MultiTalkModelCheck", deep=True, size="multitalk-720", seconds=60.0)}
    graph |= {f"show_{number}": node("PreviewAny", source=["check", number]) for number in range(3)}
    try:
        found = server.run(graph)
        table, told, facts = ("".join(found[f"show_{number}"]["text"]) for number in range(3))
        assert "present" in table and json.loads(told)["complete"] and json.loads(told)["deep"]
        assert json.loads(told)["models"]["wan21"]["files"][0]["file"]
        for line in ("ComfyUI", "torch", "device", "attention", "VRAM for 960×960", "disk for 60 s"):
            assert line in facts
        assert "The demo model" in facts, "there is no card here"
        assert "".join(found["check"]["text"]) == f"{table}\n\n{facts}" and str(server.base) not in table + told + facts
    finally:
        for file in made:
            file.unlink()
    assert json.loads("".join(server.run(graph)["show_1"]["text"]))["complete"] is False, "files come and go: it looks again"
