"""Settings that go together: the published numbers, each with its source, usable as inputs of the samplers."""

import pytest

from multitalk_nodes.multitalk_core.guidance import branches
from multitalk_nodes.multitalk_core.presets import PRESETS
from multitalk_nodes.multitalk_core.schedule import sigmas
from multitalk_nodes.tests.support.graphs import SAMPLES, Graph, node

PUBLISHED = {  # steps, shift at 480 and 720, text, audio, evaluations a step: the and README's numbers
    "quality": (40, 7, 11, 5, 4, 3),
    "balanced": (40, 7, 11, 5, 4, 3),
    "turbo lightx2v": (4, 5, 5, 1, 2, 2),
    "turbo FusionX": (8, 2, 2, 1, 2, 2),
    "draft": (10, 7, 11, 5, 4, 3),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_numbers(name):
    preset = PRESETS[name]
    steps, at_480, at_720, text, audio, evaluations = PUBLISHED[name]
    assert (preset.steps.value, preset.text_scale.value, preset.audio_scale.value) == (steps, text, audio)
    assert (preset.shift_for("multitalk-480").value, preset.shift_for("multitalk-720").value) == (at_480, at_720)
    assert len(branches(preset.text_scale.value, preset.audio_scale.value)) == evaluations
    assert sigmas(int(preset.steps.value), preset.shift_for("multitalk-480").value).shape == (steps + 1,)
    assert bool(preset.lora) == name.startswith("turbo")


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_says_where_it_comes_from(name):
    found = PRESETS[name].explain("multitalk-720")
    for setting in ("steps", "shift", "text_scale", "audio_scale", "cache"):
        line = next(line for line in found.splitlines() if line.startswith(setting))
        assert len(line.partition(": ")[2]) > 3
    assert ("set MultiTalk Step Cache's table" in found and "table multitalk-720: " in found) == (name == "balanced")
    assert ("LoRA" in found.splitlines()[0]) == name.startswith("turbo")


def test_a_preset_drives_the_sampler_through_the_queue(server):
    graph = Graph(frames=5)
    graph["image"]["inputs"]["image"] = server.upload(SAMPLES / "face.png")
    graph["audio_1"]["inputs"]["audio"] = server.upload(SAMPLES / "voice_1.wav")
    graph["preset"] = node("MultiTalkPreset", preset="turbo lightx2v", size="multitalk-480")
    graph.set("sample", steps=["preset", 0], shift=["preset", 1], text_scale=["preset", 2], audio_scale=["preset", 3])
    graph["about"] = node("PreviewAny", source=["preset", 5])
    assert any("lightx2v" in str(output) for output in server.run(graph.prompt()).values())
