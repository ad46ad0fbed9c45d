"""Which place in the picture is whose: drawn boxes, found faces, names, silent people."""

import json

import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.errors import SpeakerError
from multitalk_nodes.multitalk_core.notes import noting
from multitalk_nodes.multitalk_core.people.casting import ABSENT, DrawnBox, everyone, parse_boxes, settled, take_boxes
from multitalk_nodes.multitalk_core.people.places import box_mask, faces_of, mask_box, parse_box, pixel_box
from multitalk_nodes.multitalk_core.people.speakers import (
    Speaker,
    hearing_report,
    place_report,
    ref_target_masks,
    source_masks,
    token_masks,
)

LEFT, MIDDLE, RIGHT = (0.0, 0.1, 0.3, 0.9), (0.35, 0.1, 0.6, 0.9), (0.7, 0.1, 1.0, 0.9)
VOICE = torch.ones(1, 100)


def voices(*names):
    return [Speaker(VOICE, 100, name=name) for name in names]


# muted in the editor


def test_where_nobody_has_a_place_the_part_of_who_is_absent_stays_silent():
    anna, ben = voices("Anna", "Ben")
    with noting() as notes:
        assert settled([ABSENT, ben]) == (ABSENT, ben) and settled([anna, ben]) == (anna, ben)
    assert notes == ["Speaker 1 is not connected (is the node muted or bypassed?). The others go on in their own places."]


def test_where_others_have_places_who_is_absent_is_left_out():
    ben = Speaker(VOICE, 100, box=RIGHT, name="Ben")
    assert settled([ABSENT, ben]) == (ben,)


def test_drawn_boxes_keep_their_owners_when_somebody_is_absent():
    (ben,) = voices("Ben")
    for places in ([DrawnBox(LEFT, speaker=1), DrawnBox(RIGHT, speaker=2)], [DrawnBox(LEFT), DrawnBox(RIGHT)]):
        absent, placed = take_boxes([ABSENT, ben], places)
        assert (absent.box, absent.waveform) == (LEFT, None) and (placed.name, placed.box) == ("Ben", RIGHT)
    (placed,) = take_boxes([ABSENT, ben], [DrawnBox(RIGHT)])
    assert (placed.name, placed.box) == ("Ben", RIGHT)


# boxes as text


@pytest.mark.parametrize(
    ("text", "box"), [("0.1, 0.2, 0.5, 0.9", (2, 2, 10, 9)), ("2, 2, 10, 9", (2, 2, 10, 9)), ("0, 0, 1, 1", (0, 0, 20, 10))]
)
def test_a_box_is_in_pixels_or_in_shares(text, box):
    assert pixel_box(parse_box(text), 10, 20) == box


@pytest.mark.parametrize("text", ["rows 1, 2, 9, 10", "Rows: [1, 2, 9, 10]", "row (1 2 9 10)"])
def test_the_official_order_is_taken_where_it_is_marked(text):
    assert parse_box(text) == (2, 1, 10, 9)


def test_halves_are_the_default_halves():
    halves = [Speaker(box=parse_box(side)) for side in ("left", " Right ")]
    assert torch.equal(source_masks(halves, 200, 400), source_masks([Speaker(), Speaker()], 200, 400))
    assert parse_box("top")[3] < 0.5 < parse_box("bottom")[1]


# faces of other nodes


@pytest.mark.parametrize(
    "found",
    [
        [[{"x": 60, "y": 5, "width": 20, "height": 30}, {"x": 10, "y": 6, "width": 20, "height": 30}]],
        [{"x": 60, "y": 5, "width": 20, "height": 30}, {"x": 10, "y": 6, "width": 20, "height": 30}],
        [(60, 5, 80, 35), (10, 6, 30, 36)],
        [[(60, 5, 80, 35), (10, 6, 30, 36)]],
        torch.stack([box_mask((60, 5, 80, 35), 50, 100), box_mask((10, 6, 30, 36), 50, 100)]),
    ],
    ids=["core, by picture", "core, a list", "KJNodes", "KJNodes, by picture", "masks"],
)
def test_faces_come_from_left_to_right(found):
    assert faces_of(found) == [(10, 6, 30, 36), (60, 5, 80, 35)]


def test_a_single_face_and_none():
    assert faces_of({"x": 1, "y": 2, "width": 3, "height": 4}) == faces_of((1, 2, 4, 6)) == [(1, 2, 4, 6)]
    assert faces_of([[]]) == faces_of([]) == faces_of(torch.zeros(2, 5, 5)) == faces_of([[], [(1, 2, 4, 6)]]) == []


def test_four_numbers_are_corners_or_a_corner_and_a_size():
    assert faces_of([(60, 5, 20, 30), (10, 6, 20, 30)]) == [(10, 6, 30, 36), (60, 5, 80, 35)]  # no corners: 20 is left of 60
    assert faces_of([(10, 6, 20, 30)]) == faces_of([(10, 6, 20, 30)], None, "xyxy") == [(10, 6, 20, 30)]
    assert faces_of([(10, 6, 20, 30)], None, "xywh") == [(10, 6, 30, 36)]


@pytest.mark.parametrize("found", [np.array([[1, 2, 30, 40]]), torch.tensor([[1.0, 2, 30, 40]]), [tuple(np.float32([1, 2, 30, 40]))]])
def test_numbers_of_numpy_and_torch_are_numbers(found):
    assert faces_of(found) == [(1, 2, 30, 40)]


def test_masks_of_another_size_mean_the_same_place():
    assert faces_of(torch.stack([box_mask((5, 2, 10, 8), 20, 30)]), (40, 60)) == [(10, 4, 20, 16)]


def test_the_box_around_a_mask():
    assert mask_box(box_mask((3, 4, 7, 9), 20, 30)) == (3, 4, 7, 9)
    assert mask_box(torch.zeros(4, 4)) is None


# places


def test_places_go_from_left_to_right_to_those_who_have_none():
    placed = take_boxes([*voices("", ""), Speaker(VOICE, 100, box=MIDDLE)], [DrawnBox(RIGHT), DrawnBox(LEFT)])
    assert [s.box for s in placed] == [LEFT, RIGHT, MIDDLE]


def test_numbers_and_names_go_first():
    placed = take_boxes(voices("Anna", "Ben", ""), [DrawnBox(LEFT, speaker=3), DrawnBox(MIDDLE, name="ben"), DrawnBox(RIGHT)])
    assert [s.box for s in placed] == [RIGHT, MIDDLE, LEFT]


def test_a_place_gives_a_name_to_who_has_none():
    assert [s.name for s in take_boxes(voices("", "Ben"), [DrawnBox(LEFT, "Anna"), DrawnBox(RIGHT, "Bob", speaker=2)])] == ["Anna", "Ben"]


def test_people_without_a_voice_are_silent_and_come_last():
    placed = take_boxes(voices("Anna"), [DrawnBox(RIGHT, silent=True, name="Ben"), DrawnBox(LEFT), DrawnBox(MIDDLE)])
    assert [(s.box, s.waveform is None, s.name) for s in placed] == [(LEFT, False, "Anna"), (RIGHT, True, "Ben"), (MIDDLE, True, "")]


def test_a_drawn_box_goes_before_a_mask_of_the_speaker_s():
    (placed,) = take_boxes([Speaker(VOICE, 100, mask=torch.ones(4, 4))], [DrawnBox(LEFT, speaker=1)])
    assert placed.box == LEFT and placed.mask is None


def test_boxes_by_order_also_move_speakers_who_have_a_place():
    people = [Speaker(VOICE, 100, box=RIGHT), Speaker(VOICE, 100, box=MIDDLE)]
    assert [s.box for s in take_boxes(people, [DrawnBox(RIGHT), DrawnBox(LEFT)])] == [LEFT, RIGHT]
    assert [s.box for s in take_boxes(people, [DrawnBox(LEFT)])] == [LEFT, MIDDLE]


def test_somebody_who_speaks_is_not_laid_over_somebody_silent():
    with pytest.raises(SpeakerError, match="Speaker 1 has no place: there are 1 speakers, but only 0 with a box"):
        take_boxes(voices(""), [DrawnBox(LEFT, silent=True)])


def test_without_boxes_everybody_keeps_what_they_have():
    people = [*voices("Anna"), Speaker(VOICE, 100, box=RIGHT)]
    assert take_boxes(people, []) == tuple(people)


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ([DrawnBox(LEFT)], r"Speaker 2 \(Ben\) has no place: there are 2 speakers, but only 1 with a box"),
        ([DrawnBox(LEFT, speaker=1), DrawnBox(RIGHT, speaker=1)], r"Speaker 1 \(Anna\) has two boxes"),
        ([DrawnBox(LEFT, speaker=3)], "belongs to speaker 3, but there are only 2"),
        ([DrawnBox(LEFT), DrawnBox(RIGHT), *[DrawnBox(MIDDLE, silent=True)] * 3], "There are 5 speakers, silent ones included"),
    ],
)
def test_places_that_cannot_be_taken_are_told_with_the_speaker(places, why):
    with pytest.raises(SpeakerError, match=why):
        take_boxes(voices("Anna", "Ben"), places)


def test_sockets_bring_one_or_several():
    a, b, c = voices("a", "b", "c")
    assert everyone([a, (b, c)]) == (a, b, c)
    with pytest.raises(SpeakerError, match="There are 5 speakers"):
        everyone([(a, b, c), (a, b)])


# what the editor keeps


def test_the_editor_s_boxes_are_read():
    text = json.dumps([{"box": list(LEFT), "name": " Anna ", "speaker": 2}, {"box": [1, 2, 30, 40], "silent": True, "colour": "#fff"}])
    assert parse_boxes(text) == [DrawnBox(LEFT, "Anna", 2), DrawnBox((1, 2, 30, 40), silent=True)]
    assert parse_boxes(" ") == parse_boxes("[]") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[{", "no JSON"),
        ('{"box": 1}', "no list"),
        ("[1]", "Box 1 has no 'box'"),
        ('[{"box": [0, 0, 1]}]', "Box 1 has no 'box' of four numbers"),
        ('[{"box": [0, 0, 1, "x"]}]', "four numbers were expected"),
        ('[{"box": [0, 0, 1, 1]}, {"box": [0.5, 0, 0.5, 1]}]', "box 2 has no area"),
        ('[{"box": [0, 0, 1, NaN]}]', "box 1 has no area"),
        ('[{"box": [0, 0, 1, 1' + "0" * 400 + "]}]", "box 1 has no area"),
        ("[" * 100_000, "no JSON"),
        ('[{"box": [-0.05, 0.1, 0.4, 0.9]}]', "from 0 to 1"),
        ('[{"box": [0, 0, 1, 1], "speaker": 9}]', "Box 1 belongs to speaker 9"),
        ('[{"box": [0, 0, 1, 1], "speaker": "Anna"}]', "Box 1 belongs to speaker 'Anna'"),
    ],
)
def test_boxes_that_nobody_can_read_are_told_by_number(text, why):
    with pytest.raises(SpeakerError, match=why):
        parse_boxes(text)


# what users see


def tokens(people, size=(64, 128)):
    return token_masks(ref_target_masks(source_masks(people, *size), *size))


def test_the_report_tells_overlaps_small_masks_defaults_and_untrained_numbers():
    def words(*people):
        return "\n".join(place_report(people, tokens(people)))

    assert "neither a mask nor a box" in words(Speaker(), Speaker(name="Ben"))
    assert "Speaker 2 (Ben): " in words(Speaker(), Speaker(name="Ben"))
    assert "4 of them also belong to speaker 2" in words(Speaker(box=(0, 0, 64, 64)), Speaker(box=(48, 0, 128, 64)))
    assert "very little for a mouth" in words(Speaker(box=(0, 0, 16, 32)), Speaker(box=(64, 0, 128, 64)))
    assert "Nothing is left for the background" in words(Speaker(box=(0, 0, 64, 64)), Speaker(box=(64, 0, 128, 64)))
    assert "trained for 2 speakers" in words(*[Speaker()] * 3)
    assert words(Speaker()) == "Speaker 1: 32 of 32 cells."


def test_the_hearing_report_tells_which_voice_wins_where():
    masks = torch.zeros(3, 2, 4)
    masks[0, :, :2], masks[1, :, 2:3], masks[2, :, 3:] = 1, 1, 1
    maps = torch.zeros(3, 1, 2, 4)
    maps[1, :, :, :2], maps[0, :, :, 2], maps[2, :, :, 3] = 1, 1, 1
    maps[0, 0, 0, 0] = 2
    assert hearing_report(maps, masks) == "Place of speaker 1: 75% voice 2, 25% voice 1.\nPlace of speaker 2: 100% voice 1."
