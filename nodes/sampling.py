"""Guidance, schedule, sampling and decoding."""

from comfy_api.latest import io

from ..comfy_bridge.clip import decode_clip
from ..comfy_bridge.guider import MultiTalkGuider as Guider
from ..comfy_bridge.sampling import sample_clip
from ..multitalk_core.guidance import Projection
from ..multitalk_core.schedule import sigmas
from ..multitalk_core.wav2vec import FPS
from . import inputs
from .types import CATEGORY, VOICES


class MultiTalkGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkGuider",
            display_name="MultiTalk Guider",
            category=CATEGORY,
            description="Guidance by the prompt and by the voices, for Sampler Custom Advanced.",
            search_aliases=["audio cfg", "cfg", "apg"],
            inputs=[
                *inputs.conditioned(),
                inputs.text_scale(),
                inputs.audio_scale(),
                *inputs.apg(),
            ],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(cls, model, positive, negative, text_scale, audio_scale, apg, apg_momentum, apg_threshold):
        projection = Projection(apg_momentum, apg_threshold) if apg else None
        return io.NodeOutput(Guider(model, positive, negative, text_scale, audio_scale, projection))


class MultiTalkScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkScheduler",
            display_name="MultiTalk Scheduler",
            category=CATEGORY,
            description="The published noise schedule; none of core's schedulers ends as low.",
            search_aliases=["sigmas", "shift", "timesteps"],
            inputs=[inputs.steps(), inputs.shift()],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, steps, shift):
        return io.NodeOutput(sigmas(steps, shift))


class MultiTalkSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkSampler",
            display_name="MultiTalk Sampler",
            category=CATEGORY,
            description="Guider, scheduler and sampler in one, with the published settings.",
            search_aliases=["ksampler", "multitalk sampling"],
            inputs=[
                *inputs.conditioned(),
                io.Latent.Input("latent", tooltip="From MultiTalk Conditioning."),
                *inputs.sampling(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps, shift, text_scale, audio_scale, sampler_name, apg, apg_momentum, apg_threshold
    ):
        projection = Projection(apg_momentum, apg_threshold) if apg else None
        guider = Guider(model, positive, negative, text_scale, audio_scale, projection)
        return io.NodeOutput(sample_clip(guider, latent, sigmas(steps, shift), sampler_name, seed))


class MultiTalkDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkDecode",
            display_name="MultiTalk Decode",
            category=CATEGORY,
            description="Latents to pictures, colours matched to the source picture, ending with the audio. Connect to Create Video.",
            search_aliases=["vae decode", "trim to audio"],
            inputs=[
                io.Latent.Input("samples", tooltip="What a sampler made of MultiTalk Conditioning's latent."),
                io.Vae.Input("vae", tooltip="wan_2.1_vae, as before."),
                VOICES.Input("voices", tooltip="From MultiTalk Wav2Vec2 Embeds: the pictures end where they end."),
                io.Float.Input(
                    "colour",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far every frame's colours are brought to the source picture's (Lab mean and deviation); 0 leaves them.",
                ),
            ],
            outputs=[
                io.Image.Output(),
                io.Audio.Output(tooltip="The mixed voices, as long as the pictures."),
                io.Float.Output(display_name="fps", tooltip="25, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, samples, vae, voices, colour):
        images, audio = decode_clip(samples, vae, voices, colour)
        return io.NodeOutput(images, audio, float(FPS))


NODES = [MultiTalkGuider, MultiTalkScheduler, MultiTalkSampler, MultiTalkDecode]
