"""The list of published model files: one list, readable, and enough for every template."""

import json

import pytest

from multitalk_nodes.multitalk_core.files import GB
from multitalk_nodes.multitalk_core.upkeep.published import Manifest, ManifestError
from multitalk_nodes.tests.support.graphs import ROOT
from multitalk_nodes.tools.models.downloads import downloads

SHIPPED = Manifest.load()
TEMPLATES = [file for file in sorted((ROOT / "workflows" / "api").rglob("*.json")) if not file.stem.startswith("demo")]


def files_of(template):
    values = [value for node in json.loads(template.read_text()).values() for value in node["inputs"].values()]
    return {value for value in values if isinstance(value, str) and value.endswith((".safetensors", ".gguf"))}


def test_every_file_of_a_template_is_listed():
    assert len(TEMPLATES) >= 9
    for template in TEMPLATES:
        assert files_of(template) <= SHIPPED.files.keys(), template.name


@pytest.mark.parametrize("preset", ["infinitetalk", "infinitetalk-multi", "multitalk"])
def test_a_preset_is_enough_for_its_template_with_and_without_turbo(preset):
    names = {entry.name for entry in SHIPPED.presets[preset].files}
    needed = set()
    for template in (preset.replace("-", "_"), f"{preset.replace('-', '_')}_turbo"):
        needed |= files_of(ROOT / "workflows" / "api" / "published" / f"{template}.json")
    assert needed == names


def test_the_preset_all_is_what_templates_need_and_fits_a_volume_of_100_gb():
    everything = SHIPPED.presets["all"]
    assert {entry.name for entry in everything.files} == set().union(*map(files_of, TEMPLATES))
    assert everything.bytes < 65 * GB and everything.size_in_words.startswith("about 62.1 GB")


def test_every_preset_has_all_six_kinds():
    for preset in SHIPPED.presets.values():
        assert {entry.kind for entry in preset.files} == {"multitalk", "wan21", "wav2vec", "vae", "clip", "text_encoder", "lora"}


def test_readme_and_docs_tell_every_set_with_its_size():
    text = (ROOT / "docs" / "guide" / "models.md").read_text()
    for name, preset in SHIPPED.presets.items():
        assert any(f"| `{name}` |" in line and line.endswith(f"| {preset.size_in_words} |") for line in text.splitlines()), name
    assert f"{SHIPPED.presets['all'].bytes / GB:.0f} GB" in (ROOT / "README.md").read_text()


def test_hashes_are_hashes_and_only_those_seen_at_the_source_are_confirmed():
    for entry in SHIPPED.files.values():
        assert entry.sha256 is None or (len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef")), entry.name
        assert not entry.confirmed or (entry.sha256 and entry.source.startswith("HF ")), entry.name
        assert entry.size is None or entry.about is None
        assert (entry.family is not None) == (entry.kind == "multitalk")
    confirmed = sum(entry.confirmed for entry in SHIPPED.files.values())
    seen = sum(entry.sha256 is not None for entry in SHIPPED.files.values()) - confirmed
    text = (ROOT / "docs" / "guide" / "models.md").read_text()
    assert f"{confirmed} of the {len(SHIPPED.files)} listed files" in text and f"{seen} one that was seen elsewhere" in text


def test_sizes_are_said_to_be_rough_where_they_are():
    assert SHIPPED.files["wan2.1_i2v_480p_14B_fp16.safetensors"].size_in_words == "32.8 GB"
    assert SHIPPED.files["multitalk.safetensors"].size_in_words == "about 9.9 GB"
    assert SHIPPED.files["wav2vec2-chinese-base_fp16.safetensors"].size_in_words == "190 MB"
    assert SHIPPED.files["WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors"].size_in_words == "of unknown size"


def test_downloads_name_the_page_and_the_folder():
    found = downloads(["wan_2.1_vae.safetensors", "mine.safetensors", 3])
    url = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/wan_2.1_vae.safetensors"
    assert found == [{"name": "wan_2.1_vae.safetensors", "url": url, "directory": "vae"}]


def row(**changes):
    return json.dumps({"files": [{"repository": "a/b", "path": "c", "folder": "vae", "kind": "vae"} | changes], "presets": {}})


def test_a_hash_may_be_in_capitals(tmp_path):
    (tmp_path / "list.json").write_text(row(sha256="AB" * 32))
    assert Manifest.load(tmp_path / "list.json").files["c"].sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"files": [{"repository": "a/b", "path": "c", "folder": "../d", "kind": "vae"}], "presets": {}}', r"'\.\./d' is no"),
        ('{"files": [{"repository": "a/b", "path": "../c", "folder": "vae", "kind": "vae"}], "presets": {}}', "is no"),
        (row(path="a/."), "is no"),
        (row(kind="model"), "kind 'model'"),
        (row(size="5 GB"), "size '5 GB'"),
        (row(sha256="abc"), "64 hexadecimal"),
        ('{"files": [], "presets": {"p": {"about": "", "files": ["missing"]}}}', "missing"),
        ('{"files": [{"repository": "a", "path": "b", "folder": "c", "kind": "vae", "colour": 1}], "presets": {}}', "colour"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, text, says):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ManifestError, match=says):
        Manifest.load(tmp_path / "list.json")
