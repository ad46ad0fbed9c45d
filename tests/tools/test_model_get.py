# ruff: noqa: F401, F811 — fixtures
"""Fetching models, from a Hub on this machine that drops connections, serves damage and wants to know who asks."""

import errno
import os
import subprocess
import time

import pytest

from multitalk_nodes.tests.support.fetching import CONTENT, LORA, VAE, command, entry, files_in, get, hub, models, variables


def test_a_set_arrives_in_comfyui_s_folders_and_is_not_fetched_twice(hub, models, get):
    code, item = get([entry(VAE), entry(LORA)])
    assert code == 0 and item.count("fetched and verified") == 2, item
    assert (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]
    assert (models / "loras" / "lora.safetensors").read_bytes() == CONTENT[LORA]
    assert not list(models.rglob("*.part"))
    asked = len(hub.seen)
    code, item = get([entry(VAE), entry(LORA)])
    assert code == 0 and item.count("is there, verified") == 2 and len(hub.seen) == asked, "files with a confirmed hash need no network"


def test_a_dropped_connection_goes_on_where_it_broke_off(hub, models, get):
    hub.faults[VAE] = [1_500_000, 1_100_000]
    code, item = get([entry(VAE)])
    assert code == 0, item
    assert (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]
    assert [bool(range_) for _, _, range_, _ in hub.downloads()] == [False, True, True], "what was there was not sent again"


def test_a_killed_run_goes_on_with_what_it_left(tmp_path, hub, models, get):
    hub.faults[VAE] = [1_500_000] + [1] * 50  # then hardly anything comes any more
    running = subprocess.Popen(command(tmp_path, [entry(VAE)]), env=variables(hub), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while len(hub.downloads()) < 2:
        time.sleep(0.05)
    running.kill()
    running.communicate()
    assert files_in(models) == set()
    left = sum(part.stat().st_size for part in models.rglob("*.part"))
    assert left >= 2**20
    hub.faults.clear()
    before = len(hub.downloads())
    code, item = get([entry(VAE)])
    assert code == 0 and "going on after" in item
    assert [range_ for _, _, range_, _ in hub.downloads()[before:]] == [f"bytes={left}-"]
    assert (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]


def test_a_storage_that_ignores_range_gives_a_whole_file_all_the_same(hub, models, get):
    hub.faults[VAE] = [1_500_000, "ignore range"]
    code, item = get([entry(VAE)])
    assert code == 0 and (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE], item


@pytest.mark.parametrize("fault", ["damage", "short", "page", "status 503"])
def test_what_came_wrong_is_thrown_away_and_asked_for_again(hub, models, fault, get):
    hub.faults[VAE] = [fault]
    code, item = get([entry(VAE)])
    assert code == 0 and "Trying again" in item, item
    assert (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]


@pytest.mark.parametrize(("fault", "says"), [("damage", "SHA-256 is another"), ("page", "A web page came in place of vae.safetensors")])
def test_what_is_wrong_every_time_never_gets_the_final_name(hub, models, fault, says, get):
    hub.faults[VAE] = [fault] * 99
    code, item = get([entry(VAE), entry(LORA)])
    assert code == 2 and says in item and "1 of 2 files are not there" in item, item
    assert files_in(models) == {"loras/lora.safetensors"}, "the other one is fetched all the same"
    assert not list(models.rglob("*.part")) and len(hub.downloads()) < 12


def test_a_file_that_is_not_given_to_everybody_names_the_token(hub, models, get):
    hub.refused[VAE], hub.token = 403, "hf_secret"
    code, item = get([entry(VAE)])
    assert code == 2 and "accept the terms" in item and "HF_TOKEN" in item and len(hub.seen) == 1
    hub.refused[VAE] = 401
    code, item = get([entry(VAE)], HF_TOKEN="hf_wrong")
    assert code == 2 and "(401)" in item and "hf_wrong" not in item
    code, item = get([entry(VAE)], HF_TOKEN="hf_secret")
    assert code == 0 and (models / "vae" / "vae.safetensors").exists()


def test_a_file_that_is_gone_is_told_at_once(hub, get):
    del hub.files[VAE]
    code, item = get([entry(VAE)])
    assert code == 2 and "has no split_files/vae/vae.safetensors (404)" in item and len(hub.seen) == 1


def test_a_file_that_was_replaced_there_is_not_taken_for_the_published_one(hub, models, get):
    code, item = get([entry(VAE, sha256="ab" * 32)])
    assert code == 2 and "but the published one has abab" in item and files_in(models) == set() and not hub.downloads()


def test_a_hash_that_nobody_confirmed_gives_way_to_the_hub_s(hub, models, get):
    code, item = get([entry(VAE, sha256="ab" * 32, confirmed=False)])
    assert code == 0 and "the Hub's counts" in item and "fetched and verified" in item


def test_without_any_hash_the_size_counts_and_it_is_said(hub, get):
    hub.hashes = False
    code, item = get([entry(VAE, sha256=None, confirmed=False, size=None)])
    assert code == 0 and "no hash is known to verify it by" in item
    code, item = get([entry(VAE, sha256=None, confirmed=False, size=None)])
    assert code == 0 and "is there; no hash" in item and len(hub.downloads()) == 1


def test_another_file_of_the_same_name_is_left_alone_unless_it_may_be_replaced(hub, models, get):
    (models / "vae").mkdir(parents=True)
    (models / "vae" / "vae.safetensors").write_bytes(b"mine")
    code, item = get([entry(VAE)])
    assert code == 2 and "--replace" in item and (models / "vae" / "vae.safetensors").read_bytes() == b"mine"
    damaged = bytes(len(CONTENT[VAE]))
    (models / "vae" / "vae.safetensors").write_bytes(damaged)
    assert get([entry(VAE)])[0] == 2, "the right size is not enough"
    assert (models / "vae" / "vae.safetensors").read_bytes() == damaged
    code, item = get([entry(VAE)], "--replace")
    assert code == 0 and (models / "vae" / "vae.safetensors").read_bytes() == CONTENT[VAE]


def test_a_file_in_an_older_folder_or_a_folder_of_one_s_own_is_found(hub, models, get):
    (models / "vae" / "wan").mkdir(parents=True)
    (models / "vae" / "wan" / "vae.safetensors").write_bytes(CONTENT[VAE])
    code, item = get([entry(VAE)])
    assert code == 0 and "is there" in item and files_in(models) == {"vae/wan/vae.safetensors"}


def test_what_does_not_fit_is_refused_before_anything_is_asked(hub, models, get):
    code, item = get([entry(LORA), entry(VAE, size=10**18)])
    assert code == 2 and "1000000000.0 GB are to be fetched" in item and "Free " in item
    assert not hub.seen and not models.exists()


def test_a_dry_run_asks_nothing_and_writes_nothing(hub, models, get):
    code, item = get([entry(VAE), entry(LORA, size=None, about=700_000)], "--dry-run")
    assert code == 0 and "to fetch: 4 MB from " + hub.url in item and "about 1 MB   to fetch" in item
    assert not hub.seen and not models.exists()
    assert get([entry(VAE, size=10**18)], "--dry-run")[0] == 2


def test_offline_is_said(hub, get, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, item = get([entry(VAE)])
    assert code == 2 and "HF_HUB_OFFLINE is set" in item and not hub.seen


def test_the_token_is_not_told_to_another_host(hub, get):
    """Storage has signed addresses of its own."""
    hub.refused[VAE], hub.token = 401, "hf_secret"
    assert get([entry(VAE)], HF_TOKEN="hf_secret")[0] == 0
    data = {method: authorization for method, *_, authorization in hub.seen}
    assert data == {"HEAD": "Bearer hf_secret", "GET": None}


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://a", "http://[bad"])
def test_an_endpoint_that_is_no_address_is_told_at_once(get, endpoint):
    code, item = get([entry(VAE)], HF_ENDPOINT=endpoint)
    assert code == 2 and f"HF_ENDPOINT is '{endpoint}', which is no address" in item and "Trying again" not in item


def test_a_full_disk_is_said_once(hub, models, get, monkeypatch):
    from multitalk_nodes.tools.models.hub import HubClient

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HubClient, "receive", full)
    code, item = get([entry(VAE)])
    assert code == 2 and "The disk is full" in item and "Trying again" not in item


def test_a_single_file_of_the_list_can_be_named(tmp_path, hub, models, get):
    code, item = get([entry(VAE), entry(LORA)], wanted=["lora.safetensors"])
    assert code == 0 and files_in(models) == {"loras/lora.safetensors"}, item
    code, item = get([entry(VAE)], wanted=["nothing.safetensors"])
    assert code == 2 and "there is no set 'nothing.safetensors'" in item
