"""What other packs hand over: lazy AUDIO, and the wrapper's dictionary in and out."""

from collections.abc import Mapping

import pytest
import torch

from multitalk_nodes.multitalk_core.errors import SpeakerError
from multitalk_nodes.multitalk_core.people.places import box_mask
from multitalk_nodes.multitalk_core.people.speakers import Speaker, source_masks
from multitalk_nodes.multitalk_core.people.voices import Voices
from multitalk_nodes.multitalk_core.people.wan_wrapper import from_wrapper, to_wrapper

SIZE = (48, 64)
FEATURES = torch.randn(2, 20, 12, 768, generator=torch.Generator().manual_seed(0))
SOUND = torch.zeros(1, 12_800)


def voices(*speakers):
    return Voices(speakers, tuple(FEATURES[: len(speakers)]), 20, SOUND, 16_000)


class LazyAudio(Mapping):
    """As VideoHelperSuite makes it: nothing is decoded before the first key is read."""

    def __init__(self):
        self.reads = 0

    def __getitem__(self, key):
        self.reads += 1
        return {"waveform": torch.ones(1, 2, 100), "sample_rate": 44100}[key]

    def __iter__(self):
        return iter(("waveform", "sample_rate"))

    def __len__(self):
        return 2


def test_a_lazy_audio_is_read_by_its_keys():
    audio = LazyAudio()
    assert Speaker.of(None, None, None, None, silent=True).waveform is None and audio.reads == 0
    assert Speaker.of(audio, None, None, None).waveform.shape == (2, 100)


def test_the_wrapper_gets_features_and_masks_with_the_background_last():
    made = to_wrapper(voices(Speaker(box=(0, 0, 20, 48)), Speaker()), SIZE, 1.5, 2.0)
    assert [f.shape for f in made["audio_features"]] == [(20, 12, 768)] * 2
    assert (made["audio_scale"], made["audio_cfg_scale"]) == (1.5, 2.0)
    masks = made["ref_target_masks"]
    assert masks.shape == (3, *SIZE) and torch.equal(masks[0], box_mask((0, 0, 20, 48), *SIZE))
    assert torch.equal(masks[:2].amax(dim=0) + masks[2], torch.ones(SIZE))


def test_one_speaker_needs_no_masks_and_several_need_the_picture():
    assert to_wrapper(voices(Speaker()), None)["ref_target_masks"] is None
    with pytest.raises(SpeakerError, match="Connect the picture"):
        to_wrapper(voices(Speaker(), Speaker()), None)


def test_there_and_back_is_the_same():
    before = voices(Speaker(box=(0, 0, 20, 48)), Speaker(box=(30, 0, 60, 48)))
    after = from_wrapper(to_wrapper(before, SIZE), SOUND, 16_000)
    assert after.frames == 20 and torch.equal(torch.stack(list(after.tracks)), FEATURES)
    assert torch.equal(source_masks(after.speakers, *SIZE), source_masks(before.speakers, *SIZE))


def test_the_wrapper_s_own_dictionary_is_taken_in_half_precision_and_without_background():
    embeds = {"audio_features": [FEATURES[0].half(), FEATURES[1].half()], "audio_scale": 1.0, "audio_cfg_scale": 1.0}
    made = from_wrapper({**embeds, "ref_target_masks": torch.ones(2, *SIZE)}, SOUND, 16_000)
    assert made.tracks[0].dtype == torch.float32 and made.speakers[1].mask.shape == SIZE
    assert from_wrapper({**embeds, "ref_target_masks": None}, SOUND, 16_000).speakers == (Speaker(), Speaker())


def test_the_wrapper_s_silent_embeddings_are_a_tensor(caplog):
    assert len(from_wrapper({"audio_features": FEATURES[0]}, SOUND, 16_000).tracks) == 1
    assert "fps 25" not in caplog.text
    from_wrapper({"audio_features": FEATURES[0]}, torch.zeros(1, 32_000), 16_000)
    assert "0.80 s at 25 frames a second, but the audio 2.00 s" in caplog.text


@pytest.mark.parametrize(
    ("embeds", "why"),
    [
        ({}, "no 'audio_features'"),
        ({"audio_features": []}, "no 'audio_features'"),
        ({"audio_features": [FEATURES[0], FEATURES[1][:5]]}, "the same for all"),
        ({"audio_features": [FEATURES[0, 0]]}, "the same for all"),
        ({"audio_features": [FEATURES[0] * torch.nan]}, "not numbers"),
        ({"audio_features": [FEATURES[0][:0]]}, "empty"),
        ({"audio_features": [FEATURES[0]], "ref_target_masks": [1]}, r"masks have shape \(\)"),
        ({"audio_features": [FEATURES[0]], "ref_target_masks": torch.ones(4, *SIZE)}, r"masks have shape \(4, 48, 64\) for 1 speakers"),
    ],
)
def test_what_is_no_dictionary_of_the_wrapper_s_is_told(embeds, why):
    with pytest.raises(SpeakerError, match=why):
        from_wrapper(embeds, SOUND, 16_000)
