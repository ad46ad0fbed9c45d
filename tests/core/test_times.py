"""Lists of times and names with all sorts of signs: turns, order, start times, cuts and prompts read them alike."""

import pytest
import torch

from multitalk_nodes.multitalk_core.people.dialogue import at_once, in_turn
from multitalk_nodes.multitalk_core.people.timeline import TimelineError, parse_names, parse_turns
from multitalk_nodes.multitalk_core.video.prompts import parse_prompts
from multitalk_nodes.multitalk_core.windows import parse_cuts


@pytest.mark.parametrize(
    "text",
    [
        "A:0-3,B:3-5",
        "A: 0‑3, B: 3―5",
        "A: 0→3; B: 3->5",
        "A：0至3，B：3到5",
        "A: 0to3, B: 3 till 5",
        "A﹕0-3﹐B﹕3-5",
        "A: 0-3، B: 3-5",
        "\ufeffA:\u200b0-3,\u00a0B: 3-5",
        "[A]: 0-3, (B): 3-5",
        "【A】0-3，【B】3-5",
    ],
)
def test_lists_with_all_sorts_of_signs(text):
    timeline = parse_turns(text, 10.0)
    assert timeline.names == ("A", "B") and [(turn.start, turn.stop) for turn in timeline.turns] == [(0, 3), (3, 5)]


def test_names_in_lists():
    assert parse_turns("Speaker 1: 0-3, [SPEAKER_02]: 3-5, R2-D2:5-6, J. K.: 6-7", 10.0).names == (
        "Speaker 1",
        "SPEAKER_02",
        "R2-D2",
        "J. K.",
    )
    assert parse_turns("Anna (guest): 0-3, Anna: 3-5", 10.0).names == ("Anna",)
    assert parse_turns("Anna (guest): 0-3, Anna (host): 3-5", 10.0).names == ("Anna (guest)", "Anna (host)")
    assert parse_turns("ANNA (guest): 0-3", 10.0, ["Anna", "Ben"]).names == ("Anna", "Ben")
    for text in ("A: 0-3 B: 4-5", "A: 0-3, what", "A: 0-3 und so"):
        with pytest.raises(TimelineError, match="does not say who speaks when"):
            parse_turns(text, 10.0)


def test_a_comma_in_turns_is_decimal_where_only_that_makes_turns():
    for text in ("A: 0,5-3,2; B: 3,2-7", "A: 0,5-3,2\nB: 3,2-7", "A：0,5－3,2，B: 3,2-7"):
        assert [(turn.start, turn.stop) for turn in parse_turns(text, 10.0).turns] == [(0.5, 3.2), (3.2, 7)]
    assert [(turn.start, turn.stop) for turn in parse_turns("A: 0-3,5-7", 10.0).turns] == [(0, 3), (5, 7)]
    assert [(turn.start, turn.stop) for turn in parse_turns("A: 0-3,5, B: 4-7", 10.0).turns] == [(0, 3.5), (4, 7)]


def test_other_separators_in_names_in_order_in_starts_and_in_cuts():
    clip = (torch.zeros(1, 8000), 8000)
    for text in ("Anna，Ben", "Anna、Ben", "Anna；Ben", "Anna،\u200fBen", "Anna\nBen"):
        assert parse_names(text) == ("Anna", "Ben")
    for text in ("A，B，A", "A、B、Ａ", "A；B；\u200ba"):
        assert [turn.speaker for turn in in_turn([clip] * 3, text, 0.0, ())[0].turns] == [0, 1, 0]
    for text in ("0，3.5", "0، 3.5", "0、3.5", "０；３．５", "0؛\u00a03.5"):
        assert [turn.start for turn in at_once([clip] * 2, text, ())[0].turns] == [0, 3.5]
        assert parse_cuts(text) == (0, 3.5)
    (first, second) = parse_prompts("０－２：one\n2―4ｓ：two")
    assert (first.start, first.stop, second.start, second.text) == (0, 2, 2, "two")
    for text in ("0，8", "0﹐8", "０，８"):  # no decimal comma
        assert [turn.start for turn in at_once([clip] * 2, text, ())[0].turns] == [0, 8] and parse_cuts(text) == (0, 8)
