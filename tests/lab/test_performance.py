"""How near to bare WAN, held by counts and not by seconds: operations, calls of attention, memory. And the page of what was measured."""

import json

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def counted_at_480p(comfy):
    from multitalk_nodes.lab.benchmarks import steps
    from multitalk_nodes.lab.benchmarks.sized import SIZES

    return {(row["who"], row["speakers"]): row for row in steps.count_steps(SIZES["480p"])}


@pytest.mark.parametrize(("speakers", "most"), [(1, 1.0823), (2, 1.1079), (4, 1.1094)])
def test_a_step_of_wan_14b_makes_no_more_operations_than_it_must(counted_at_480p, speakers, most):
    assert 1 < counted_at_480p["ours", speakers]["operations"] < most


@pytest.mark.parametrize("speakers", [1, 2, 4])
def test_a_step_of_wan_14b_needs_no_more_memory_than_without_voices(counted_at_480p, speakers):
    assert counted_at_480p["ours", speakers]["peak_memory"] < 1.001
    assert counted_at_480p["ours", speakers]["largest_tensor"] == 1
    assert counted_at_480p["core", 2]["peak_memory"] > 1.4, "the measure sees what is materialised"


def test_what_is_compared_is_all_fused(counted_at_480p):
    """As on a card; one speaker is the same work with core's patches."""
    calls = {key: row["attention_calls"] for key, row in counted_at_480p.items()}
    assert calls["ours", 1] == calls["core", 1] == 40 * 4
    assert calls["ours", 2] == calls["ours", 4] == 40 * 5
    for pace in (0, 1):
        assert counted_at_480p["ours", 1]["modelled"][pace] < counted_at_480p["core", 1]["modelled"][pace]
        assert counted_at_480p["ours", 2]["modelled"][pace] < 1.13


def test_the_bare_step_has_the_operations_of_its_layers(counted_at_480p):
    """Of the blocks; the embeddings and the head are a thousandth."""
    dim, ffn, tokens, text, seen = 5120, 13824, 21 * 30 * 52, 512, 257
    block = tokens * (4 * dim**2 + 2 * tokens * dim)  # self-attention
    block += tokens * (2 * dim**2 + 2 * (text + seen) * dim) + 2 * (text + seen) * dim**2  # to text and picture
    block += tokens * 2 * dim * ffn
    assert counted_at_480p["ours", 1]["bare"]["operations"] == pytest.approx(2 * 40 * block, rel=2e-3)


@pytest.fixture(scope="module")
def tiny(comfy):
    from multitalk_nodes.lab.benchmarks.sized import SIZES, Sized

    torch.manual_seed(0)
    return Sized(SIZES["tiny"])


@pytest.mark.parametrize(("speakers", "calls"), [(1, 1), (2, 2), (4, 2)])
def test_a_block_asks_for_attention_once_for_the_voices_and_once_for_all_maps(tiny, monkeypatch, speakers, calls):
    from multitalk_nodes.lab.benchmarks import counted, steps

    monkeypatch.setattr(tiny, "extra", {steps.OVERRIDE: counted.fused_attention})
    more = counted.count(tiny.ours(speakers)).attention_calls - counted.count(tiny.bare()).attention_calls
    assert more == calls * tiny.size.blocks


def test_maps_are_made_of_the_branches_with_voices_only(tiny, monkeypatch):
    from multitalk_nodes.comfy_bridge import patches
    from multitalk_nodes.lab.benchmarks import steps

    made = []
    real = patches.reference_attention_map
    monkeypatch.setattr(patches, "reference_attention_map", lambda *given: (made.append(given[0].shape[0]), real(*given))[1])
    for form, branches in (((1.0, 1.0), 1), ((1.0, 2.0), 1), ((5.0, 1.0), 2), ((5.0, 4.0), 2)):
        made.clear()
        steps.one_step(tiny, steps.guider(tiny, 2, *form))
        assert made == [1] * branches * tiny.size.blocks, form


def test_one_speaker_is_the_same_with_cores_patches(tiny):
    """So that what is timed beside ours is the same work."""
    torch.testing.assert_close(tiny.core(1)(), tiny.ours(1)(), atol=1e-5, rtol=1e-5)
    assert (tiny.ours(1)() - tiny.bare()()).abs().max() > 1e-2


def test_the_voices_go_through_the_attention_that_a_node_chose(tiny, monkeypatch):
    """transformer_options' override, as KJNodes sets it for sage attention; the map does not, as it must be exact."""
    keys = []

    def chosen(function, q, k, v, *given, **how):
        keys.append(k.shape[-2])
        return function(q, k, v, *given, **how)

    monkeypatch.setattr(tiny, "extra", {"optimized_attention_override": chosen})
    tiny.ours(2)()
    frames, height, width = tiny.size.grid
    own, voices, one_frame = frames * height * width, 2 * tiny.size.adapter.context_tokens, height * width
    assert keys.count(own) == keys.count(voices) == tiny.size.blocks and one_frame not in keys


def test_what_is_counted_is_alive_at_a_time():
    from multitalk_nodes.lab.benchmarks.counted import count

    def compute():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return b.view(10, 100) @ b.view(100, 10)

    found = count(compute)
    assert (found.operations, found.largest_bytes, found.attention_calls) == (2 * 10 * 10 * 100, 4000, 0)
    assert 8000 <= found.peak_bytes <= 8000 + 8


def test_a_kernel_takes_what_its_operations_or_its_traffic_take():
    from multitalk_nodes.lab.benchmarks.counted import BYTES_A_SECOND, OPERATIONS_A_SECOND, count

    def seconds(compute):
        return count(compute).seconds

    one, two = torch.zeros(1000), torch.zeros(1000, dtype=torch.bfloat16)
    for compute, moved in (
        (lambda: one + one, 12000),  # read twice, as the kernel does
        (lambda: one.view(10, 100).T, 0),
        (lambda: two.copy_(one), 4000 + 2000),
        (lambda: one.zero_(), 4000),
        (lambda: one.mul_(2), 8000),
        (lambda: one[:1].expand(1000) * one, 4 + 8000),
    ):
        assert seconds(compute) == pytest.approx([moved / BYTES_A_SECOND] * 2)
    square = torch.zeros(2000, 2000)
    assert seconds(lambda: square @ square) == pytest.approx([2 * 2000**3 / OPERATIONS_A_SECOND] * 2)
    q, k = torch.zeros(1, 1, 4096, 64), torch.zeros(1, 1, 8, 64)
    fast, slow = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert slow == pytest.approx(2 * fast)
    fast, slow = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k))
    assert slow == pytest.approx(fast), "traffic does not become slower"
    with torch.inference_mode(), pytest.raises(ValueError, match="inference mode"):
        count(lambda: square @ square)


def test_two_ways_are_timed_in_turn_and_the_first_round_does_not_count(monkeypatch):
    from multitalk_nodes.lab.benchmarks import paired

    clock, called = [0.0], []
    monkeypatch.setattr(paired.time, "perf_counter", lambda: clock[0])

    def taking(name, seconds):
        def compute():
            called.append(name)
            clock[0] += seconds.pop(0)

        return compute

    row = paired.compare(taking("a", [100.0, 2.0, 3.0, 8.0]), taking("b", [1.0, 1.0, 2.0, 2.0]), 3)
    assert "".join(called) == "ab" + "ba" + "ab" + "ba"
    assert (row["ratio"], row["lower"], row["upper"], row["seconds"], row["base_seconds"]) == (2.0, 1.75, 3.0, 3.0, 2.0)


def test_what_is_measured_on_a_card_runs_in_its_precision(comfy):
    """WAN's layers keep bfloat16, the voices come in float32, as on a card; one step in every form of guidance."""
    from multitalk_nodes.lab.benchmarks import steps
    from multitalk_nodes.lab.benchmarks.sized import SIZES, Sized

    sized = Sized(SIZES["tiny"], dtype=torch.bfloat16)
    assert sized.weights.tokens(torch.randn(2, 13, 5, 12, 768))[0].shape == (1, 4, 64, 768)
    rows = steps.guided_steps(sized, 2)
    assert [(row["evaluations"], row["forwards"]) for row in rows] == [(1, 1), (2, 1), (2, 1), (3, 1)]
    assert {row["who"] for row in steps.time_steps(sized, 2)} == {"bare", "ours", "core"}


def test_a_page_without_measurements_says_so(tmp_path):
    from multitalk_nodes.lab.benchmarks.performance_page import page

    text = page(tmp_path)
    assert text.count("not measured") > 10 and "≤ 1.10" in text


def test_the_page_in_the_repository_is_that_of_its_files():
    from pathlib import Path

    from multitalk_nodes.lab.benchmarks.performance_page import page

    root = Path(__file__).resolve().parents[2]
    assert (root / "docs" / "measured" / "performance.md").read_text(encoding="utf-8") == page(root / "lab" / "benchmarks" / "results")
    found = json.loads((root / "lab" / "benchmarks" / "results" / "performance_cpu.json").read_text(encoding="utf-8"))
    assert {"device", "date", "versions"} <= found["steps"].keys()


@pytest.mark.gpu
def test_a_step_of_wan_14b_on_a_card(comfy):
    from multitalk_nodes.lab.benchmarks import steps
    from multitalk_nodes.lab.benchmarks.sized import SIZES, Sized

    rows = {(row["who"], row["speakers"]): row for row in steps.time_steps(Sized(SIZES["480p"], "cuda", torch.bfloat16), 3)}
    for speakers, most in ((1, 1.10), (2, 1.12), (4, 1.16)):
        assert rows["ours", speakers]["ratio"] <= most
    assert rows["ours", 2]["peak_memory"] <= 1.05
