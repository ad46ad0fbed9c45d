# ruff: noqa: F401, F811 — fixtures
"""Fetching models into folders on other disks, over links, beside files of one's own, and in two runs at once."""

import errno
import os
import shutil
import subprocess
import tempfile
import threading

import pytest

from multitalk_nodes.tests.support.fetching import CONTENT, LORA, VAE, command, entry, files_in, get, hub, models, variables


def test_a_good_copy_counts_wherever_comfyui_finds_it_and_a_hidden_one_does_not(hub, models, get):
    for folder, content in (("a", b"damaged"), ("b", CONTENT[VAE])):
        (models / "vae" / folder).mkdir(parents=True)
        (models / "vae" / folder / "vae.safetensors").write_bytes(content)
    assert get([entry(VAE)])[0] == 0 and not hub.seen
    (models / "vae" / "b").rename(models / "vae" / ".b")
    code, item = get([entry(VAE)])
    assert code == 2 and "vae/a/vae.safetensors' (7 bytes) is not the published file" in item
    (models / "diffusion_models").mkdir()
    (models / "diffusion_models" / "vae.safetensors").write_bytes(CONTENT[VAE])
    assert get([entry(VAE, folder="model_patches", kind="multitalk", family="multitalk")])[0] == 0 and not hub.seen


def test_what_is_there_needs_no_folder_that_can_be_written_to(hub, models, get):
    assert get([entry(VAE)])[0] == 0
    staging = models / "vae" / ".multitalk-downloads"
    shutil.rmtree(staging)
    staging.write_text("no folder can be made here")
    code, item = get([entry(VAE)])
    assert code == 0 and "is there, verified" in item


@pytest.mark.skipif(not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tempfile.gettempdir()).st_dev, reason="one disk")
def test_a_folder_on_another_disk_gets_its_files_there(hub, models, get):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        models.mkdir()
        (models / "vae").symlink_to(other)
        hub.faults[VAE] = [1_500_000, 1_100_000]
        code, item = get([entry(VAE), entry(LORA)])
        assert code == 0 and f"on the disk of {models / 'vae'}" in item, item
        assert (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]
        free = shutil.disk_usage(other).free
        if free < shutil.disk_usage(models).free - 2 * 10**9:  # what fits only on the disk of `models`
            code, item = get([entry(VAE, path="big.safetensors", size=free + 10**9)])
            assert code == 2 and f"the disk of {models / 'vae'} has" in item


@pytest.mark.parametrize("place", ["vae", "vae/vae.safetensors", "vae/.multitalk-downloads"])
def test_a_place_that_cannot_take_the_file_is_told_before_anything_is_asked(hub, models, get, place):
    (models / place).parent.mkdir(parents=True)
    (models / place).mkdir() if place.endswith("safetensors") else (models / place).write_text("a file")
    code, item = get([entry(VAE)])
    assert code == 2 and not hub.seen and ("cannot be written to" in item or "is a folder" in item), item
    assert "Trying again" not in item and "vae.safetensors: vae.safetensors" not in item


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_that_lead_nowhere_are_not_overwritten(hub, models, get, tmp_path):
    (models / "vae").mkdir(parents=True)
    (models / "vae" / "vae.safetensors").symlink_to(tmp_path / "unmounted" / "vae.safetensors")
    code, item = get([entry(VAE)])
    assert code == 2 and "a link that leads nowhere" in item and not hub.seen
    assert get([entry(VAE)], "--dry-run")[0] == 2, "the dry run says the same"
    assert get([entry(VAE)], "--replace")[0] == 0 and (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]
    (models / "loras").symlink_to(tmp_path / "unmounted" / "loras")
    code, item = get([entry(LORA)])
    assert code == 2 and "Is its disk mounted?" in item and not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_during_the_download_is_not_overwritten(tmp_path, links, monkeypatch):
    from multitalk_nodes.tools.models.get import _move_exclusively

    def refused(*_):
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    part, path = tmp_path / "part", tmp_path / "file"
    part.write_bytes(b"new")
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        _move_exclusively(part, path)
    assert path.read_bytes() == b"mine" and part.read_bytes() == b"new"
    path.unlink()
    _move_exclusively(part, path)
    assert path.read_bytes() == b"new" and not part.exists()


def test_a_size_that_nobody_confirmed_gives_way_to_a_right_hash(hub, models, get):
    wrong = entry(VAE, size=len(CONTENT[VAE]) + 7)
    assert get([wrong])[0] == 0
    for listed in (wrong, wrong | {"confirmed": False, "sha256": None}):
        before = len(hub.downloads())
        code, item = get([listed])
        assert code == 0 and "is there" in item and len(hub.downloads()) == before, "it is not fetched again and again"


def test_half_files_of_others_are_none_of_this_one(hub, models, get):
    staging = models / "vae" / ".multitalk-downloads"
    staging.mkdir(parents=True)
    (staging / "vae.safetensors.safetensors.0123456789abcdef.part").write_bytes(b"x" * 1_000_000)
    code, item = get([entry(VAE)], "--dry-run")
    assert code == 0 and "to fetch: 3 MB" in item
    (staging / "vae.safetensors.0123456789abcdef.part").write_bytes(b"x" * 1_000_000)
    assert "to fetch: 2 MB" in get([entry(VAE)], "--dry-run")[1]
    assert get([entry(VAE)])[0] == 0
    assert [part.name for part in staging.glob("*.part")] == ["vae.safetensors.safetensors.0123456789abcdef.part"], "and its own are gone"


def test_a_dry_run_refuses_what_the_run_refuses(hub, models, get, tmp_path):
    (models / "vae").mkdir(parents=True)
    (models / "vae" / "vae.safetensors").write_bytes(b"mine")
    code, item = get([entry(VAE)], "--dry-run")
    assert code == 2 and "left alone" in item and "to fetch: 0 MB" in item
    code, item = get([entry(VAE)], "--dry-run", "--replace")
    assert code == 0 and "to replace" in item and "to fetch: 3 MB" in item
    shutil.rmtree(models)
    models.write_text("a file")
    code, item = get([entry(VAE)], "--dry-run")
    assert code == 2 and "is a file" in item


# -- room


def room(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free})())


def test_a_gigabyte_stays_free(hub, models, get, monkeypatch):
    size = len(CONTENT[VAE])
    room(monkeypatch, 10**9 + size - 1)
    assert get([entry(VAE)])[0] == 2 and not hub.seen
    room(monkeypatch, 10**9 + size)
    assert get([entry(VAE)])[0] == 0


def test_a_file_of_unknown_size_is_refused_when_the_hub_tells_it(hub, models, get, monkeypatch):
    room(monkeypatch, 10**9 + 1_000_000)
    code, item = get([entry(VAE, size=None), entry(LORA)])
    assert code == 2 and "3 MB of it are missing, but the disk has 1.0 GB left" in item and "Trying again" not in item
    assert files_in(models) == {"loras/lora.safetensors"} and len(hub.downloads()) == 1


def test_a_half_file_that_is_too_long_is_begun_anew(hub, models, get):
    staging = models / "vae" / ".multitalk-downloads"
    staging.mkdir(parents=True)
    (staging / f"vae.safetensors.{entry(VAE)['sha256'][:16]}.part").write_bytes(bytes(len(CONTENT[VAE]) + 1))
    code, item = get([entry(VAE)])
    assert code == 0 and "thrown away" not in item and [range_ for _, _, range_, _ in hub.downloads()] == [None]


# -- two runs


def test_a_second_run_waits_and_then_finds_the_file(tmp_path, hub, models):
    hub.faults[VAE] = [500_000]
    pair = [subprocess.Popen(command(tmp_path, [entry(VAE)]), env=variables(hub), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [running.communicate()[0] for running in pair]
    assert [running.returncode for running in pair] == [0, 0], lines
    assert sum("fetched and verified" in text for text in lines) == 1 and sum("is there, verified" in text for text in lines) == 1


@pytest.mark.skipif(os.name == "nt", reason="of flock")
def test_a_disk_without_locks_is_said_and_held_locks_are_waited_for(tmp_path, monkeypatch, capfd):
    import fcntl

    from multitalk_nodes.tools.environment import steps

    entered = threading.Event()

    def second():
        with steps.locked(tmp_path / "thing", steps.Step("second")):
            entered.set()

    with steps.locked(tmp_path / "thing", steps.Step("first")):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(5)
    thread.join()
    assert "waiting for it" in capfd.readouterr().out

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with steps.locked(tmp_path / "thing", steps.Step("third")):
        assert "this disk has no locks (No locks available)" in capfd.readouterr().out
