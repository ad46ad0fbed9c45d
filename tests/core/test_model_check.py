"""What the model check says of folders: present, wrong, incomplete, missing; and the yaml that tells ComfyUI of them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from multitalk_nodes.multitalk_core.upkeep.check import NEEDED, ROLES, check_models
from multitalk_nodes.multitalk_core.upkeep.folders import places
from multitalk_nodes.multitalk_core.upkeep.published import Manifest
from multitalk_nodes.tests.support.graphs import ROOT, node

Q = "encoder.layers.0.attention.q_proj.weight"
# keys that tell each kind, at sizes of nothing
KEYS = {
    "multitalk": {"audio_proj.proj1.weight": (4, 4), "blocks.0.audio_cross_attn.q_linear.weight": (4, 4)},
    "wan21": {"patch_embedding.weight": (4, 36, 1, 2, 2), "blocks.0.self_attn.q.weight": (4, 4), "img_emb.proj.1.weight": (4, 4)},
    "wav2vec": {"feature_extractor.conv_layers.0.conv.weight": (4, 1, 10), Q: (768, 4)},
    "vae": {"decoder.middle.0.residual.0.gamma": (4,), "encoder.conv1.weight": (4, 3, 1, 1, 1)},
    "clip": {"vision_model.encoder.layers.0.mlp.fc1.weight": (4, 4), "vision_model.embeddings.class_embedding": (1280,)},
    "text_encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4), "shared.weight": (256384, 1)},
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
    shipped = json.loads((ROOT / "multitalk_core" / "upkeep" / "models.json").read_text())
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
    data = json.loads(json.dumps(checked.as_json()))
    assert data["complete"] and list(data["models"]) == list(ROLES) and str(models) not in json.dumps(data)
    assert {"multitalk", "wan21", "wav2vec", "vae", "clip"} < set(data["model_info"]["models_available"])


@pytest.mark.parametrize("role", NEEDED)
def test_what_is_missing_is_named_with_the_file_to_get(models, role):
    (models / FILES[role]).unlink()
    checked = check_models(places(models))
    assert not checked.complete and checked.state(role) == "missing" and sum(checked.available.values()) == 5
    wanted = checked.as_json()["models"][role]["get"]
    assert wanted["file"] in Manifest.load().files and wanted["url"].startswith("https://huggingface.co/")
    assert f"for example {wanted['file']}" in checked.table()
    assert checked.verdict("my/models").endswith(f": python dev.py models get {wanted['file']} --models my/models"), "that file alone"


@pytest.mark.parametrize("role", NEEDED)
def test_a_file_cut_short_is_incomplete_whatever_its_name(models, role):
    file = models / FILES[role]
    file.write_bytes(file.read_bytes()[:-10])
    checked = check_models(places(models))
    assert checked.state(role) == "incomplete" and "incomplete" in only(checked, role).problem and not checked.complete


def test_a_listed_size_is_a_hint_and_the_hash_decides(models):
    """Nobody confirmed the sizes; a file that is cut short says so in its header."""
    file = models / FILES["vae"]
    for more in (1, -1):
        manifest = listed(file, "vae", size=file.stat().st_size + more)
        noted, right = check_models(places(models), manifest=manifest), check_models(places(models), True, None, manifest)
        assert noted.state("vae") == "present" and "the list says" in only(noted, "vae").note
        assert only(right, "vae").sha256 == "SHA-256 is right"


def test_a_wrong_file_with_a_published_name_is_the_one_to_get_again(models):
    file = models / "unet" / "wan2.1_i2v_480p_14B_fp8_scaled.safetensors"
    (models / FILES["wan21"]).rename(file)
    file.write_bytes(file.read_bytes()[:-10])
    found = check_models(places(models)).verdict()
    assert found.endswith("(16.4 GB; takes the place of what is wrong): python dev.py models get "
                         "wan2.1_i2v_480p_14B_fp8_scaled.safetensors --models DIR --replace")  # fmt: skip


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
    index, second = folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"
    names = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(KEYS["wav2vec"], start=1)}
    (folder / "config.json").write_text("{}")
    for text, state in (
        ("{}", "incomplete"),
        (json.dumps({"weight_map": {"a": "b"}}), "incomplete"),
        (json.dumps({"weight_map": names}), "present"),
    ):
        index.write_text(text)
        assert check_models(places(models)).state("wav2vec") == state, text
    whole = second.read_bytes()
    for content, says in ((b"<html>", "web page"), (whole[:-4], "incomplete")):
        second.write_bytes(content)
        checked = check_models(places(models))
        assert checked.state("wav2vec") == "incomplete" and says in only(checked, "wav2vec").problem
    save(second, {"something.else": (4,)})
    assert "no Wav2Vec2 encoder" in only(check_models(places(models)), "wav2vec").problem
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
    assert only(right, "vae").sha256 == "SHA-256 is right" and heard[-1][0] == heard[-1][1] > file.stat().st_size, (
        "every encoder is hashed, too"
    )
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


def test_deep_knows_a_renamed_copy(models):
    vae, encoder = models / FILES["vae"], models / FILES["wav2vec"]
    manifest = listed(vae, "vae", path="published_vae.safetensors")
    checked = check_models(places(models), True, None, manifest)
    assert only(checked, "vae").sha256 == "SHA-256 is right: it is published_vae.safetensors"
    assert "may be wav2vec2-base-960h" in only(checked, "wav2vec").sha256, "none of the listed hashes, whatever its size"
    assert checked.verdict() == "Everything is there. SHA-256: 1 verified, 5 of no known hash."
    manifest = listed(encoder, "wav2vec", path="base.safetensors", folder="audio_encoders", size=None)
    assert only(check_models(places(models), True, None, manifest), "wav2vec").sha256.startswith("SHA-256 is right")


def test_what_a_file_needs_besides_is_noted(models):
    from multitalk_nodes.multitalk_core.upkeep.check import _noted
    from multitalk_nodes.multitalk_core.weights.header import Header

    for role, needs in (("wan21", True), ("text_encoder", True), ("multitalk", False)):
        assert bool([*_noted(role, Header({}, {}, "gguf", 0), None)]) == needs, role
    (models / "wav2vec2").mkdir()
    (models / FILES["wav2vec"]).rename(models / "wav2vec2" / "encoder.safetensors")
    assert "if extra_model_paths.yaml says so" in only(check_models(places(models)), "wav2vec").note
    assert "yaml" not in only(check_models(places(models), from_comfy=True), "wav2vec").note, "it said so"


def test_other_packs_models_are_not_taken_for_these(models):
    save(models / FILES["text_encoder"], {**KEYS["text_encoder"], "shared.weight": (32128, 1)})
    save(models / FILES["clip"], {**KEYS["clip"], "vision_model.embeddings.class_embedding": (1152,)})
    checked = check_models(places(models))
    assert not checked.complete and checked.state("text_encoder") == checked.state("clip") == "wrong"


def test_a_pickled_encoder_names_the_file_to_get(models):
    (models / FILES["wav2vec"]).unlink()
    (models / "audio_encoders" / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"x" * 100)
    assert "pickle" in (said := only(check_models(places(models)), "wav2vec").problem)
    assert "Get wav2vec2-chinese-base_fp16.safetensors instead" in said


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_file_is_right_if_it_is_so_in_one_of_its_folders(models):
    (models / "model_patches" / "wan.safetensors").symlink_to(models / FILES["wan21"])
    (models / "diffusion_models").mkdir()
    (models / "diffusion_models" / "mine.safetensors").symlink_to(models / FILES["multitalk"])
    checked = check_models(places(models))
    assert checked.complete and [file.state for file in checked.files] == ["present"] * 6


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_that_lead_nowhere_or_round_and_round_are_told(models):
    (models / FILES["vae"]).unlink()
    (models / FILES["vae"]).symlink_to(models / FILES["vae"])
    (models / "vae" / "again").symlink_to(models / "vae")
    (models / "vae" / ".hidden").mkdir()
    save(models / "vae" / ".hidden" / "vae.safetensors", "vae")
    checked = check_models(places(models))
    assert checked.state("vae") == "wrong" and "cannot be read" in only(checked, "vae").problem
    save(models / "elsewhere" / "vae.safetensors", "vae")
    (models / "vae" / "linked").symlink_to(models / "elsewhere")
    assert check_models(places(models)).complete, "folders are followed"


def test_a_folder_that_may_not_be_read_is_not_called_missing(models, monkeypatch):
    def closed(folder, scan=os.scandir):
        if str(folder).endswith("vae"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", closed)
    checked = check_models(places(models))
    assert checked.state("vae") == "wrong" and "cannot be read (Permission denied)" in checked.table()


def test_a_list_of_one_s_own_need_not_name_every_kind(models):
    (models / FILES["clip"]).unlink()
    place = models / "list.json"
    place.write_text('{"files": [], "presets": {}}')
    assert "clip_vision_h.safetensors" in check_models(places(models), manifest=Manifest.load(place)).verdict()


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


# -- the node


def test_the_node_looks_into_comfyui_s_folders(server):
    folders = server.base / "models"
    made = [save(folders / name, kind) for kind, name in FILES.items()]
    graph = {"check": node("MultiTalkModelCheck", deep=True, size="multitalk-720", seconds=60.0)}
    graph |= {f"show_{number}": node("PreviewAny", source=["check", number]) for number in range(3)}
    try:
        found = server.run(graph)
        table, item, facts = ("".join(found[f"show_{number}"]["text"]) for number in range(3))
        assert "present" in table and json.loads(item)["complete"] and json.loads(item)["deep"]
        assert json.loads(item)["models"]["wan21"]["files"][0]["file"]
        for line in ("ComfyUI", "torch", "device", "attention", "VRAM for 960×960", "disk for 60 s"):
            assert line in facts
        assert "The demo model" in facts, "there is no card here"
        assert "".join(found["check"]["text"]) == f"{table}\n\n{facts}" and str(server.base) not in table + item + facts
    finally:
        for file in made:
            file.unlink()
    assert json.loads("".join(server.run(graph)["show_1"]["text"]))["complete"] is False, "files come and go: it looks again"
