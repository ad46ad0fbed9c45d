"""A video of any length, in one node."""

import json

from comfy_api.latest import InputImpl, io, ui

from ..comfy_bridge.conditioning import by_time
from ..comfy_bridge.long_video import Queued, run_long_video
from ..comfy_bridge.output import DEFAULT_PREFIX
from ..comfy_bridge.scene import Models
from ..comfy_bridge.weights import MultiTalkWeights
from ..multitalk_core.families import FAMILIES
from ..multitalk_core.video.prompts import parse_prompts
from ..multitalk_core.video.segments import CODECS, WORST
from . import inputs
from .base import Node
from .types import CATEGORY, VOICES

REPORT = "multitalk_report"  # in the run's result


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
                io.String.Output(display_name="report_json", tooltip="The same for programs, as JSON."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, weights, voices, vae, positive, negative, image=None, video=None, clip_vision=None, **chosen):
        models = Models(model, MultiTalkWeights.of(weights), vae, positive, negative, clip_vision)
        settings, file = inputs.long_video_settings(chosen)
        graph = cls.hidden
        queued = Queued(graph.unique_id, graph.dynprompt.get_node, graph.prompt, graph.extra_pnginfo)
        made = run_long_video(models, voices, image, video, settings, file, queued)
        sound = {"waveform": made.sound.waveform[None], "sample_rate": made.sound.rate}
        saved = ui.SavedResult(made.file.name, made.subfolder, io.FolderType.output)
        shown = {**ui.PreviewVideo([saved]).as_dict(), REPORT: [made.report.as_json()]}  # ComfyUI's history shows no outputs
        outputs = (InputImpl.VideoFromFile(str(made.file)), sound, made.report.in_words(), json.dumps(made.report.as_json()))
        return io.NodeOutput(*outputs, ui=shown)


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
