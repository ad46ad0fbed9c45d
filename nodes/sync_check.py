"""Whether mouths follow their voices, after a render."""

import json
from contextlib import ExitStack

from comfy_api.latest import io

from ..comfy_bridge.video_input import trimmed
from ..multitalk_core.clock import FPS
from ..multitalk_core.lipsync.check import check_sync, own_tracks, video_parts
from ..multitalk_core.lipsync.mouths import regions_of
from ..multitalk_core.people.places import faces_of
from ..multitalk_core.pictures.lipsync import sync_picture
from ..multitalk_core.video.sources import VideoSource
from .base import Node, with_report
from .types import CATEGORY, VOICES

PART = 32  # frames of a video that are decoded together


class MultiTalkSyncCheck(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkSyncCheck",
            display_name="MultiTalk Sync Check",
            category=CATEGORY,
            description="Measures a finished video: whose mouth follows whose voice, and how late. Tells exchanged masks, shifted sound "
            "and mouths that do not keep still.",
            search_aliases=["lip sync", "lipsync score", "audio delay", "quality check", "swapped speakers"],
            inputs=[
                VOICES.Input("voices", tooltip="From MultiTalk Wav2Vec2 Embeds: those that the video was made with."),
                io.Video.Input("video", optional=True, tooltip="The finished video, of any frame rate. Either this or images."),
                io.Image.Input("images", optional=True, tooltip="The finished frames, at 25 a second. Either these or a video."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The original picture. Needed where the video has another size or shape: speakers' boxes belong to it.",
                ),
                io.MultiType.Input(
                    "faces",
                    types=[io.BoundingBox, io.BBOX, io.Mask],
                    optional=True,
                    tooltip="A face in the video's own pixels for each speaker, from left to right, in place of the speakers' own boxes "
                    "and masks.",
                ),
                io.Int.Input("max_lag", default=5, min=0, max=12, tooltip="Frames by which a mouth may come late or early; one is 0.04 s."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Mouths and voices over time, and the matrix of both."),
                io.String.Output(display_name="report", tooltip="What holds for each speaker, in words."),
                io.String.Output(display_name="values", tooltip="JSON: correlation and lag of every mouth with every voice, and verdicts."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, voices, max_lag, video=None, images=None, image=None, faces=None):
        if (video is None) == (images is None):
            raise ValueError("Connect either a video or images: what is to be checked.")
        with ExitStack() as stack:
            if images is not None:
                size, parts = images.shape[1:3], images.split(PART)
            else:
                seconds = video.get_duration()
                trim = trimmed(video)
                source = stack.enter_context(VideoSource(video.get_stream_source(), *trim))  # last: what reads a stream moves it
                size, parts = source(0).shape[1:3], video_parts(source, round(seconds * FPS), PART)
            picture = None if image is None else tuple(image.shape[1:3])
            regions = regions_of(voices.speakers, *size, picture, None if faces is None else faces_of(faces, size))
            check = check_sync(parts, regions, voices.speakers, own_tracks(voices), max_lag)
        return with_report(cls, sync_picture(check)[None], check.report, json.dumps(check.values))


NODES = [MultiTalkSyncCheck]
