"""A video of any length, in one node."""

from contextlib import ExitStack

from comfy_api.latest import InputImpl, io, ui

from ..comfy_bridge.conditioning import by_time
from ..comfy_bridge.job_key import job_key, jobs_folder, stream_fingerprint
from ..comfy_bridge.long_video import Settings, long_video
from ..comfy_bridge.messages import is_watched, tell
from ..comfy_bridge.output import DEFAULT_PREFIX, OutputPlace, made_with
from ..comfy_bridge.weights import MultiTalkWeights
from ..multitalk_core.families import FAMILIES
from ..multitalk_core.guidance import Projection
from ..multitalk_core.video.job import Job
from ..multitalk_core.video.prompts import parse_prompts
from ..multitalk_core.video.segments import CODECS, WORST
from ..multitalk_core.video.sources import VideoSource
from ..multitalk_core.windows import parse_cuts
from . import inputs
from .base import Node
from .types import CATEGORY, VOICES

NOT_SEEN = frozenset({"filename_prefix", "keep_job"})  # inputs that change no pixel


def _file():
    """What is made of the finished clips."""
    return [
        io.Combo.Input("codec", options=list(CODECS), default="h264", tooltip="h264: an MP4. lossless: an MKV with FFV1 and FLAC."),
        io.Int.Input("quality", default=18, min=0, max=WORST, advanced=True, tooltip="x264's rate factor: less is better, larger."),
        io.String.Input("filename_prefix", default=DEFAULT_PREFIX, tooltip="Where the file goes in the output folder."),
        io.Boolean.Input(
            "keep_job", default=False, advanced=True, tooltip="Keep the clips in output/multitalk_jobs when the video is done."
        ),
    ]


class MultiTalkLongVideo(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkLongVideo",
            display_name="MultiTalk Long Video",
            category=CATEGORY,
            description="A talking video of any length, as long as the voices, into a file. Memory stays that of one clip, and a video "
            "that was stopped goes on where it was when it is queued again.",
            search_aliases=["infinitetalk", "dubbing", "any length", "unlimited", "resume"],
            inputs=[
                io.Model.Input("model", tooltip="A WAN 2.1 image-to-video model, with whatever LoRAs. Not from MultiTalk Conditioning."),
                io.ModelPatch.Input("weights", tooltip="From MultiTalk Model Loader."),
                VOICES.Input("voices", tooltip="From MultiTalk Wav2Vec2 Embeds: the video is as long as they are."),
                io.Image.Input("image", optional=True, tooltip="The picture; masks and boxes are in its pixels. Or connect a video."),
                io.Video.Input("video", optional=True, tooltip="Dubbing: a video whose people get these voices, read frame by frame."),
                io.Vae.Input("vae", tooltip="wan_2.1_vae."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="clip_vision_h. The published models always have it."),
                inputs.side("width"),
                inputs.side("height"),
                *inputs.sampling(io.ControlAfterGenerate.fixed),  # another seed is another job
                io.Combo.Input(
                    "family",
                    options=["auto", *FAMILIES],
                    default="auto",
                    tooltip="How clips hang together. 'auto' is what the weights were trained for.",
                ),
                io.Int.Input("clip_frames", default=81, min=5, max=1001, step=4, advanced=True, tooltip="Frames made at once."),
                io.Int.Input(
                    "motion_frames",
                    default=0,
                    min=0,
                    max=201,
                    advanced=True,
                    tooltip="Frames that a clip takes over from the one before. 0 is the family's: 25 for multitalk, 9 for infinitetalk.",
                ),
                io.Float.Input(
                    "colour",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far every clip's colours are brought to the source's first frame (Lab mean and deviation).",
                ),
                io.String.Input("cuts", default="", tooltip="Times at which a new shot begins, such as 12.5, 1:30. Empty is none."),
                *_file(),
            ],
            outputs=[
                io.Video.Output(tooltip="The finished file."),
                io.Audio.Output(tooltip="The mixed voices."),
                io.String.Output(display_name="report", tooltip="How long, how many clips, how many were there before."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, weights, voices, vae, positive, negative, image=None, video=None, clip_vision=None, **settings):
        if (image is None) == (video is None):
            raise ValueError("Connect either an image or a video: the people in it talk.")
        codec = CODECS[settings["codec"]]
        place = OutputPlace(settings["filename_prefix"], codec.suffix)
        with ExitStack() as stack:
            loaded, chosen = MultiTalkWeights.of(weights), settings_of(settings)
            arrived = {"model": model, "weights": loaded.patcher, "prompts": [positive, negative], "picture": image, "settings": chosen}
            arrived |= {"vae": vae.patcher, "clip_vision": None if clip_vision is None else clip_vision.patcher, "voices": told(voices)}
            source = None
            if video is not None:  # what reads in a stream that is in memory moves it, so the source is opened last
                trim = trimmed(video)
                stream = video.get_stream_source()
                arrived["video"] = [trim, stream_fingerprint(stream)]
                source = stack.enter_context(VideoSource(stream, *trim))
            work = long_video(model, loaded, voices, image, vae, positive, negative, clip_vision, source, chosen)
            key = job_key(cls.hidden.unique_id, cls.hidden.dynprompt.get_node, NOT_SEEN, arrived)
            job = Job(jobs_folder() / key, key, work.plan, codec, settings["quality"])
            about = made_with(cls.hidden.prompt, cls.hidden.extra_pnginfo)
            out, report = work.make(job, codec, place, tell, settings["keep_job"], about, is_watched())
        sound = {"waveform": work.sound.waveform[None], "sample_rate": work.sound.rate}
        shown = ui.PreviewVideo([ui.SavedResult(out.name, place.subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(out)), sound, report, ui=shown)


def settings_of(chosen):
    """The node's inputs as the bridge takes them."""
    projection = Projection(chosen["apg_momentum"], chosen["apg_threshold"]) if chosen["apg"] else None
    same = {name: chosen[name] for name in Settings.__dataclass_fields__ if name in chosen and name != "cuts"}
    return Settings(**same, projection=projection, cuts=parse_cuts(chosen["cuts"]))


def told(voices):
    """What tells voices apart. Embeddings follow from them and from the encoder, which the graph names; their last bits vary."""
    return [voices.speakers, voices.frames, voices.sound, voices.rate]


def trimmed(video):
    """Start and duration of a video that another node has cut."""
    if hasattr(video, "get_active_trim_window"):
        return video.get_active_trim_window()
    names = ("_VideoFromFile__start_time", "_VideoFromFile__duration")  # before 0.19 nothing else tells
    return tuple(float(getattr(video, name, 0.0)) for name in names)


class MultiTalkPromptSchedule(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkPromptSchedule",
            display_name="MultiTalk Prompt Schedule",
            category=CATEGORY,
            description="Prompts that change during a long video: what holds from when until when.",
            search_aliases=["prompt travel", "prompt per segment", "prompt by time"],
            inputs=[
                io.Clip.Input("clip", tooltip="WAN's text encoder."),
                io.String.Input(
                    "prompts",
                    default="A woman talks to the camera.\n0-5s: She smiles while she talks.",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Lines such as '0-5s: …' or '1:30-2:00: …'. What stands before them holds at all other times.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For MultiTalk Long Video: each clip takes the prompt that holds in its middle.")],
        )

    @classmethod
    def execute(cls, clip, prompts):
        if clip is None:
            raise ValueError("There is no text encoder. The checkpoint holds none; connect a CLIPLoader of type 'wan'.")
        return io.NodeOutput(by_time(clip, parse_prompts(prompts)))


NODES = [MultiTalkLongVideo, MultiTalkPromptSchedule]
