"""To and from other packs."""

from comfy_api.latest import io

from ..multitalk_core.audio.sound import sound_of
from ..multitalk_core.people.wan_wrapper import from_wrapper, to_wrapper
from .base import Node
from .types import CATEGORY, VOICES

WRAPPER_EMBEDS = io.Custom("MULTITALK_EMBEDS")  # of ComfyUI-WanVideoWrapper


class MultiTalkToWanWrapper(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkToWanWrapper",
            display_name="MultiTalk To WanVideoWrapper",
            category=CATEGORY,
            description="Voices for the samplers of ComfyUI-WanVideoWrapper.",
            search_aliases=["multitalk_embeds", "kijai", "convert embeds"],
            inputs=[
                VOICES.Input("voices", tooltip="From MultiTalk Wav2Vec2 Embeds."),
                io.Image.Input("image", optional=True, tooltip="The picture that masks and boxes belong to; needed for several speakers."),
                io.Float.Input("audio_scale", default=1.0, min=0.0, max=100.0, step=0.05, tooltip="The wrapper's audio_scale."),
                io.Float.Input("audio_cfg_scale", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="The wrapper's audio_cfg_scale."),
            ],
            outputs=[WRAPPER_EMBEDS.Output(display_name="multitalk_embeds")],
        )

    @classmethod
    def execute(cls, voices, audio_scale, audio_cfg_scale, image=None):
        size = None if image is None else tuple(image.shape[1:3])
        return io.NodeOutput(to_wrapper(voices, size, audio_scale, audio_cfg_scale))


class MultiTalkFromWanWrapper(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkFromWanWrapper",
            display_name="MultiTalk From WanVideoWrapper",
            category=CATEGORY,
            description="Embeddings of ComfyUI-WanVideoWrapper as voices for MultiTalk Conditioning and Long Video.",
            search_aliases=["multitalk_embeds", "kijai", "convert embeds"],
            inputs=[
                WRAPPER_EMBEDS.Input("multitalk_embeds", tooltip="From the wrapper's MultiTalk Wav2Vec2 Embeds."),
                io.Audio.Input("audio", tooltip="What the video plays; the wrapper's audio output."),
            ],
            outputs=[
                VOICES.Output(display_name="voices"),
                io.Int.Output(display_name="frames", tooltip="Length of the video."),
            ],
        )

    @classmethod
    def execute(cls, multitalk_embeds, audio):
        voices = from_wrapper(multitalk_embeds, *sound_of(audio))
        return io.NodeOutput(voices, voices.frames)


NODES = [MultiTalkToWanWrapper, MultiTalkFromWanWrapper]
