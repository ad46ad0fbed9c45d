"""Seeing that it is right, before a long render."""

from comfy_api.latest import io

from ..comfy_bridge.clip import PICTURE
from ..comfy_bridge.conditioning import PictureError
from ..comfy_bridge.guider import guide
from ..comfy_bridge.label_map import watch_maps
from ..comfy_bridge.scene import fit_speakers
from ..multitalk_core.clock import FPS
from ..multitalk_core.people.casting import everyone
from ..multitalk_core.people.speakers import hearing_report, place_report
from ..multitalk_core.pictures.people import labels_picture, speakers_picture
from ..multitalk_core.windows import latent_frames
from . import inputs
from .base import Node, with_report
from .types import CATEGORY, SPEAKER, VOICES


class MultiTalkPreviewSpeakers(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkPreviewSpeakers",
            display_name="MultiTalk Preview Speakers",
            category=CATEGORY,
            description="Shows who is where before a long render: the picture as the model will see it, with masks, names, the grid of "
            "cells, and the background hatched.",
            search_aliases=["check masks", "preview masks", "who is where", "token grid"],
            inputs=[
                io.Image.Input("image", tooltip="The original picture, the same as for MultiTalk Conditioning or Long Video."),
                io.MultiType.Input(
                    "speakers",
                    types=[SPEAKER, VOICES],
                    tooltip="Speakers from MultiTalk Dialogue or Speaker Boxes, or voices from MultiTalk Wav2Vec2 Embeds.",
                ),
                inputs.side("width"),
                inputs.side("height"),
            ],
            outputs=[
                io.Image.Output(display_name="picture"),
                io.String.Output(display_name="report", tooltip="How many cells each speaker has, overlaps, and what else to know."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, speakers, width, height):
        people = everyone([getattr(speakers, "speakers", speakers)])
        picture, _, tokens = fit_speakers(people, image, width, height)
        shown = speakers_picture(picture[0], tokens, [speaker.name for speaker in people])[None]
        return with_report(cls, shown, "\n".join(place_report(people, tokens)))


class MultiTalkLabelMap(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkLabelMap",
            display_name="MultiTalk Label Map",
            category=CATEGORY,
            description="Which voice each region of the picture hears: samples up to one step, and shows the speaker maps of one block.",
            search_aliases=["attention map", "heat map", "which voice", "l-rope", "debug masks"],
            inputs=[
                *inputs.conditioned(),
                io.Latent.Input("latent", tooltip="From MultiTalk Conditioning."),
                io.Int.Input("block", default=1, min=1, max=1000, tooltip="Which of the model's blocks; WAN 14B has 40."),
                io.Int.Input("step", default=1, min=1, max=1000, tooltip="At which step to look; the steps before it are made, too."),
                io.Float.Input("second", default=0.0, min=0.0, max=60.0, step=0.04, tooltip="Which moment of the clip to show."),
                *inputs.sampling(io.ControlAfterGenerate.fixed),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Who hears whom, then the map of each speaker and of the background."),
                io.String.Output(display_name="report", tooltip="How much of each speaker's place hears which voice."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, block, step, second, seed, **chosen):
        if PICTURE not in latent:
            raise PictureError("The latent has lost its picture. Connect the latent of MultiTalk Conditioning directly.")
        sampling = inputs.sampling_of(**chosen)
        guider = guide(model, positive, negative, sampling.text_scale, sampling.audio_scale, sampling.projection)
        maps, masks = watch_maps(guider, latent, sampling, seed, block, step)
        at = min(latent_frames(round(second * FPS) + 1) - 1, maps.shape[1] - 1)
        shown = labels_picture(latent[PICTURE][0], maps[:, at])[None]
        return with_report(cls, shown, hearing_report(maps, masks))


NODES = [MultiTalkPreviewSpeakers, MultiTalkLabelMap]
