"""Inputs that several nodes have alike."""

import comfy.samplers
from comfy_api.latest import io

from ..comfy_bridge.long_video import FileSettings, Settings
from ..comfy_bridge.sampling import Sampling
from ..multitalk_core.errors import SpeakerError
from ..multitalk_core.guidance import Projection
from ..multitalk_core.people.casting import ABSENT
from ..multitalk_core.people.speakers import MAX_SPEAKERS
from ..multitalk_core.windows import parse_cuts
from .types import SPEAKER


def speakers(tooltip):
    """A growing list of speakers; a socket also takes the several that MultiTalk Dialogue or Speaker Boxes hand on."""
    one = SPEAKER.Input("speaker", tooltip="From left to right in the picture; one, or several from MultiTalk Dialogue.")
    template = io.Autogrow.TemplatePrefix(one, prefix="speaker_", min=0, max=MAX_SPEAKERS)
    return io.Autogrow.Input("speakers", template=template, tooltip=tooltip)


def in_order(grown, too_many=()):
    """What is connected to a growing input, by the sockets' numbers.

    Args:
        too_many: keyword arguments that no input has: ComfyUI lets keys beyond the maximum through.
    """
    if too_many:
        raise SpeakerError(
            f"{', '.join(too_many)}: at most {MAX_SPEAKERS} speakers can be connected, speaker_0 to speaker_{MAX_SPEAKERS - 1}."
        )
    by_number = sorted(grown.items(), key=lambda item: int(item[0].rsplit("_", 1)[1]))
    return [value for _, value in by_number if value is not None]


def people(grown, too_many=()):
    """Who is connected to a growing input of speakers; the editor leaves out who is muted or bypassed, and others keep their numbers."""
    connected = in_order(grown, too_many)
    numbers = sorted(int(name.rpartition("_")[2]) for name, value in grown.items() if value is not None)
    by_number = dict(zip(numbers, connected, strict=True))
    return [by_number.get(number, ABSENT) for number in range(max(numbers, default=-1) + 1)]


def seed(control=True):
    """`control`: what the editor does to it after a run; True is another seed every time."""
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=control, tooltip="Another seed, another take."
    )


def sampler_name():
    return io.Combo.Input(
        "sampler_name", options=list(comfy.samplers.SAMPLER_NAMES), default="euler", advanced=True, tooltip="Published: euler."
    )


def text_scale():
    return io.Float.Input(
        "text_scale",
        default=5.0,
        min=0.0,
        max=30.0,
        step=0.1,
        tooltip="How strongly the prompt is followed. 1 (no guidance, an evaluation less a step) for distilled LoRAs.",
    )


def audio_scale():
    return io.Float.Input(
        "audio_scale",
        default=4.0,
        min=0.0,
        max=30.0,
        step=0.1,
        tooltip="How strongly the voices are followed: 3 to 5 moves lips clearly, 2 with distilled LoRAs, 1 is no guidance.",
    )


def apg():
    return [
        io.Boolean.Input("apg", default=False, advanced=True, tooltip="Adaptive projected guidance: less over-saturation at high scales."),
        io.Float.Input("apg_momentum", default=-0.75, min=-1.0, max=1.0, step=0.05, advanced=True, tooltip="APG's momentum."),
        io.Float.Input(
            "apg_threshold",
            default=55.0,
            min=0.0,
            max=10000.0,
            step=1.0,
            advanced=True,
            tooltip="APG's limit for the norm of a difference; 0 is no limit.",
        ),
    ]


def projection_of(apg, apg_momentum, apg_threshold):
    """Adaptive projected guidance as the inputs of `apg` say, or None."""
    return Projection(apg_momentum, apg_threshold) if apg else None


def steps():
    return io.Int.Input("steps", default=40, min=1, max=1000, tooltip="40 for quality; 4 to 8 with a distilled LoRA.")


def shift():
    return io.Float.Input(
        "shift",
        default=7.0,
        min=0.01,
        max=100.0,
        step=0.1,
        tooltip="7 for multitalk-480, 11 for multitalk-720, 2 with the FusionX LoRA. The model's own shift does not matter beside it.",
    )


def sampling(control=True):
    """Everything between a conditioned model and a sampler; `control` as of `seed`."""
    return [seed(control), steps(), shift(), text_scale(), audio_scale(), sampler_name(), *apg()]


def sampling_of(steps, shift, text_scale, audio_scale, sampler_name, **apg):
    """What the inputs of `sampling` say, but for the seed."""
    return Sampling(steps, shift, text_scale, audio_scale, sampler_name, projection_of(**apg))


def long_video_settings(chosen):
    """The widgets of MultiTalk Long Video, as records: what is made, and the file that it goes into."""
    chosen = dict(chosen)
    file = FileSettings(**{name: chosen.pop(name) for name in FileSettings.__dataclass_fields__})
    own = {name: chosen.pop(name) for name in Settings.__dataclass_fields__ if name in chosen}
    return Settings(**own | {"cuts": parse_cuts(own["cuts"])}, sampling=sampling_of(**chosen)), file


def side(name):
    """Width or height of the video."""
    return io.Int.Input(name, default=0, min=0, max=16384, step=16, tooltip="Pixels, from MultiTalk Image Size; 0 follows the picture.")


def conditioned():
    """What MultiTalk Conditioning makes."""
    return [
        io.Model.Input("model", tooltip="From MultiTalk Conditioning."),
        io.Conditioning.Input("positive", tooltip="From MultiTalk Conditioning."),
        io.Conditioning.Input("negative", tooltip="From MultiTalk Conditioning."),
    ]
