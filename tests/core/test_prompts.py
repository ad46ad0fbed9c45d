"""Prompts by time: what a user writes, and which of them a clip gets."""

import math
from dataclasses import astuple

import pytest
import torch

from multitalk_nodes.multitalk_core.video.prompts import parse_prompts

END = math.inf


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a man talks", [(0, END, "a man talks")]),
        ("two\nlines", [(0, END, "two\nlines")]),
        ("0-5s: a\n5-10s: b", [(0, 5, "a"), (5, END, "b")]),
        ("0-5: a\n\n8-10: b\nand c", [(0, 8, "a"), (8, END, "b\nand c")]),
        ("8-10: b\n0-5: a", [(0, 8, "a"), (8, END, "b")]),
        ("usual\n2-5: a", [(0, 2, "usual"), (2, 5, "a"), (5, END, "usual")]),
        ("usual\n0-: a", [(0, END, "a")]),
        ("3-5: a", [(0, END, "a")]),
        ("-5s: a\n5s-: b", [(0, 5, "a"), (5, END, "b")]),
        ("0.5 s – 1:30: a\n1:30-1:02:03.5: b", [(0, 90, "a"), (90, END, "b")]),
        ("0-5:3 people: they talk", [(0, END, "3 people: they talk")]),
        ("well-lit: a room\n-: a dash", [(0, END, "well-lit: a room\n-: a dash")]),
        ("0-5:\n5-6: b", [(0, 5, ""), (5, END, "b")]),
        ("3-4 people, and a 2-year-old child", [(0, END, "3-4 people, and a 2-year-old child")]),
    ],
)
def test_what_is_written_holds_when(text, expected):
    assert [astuple(prompt) for prompt in parse_prompts(text)] == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("5s: she smiles", "'5s: she smiles' begins like a time"),
        ("0-5 sec: a", "begins like a time"),
        ("[0-5s] a", "begins like a time"),
        ("00:00:01.000 --> 00:00:02.000", "begins like a time"),
        ("0-5s she smiles", "begins like a time"),
        ("5-: a\n7-8: b", r"'a' \(5s to the end\)"),
        ("", "empty"),
        (" \n ", "empty"),
        ("5-2s: a", "'5-2s: a' ends before it begins"),
        ("0-5s: a\n4-6s: b", r"'a' \(0-5s\) and 'b' \(4-6s\) overlap"),
    ],
)
def test_what_means_nothing_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        parse_prompts(text)


@pytest.fixture(scope="module")
def text_encoder(comfy):
    """ComfyUI's CLIP, very small."""
    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.supported_models_base import ClipTarget

    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 32}
    torch.manual_seed(0)
    clip = comfy.sd.CLIP(ClipTarget(SD1Tokenizer, SD1ClipModel), model_options={"clip_l_model_config": small})
    for parameter in clip.cond_stage_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return clip


@torch.inference_mode()
def test_each_moment_has_the_conditioning_of_its_prompt(text_encoder):
    from nodes import CLIPTextEncode

    from multitalk_nodes.comfy_bridge.conditioning import at_second
    from multitalk_nodes.nodes.long_video import MultiTalkPromptSchedule

    schedule = MultiTalkPromptSchedule.execute(text_encoder, "she talks\n2-5s: she laughs").result[0]
    for second, text in (
        (0, "she talks"),
        (1.99, "she talks"),
        (2, "she laughs"),
        (4.99, "she laughs"),
        (5, "she talks"),
        (1e6, "she talks"),
    ):
        found, expected = at_second(schedule, second), CLIPTextEncode().encode(text_encoder, text)[0]
        assert len(found) == 1 and torch.equal(found[0][0], expected[0][0])
    plain = CLIPTextEncode().encode(text_encoder, "always")[0]
    assert at_second(plain, 3) == plain


@torch.inference_mode()
def test_without_a_text_encoder_it_says_what_to_connect(comfy):
    from multitalk_nodes.nodes.long_video import MultiTalkPromptSchedule

    with pytest.raises(ValueError, match="CLIPLoader"):
        MultiTalkPromptSchedule.execute(None, "a")


@pytest.mark.parametrize("line", ["0,5-1,5s: she smiles", "０．５－１．５：she smiles", "0.5~1.5: she smiles", "0.5 to 1.5s: she smiles"])
def test_times_with_other_signs(line):
    assert [(p.start, p.stop, p.text) for p in parse_prompts(f"usual\n{line}")][1] == (0.5, 1.5, "she smiles")
