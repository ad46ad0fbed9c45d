"""Guidance, schedule, sampling and decoding."""

from comfy_api.latest import io

from ..comfy_bridge.clip import decode_clip
from ..comfy_bridge.guider import guide
from ..comfy_bridge.sampling import sample_clip
from ..comfy_bridge.step_cache import cache_steps
from ..multitalk_core.clock import FPS
from ..multitalk_core.schedule import sigmas
from ..multitalk_core.step_cache import FIRST_STEPS, TABLES, Rule
from . import inputs
from .base import Node
from .types import CATEGORY, VOICES


class MultiTalkGuider(Node):
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
    def execute(cls, model, positive, negative, text_scale, audio_scale, **apg):
        return io.NodeOutput(guide(model, positive, negative, text_scale, audio_scale, inputs.projection_of(**apg)))


class MultiTalkScheduler(Node):
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


class MultiTalkSampler(Node):
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
    def execute(cls, model, positive, negative, latent, seed, **chosen):
        sampling = inputs.sampling_of(**chosen)
        guider = guide(model, positive, negative, sampling.text_scale, sampling.audio_scale, sampling.projection)
        return io.NodeOutput(sample_clip(guider, latent, sampling, seed))


class MultiTalkStepCache(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkStepCache",
            display_name="MultiTalk Step Cache",
            category=CATEGORY,
            description="TeaCache: steps that would change little take over what the model's blocks added before. Faster, less exact.",
            search_aliases=["teacache", "tea cache", "easycache", "speed", "skip steps"],
            inputs=[
                io.Model.Input("model", tooltip="WAN 2.1, before or after MultiTalk Conditioning."),
                io.Float.Input(
                    "threshold",
                    default=0.2,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much change is passed over; higher is faster. Published: 0.2 to 0.5. 0 takes the cache away.",
                ),
                io.Combo.Input(
                    "table",
                    options=list(TABLES),
                    default="multitalk-480",
                    tooltip="For the published models, by the video's size. 'none', for other models: the bare distance between steps.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=FIRST_STEPS,
                    min=0,
                    max=1000,
                    advanced=True,
                    tooltip="Steps (noise levels) at the beginning that are always made. Published: 5, of 40.",
                ),
                io.Int.Input(
                    "last_steps", default=0, min=0, max=1000, advanced=True, tooltip="Steps at the end that are always made. Published: 0."
                ),
            ],
            outputs=[io.Model.Output(tooltip="For MultiTalk Conditioning, Guider, Sampler or Long Video.")],
        )

    @classmethod
    def execute(cls, model, threshold, table, first_steps, last_steps):
        return io.NodeOutput(cache_steps(model, Rule(threshold, TABLES[table], first_steps, last_steps)))


class MultiTalkDecode(Node):
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


NODES = [MultiTalkGuider, MultiTalkScheduler, MultiTalkSampler, MultiTalkStepCache, MultiTalkDecode]
