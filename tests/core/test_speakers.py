"""Where the speakers are: masks, boxes, the background, and what makes them indistinguishable."""

import itertools

import pytest
import torch

from multitalk_nodes.multitalk_core.errors import SpeakerError
from multitalk_nodes.multitalk_core.notes import noting
from multitalk_nodes.multitalk_core.people.places import box_mask, default_boxes, mask_box, parse_box
from multitalk_nodes.multitalk_core.people.speakers import Speaker, check_places, ref_target_masks, source_masks, token_masks

SIZE = (128, 192)


def speakers(number: int) -> list[Speaker]:
    return [Speaker() for _ in range(number)]


def boxed(*boxes) -> list[Speaker]:
    return [Speaker(box=box) for box in boxes]


def tokens(people, picture=SIZE, video=SIZE) -> torch.Tensor:
    return token_masks(ref_target_masks(source_masks(people, *picture), *video))


# places in the source picture


def test_a_single_speaker_has_all_of_the_picture():
    assert source_masks(speakers(1), 30, 50).all()


def test_two_speakers_have_a_half_each_smaller_by_a_twentieth_on_every_side():
    left, right = source_masks(speakers(2), 200, 400)
    expected = torch.zeros(2, 200, 400)
    expected[0, 10:190, 10:190] = 1
    expected[1, 10:190, 210:390] = 1
    assert torch.equal(torch.stack([left, right]), expected)


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(200, 400), (97, 101), (640, 640), (40, 41)])
def test_parts_go_from_left_to_right_equally_large_and_apart(number, height, width):
    boxes = default_boxes(number, height, width)
    assert len({(x1 - x0, y0, y1) for x0, y0, x1, y1 in boxes} if width % number == 0 else {(y0, y1) for _, y0, _, y1 in boxes}) == 1
    assert all(a[2] < b[0] for a, b in itertools.pairwise(boxes))
    assert boxes[0][0] >= 0 and boxes[-1][2] <= width
    assert source_masks(speakers(number), height, width).sum(dim=0).max() == 1


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ((2, 3, 5, 7), (2, 3, 5, 7)),
        ((2.9, 3.9, 5.9, 7.9), (2, 3, 5, 7)),
        ((-4, -1.5, 3, 4), (0, 0, 3, 4)),
        ((5, 6, 100, 100), (5, 6, 20, 10)),
        ((-5, -5, 500, 500), (0, 0, 20, 10)),
    ],
)
def test_a_box_is_x_and_y_in_whole_pixels_inside_the_picture(box, pixels):
    x0, y0, x1, y1 = pixels
    expected = [[float(x0 <= x < x1 and y0 <= y < y1) for x in range(20)] for y in range(10)]
    assert box_mask(box, 10, 20).tolist() == expected


@pytest.mark.parametrize("factor", [0.5, 1, 2, 3])
def test_a_mask_of_another_size_means_the_same_place(factor):
    height, width = 40, 60
    drawn = torch.zeros(int(height * factor), int(width * factor))
    drawn[: int(20 * factor), int(30 * factor) :] = 0.3
    (mask,) = source_masks([Speaker(mask=drawn)], height, width)
    expected = torch.zeros(height, width)
    expected[:20, 30:] = 1
    assert torch.equal(mask, expected)


def test_a_mask_goes_before_a_box():
    mask = torch.zeros(20, 30)
    mask[5, 5] = 1
    assert torch.equal(source_masks([Speaker(mask=mask, box=(10, 10, 20, 20))], 20, 30)[0], mask)


@pytest.mark.parametrize(
    "lost",
    [
        Speaker(mask=torch.zeros(20, 30)),
        Speaker(box=(5, 5, 5, 9)),
        Speaker(box=(9, 9, 4, 4)),
        Speaker(box=(30, 0, 40, 10)),
        Speaker(box=(-9, -9, 0, 0)),
    ],
    ids=["black mask", "no width", "upside down", "right of it", "left of it"],
)
def test_a_speaker_without_a_place_is_named(lost):
    with pytest.raises(SpeakerError, match="speaker 2 covers nothing"):
        source_masks([Speaker(), lost], 20, 30)


@pytest.mark.parametrize("number", [0, 5])
def test_one_to_four_speakers_are_expected(number):
    with pytest.raises(SpeakerError, match=f"{number} speakers were given; 1 to 4"):
        source_masks(speakers(number), 20, 30)


@pytest.mark.parametrize(
    "text", ["40, 20, 200, 180", "40 20 200 180", " [40,20,200,180] ", "(40.0, 20.0, 200.0, 180.0)", "4e1,2e1 2e2\t180"]
)
def test_a_box_is_four_numbers(text):
    assert parse_box(text) == (40, 20, 200, 180)


@pytest.mark.parametrize("text", ["", "  "])
def test_no_text_is_no_box(text):
    assert parse_box(text) is None


@pytest.mark.parametrize("text", ["1, 2, 3", "1, 2, 3, 4, 5", "a, b, c, d", "1;2;3;4", ","])
def test_what_is_no_box_is_quoted(text):
    with pytest.raises(SpeakerError, match=rf"'{text}' is no box. Write four numbers"):
        parse_box(text)


@pytest.mark.parametrize("text", ["5, 5, 5, 9", "9, 0, 5, 9", "0, 9, 5, 9", "nan, 0, 5, 9", "0, 0, inf, 9", "0, 0, 5, 1e999"])
def test_a_box_without_an_area_is_quoted(text):
    with pytest.raises(SpeakerError, match=f"'{text}' has no area"):
        parse_box(text)


def test_a_speaker_is_made_from_comfyui_s_audio():
    waveform, mask = torch.randn(2, 1, 100), torch.ones(4, 4)
    speaker = Speaker.of({"waveform": waveform, "sample_rate": 44_100.0}, 1.5, mask, (1, 2, 3, 4))
    assert torch.equal(speaker.waveform, torch.cat([waveform[0], waveform[1]], dim=1))
    assert (speaker.rate, speaker.start, speaker.box) == (44_100, 1.5, (1, 2, 3, 4)) and speaker.mask is mask


def test_only_a_silent_speaker_needs_no_audio():
    assert Speaker.of(None, 2.0, None, None, silent=True) == Speaker()
    with pytest.raises(SpeakerError, match="role to 'silent'"):
        Speaker.of(None, None, None, None)


# classes on the model's grids


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(("picture", "video"), [(SIZE, SIZE), ((300, 500), (128, 128)), ((77, 33), (64, 128))])
def test_classes_divide_the_tokens_when_masks_are_apart(number, picture, video):
    masks = source_masks(speakers(number), *picture)
    latents = ref_target_masks(masks, *video)
    assert latents.shape == (number + 1, video[0] // 8, video[1] // 8)
    assert (latents.sum(dim=0) == 1).all()
    grid = token_masks(latents)
    assert grid.shape == (number + 1, video[0] // 16 * (video[1] // 16))
    assert (grid.sum(dim=0) == 1).all()


def test_the_background_is_what_no_speaker_covers():
    grid = tokens(boxed((0, 0, 100, 128), (60, 30, 140, 90))) > 0
    assert torch.equal(grid[-1], ~grid[:-1].any(dim=0))
    assert (grid[0] & grid[1]).any() and grid[-1].any()


def test_nobody_s_background_is_empty():
    assert not tokens(speakers(1))[-1].any()


def test_a_token_belongs_to_the_class_of_its_first_pixel():
    """Nearest neighbour twice, without a change of size: pixel (16 y, 16 x) decides."""
    masks = (torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    grid = token_masks(ref_target_masks(masks, *SIZE))
    assert torch.equal(grid[:2], masks[:, ::16, ::16].flatten(1))


def test_soft_masks_count_from_above_zero():
    soft = torch.zeros(1, *SIZE)
    soft[0, :64] = 0.01
    assert torch.equal(ref_target_masks(soft, *SIZE), ref_target_masks((soft > 0).float(), *SIZE))


# check_places


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_default_places_are_fine(number):
    check_places(tokens(speakers(number)))


def test_places_that_overlap_in_part_are_fine():
    check_places(tokens(boxed((0, 0, 120, 128), (60, 0, 192, 128))))


@pytest.mark.parametrize("small", [1, 15])
def test_a_mask_that_falls_between_the_tokens_is_named(small):
    with pytest.raises(SpeakerError, match="speaker 2 vanishes"):
        check_places(tokens(boxed((0, 0, 96, 128), (97, 1, 97 + small, 16))))


def test_a_face_outside_of_the_crop_is_named():
    """The square in the middle of a wide picture is kept."""
    with pytest.raises(SpeakerError, match="speaker 1 vanishes.*crop"):
        check_places(tokens(boxed((0, 0, 40, 128), (100, 0, 200, 128)), picture=(128, 384), video=(128, 128)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_face_under_the_others_is_named(order):
    """The middle box lies under the union of the two others."""
    boxes = [(0, 0, 96, 128), (64, 0, 128, 128), (96, 0, 192, 128)]
    hidden = order.index(1) + 1
    with pytest.raises(SpeakerError, match=f"speaker {hidden} lies entirely under"):
        check_places(tokens(boxed(*(boxes[i] for i in order))))


def test_two_speakers_in_one_place_are_refused():
    with pytest.raises(SpeakerError, match="speaker 1 lies entirely under"):
        check_places(tokens(boxed((0, 0, 96, 128), (0, 0, 96, 128))))


def test_haze_of_a_soft_mask_does_not_count_and_that_is_said():
    """Two faces apart, each with a haze of 3/255 over the whole picture: a mask that a picture editor made."""
    left, right = torch.full((2, 64, 128), 3 / 255)
    left[16:48, 16:48] = right[16:48, 80:112] = 1.0
    with noting() as notes:
        masks = source_masks([Speaker(mask=left), Speaker(mask=right)], 64, 128)
    assert torch.equal(masks, torch.stack([(left == 1).float(), (right == 1).float()]))
    assert len(notes) == 2 and "1024 of 8192 pixels" in notes[0]
    assert mask_box(left) == (16, 16, 48, 48)


def test_a_soft_edge_is_not_worth_a_word():
    mask = torch.zeros(64, 64)
    mask[16:48, 16:48] = 0.3
    mask[17:47, 17:47] = 1.0
    with noting() as notes:
        assert source_masks([Speaker(mask=mask)], 64, 64).sum() == 900
    assert notes == []
