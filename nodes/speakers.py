"""Who speaks, when, and where."""

import json

from comfy_api.latest import io, ui

from ..multitalk_core.audio.sound import all_channels, playable, sound_of
from ..multitalk_core.errors import SpeakerError
from ..multitalk_core.people.casting import DrawnBox, everyone, parse_boxes, take_boxes
from ..multitalk_core.people.dialogue import MODES, dialogue
from ..multitalk_core.people.places import faces_of, mask_box, parse_box
from ..multitalk_core.people.speakers import Speaker, source_masks
from ..multitalk_core.people.speech import speech_only
from ..multitalk_core.pictures.people import timeline_picture
from . import inputs
from .audio import as_audio
from .base import Node
from .types import CATEGORY, SPEAKER

AFTER_LAYOUT = -1.0  # start time of a speaker that takes their turn
MOST_CLIPS = 16


class MultiTalkSpeaker(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkSpeaker",
            display_name="MultiTalk Speaker",
            category=CATEGORY,
            description="One person in the picture: what they say, when, and where their face is.",
            search_aliases=["person", "talking head", "who speaks"],
            inputs=[
                io.Audio.Input("audio", optional=True, tooltip="What this person says. Needed unless the role is 'silent'."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the person is in the picture. Without mask and box: an equal part, from left to right.",
                ),
                io.String.Input(
                    "box",
                    default="",
                    tooltip="In place of a mask: x0, y0, x1, y1 (left, top, right, bottom) in pixels of the picture, or in shares of "
                    "it from 0 to 1; left or right for a half; 'rows' before the official row and column lists. Empty is no box.",
                ),
                io.Float.Input(
                    "start",
                    default=AFTER_LAYOUT,
                    min=AFTER_LAYOUT,
                    max=36000.0,
                    step=0.01,
                    tooltip="When the person starts to speak, in seconds. −1 leaves it to the layout of MultiTalk Wav2Vec2 Embeds.",
                ),
                io.Combo.Input(
                    "role",
                    options=["speaks", "silent"],
                    default="speaks",
                    tooltip="'silent' keeps this person's mouth still, whatever is connected.",
                ),
                io.String.Input("name", default="", optional=True, advanced=True, tooltip="What messages and pictures call this person."),
            ],
            outputs=[SPEAKER.Output(display_name="speaker")],
        )

    @classmethod
    def execute(cls, box, start, role, audio=None, mask=None, name=""):
        return io.NodeOutput(
            Speaker.of(
                audio if role == "speaks" else None,
                None if start < 0 else start,
                None if mask is None else mask.reshape(-1, *mask.shape[-2:])[0],
                parse_box(box),
                silent=role == "silent",
                name=name.strip(),
            )
        )


class MultiTalkDialogue(Node):
    @classmethod
    def define_schema(cls):
        clip = io.Audio.Input("audio", tooltip="A voice, a clip of one, or a recording of everybody: see mode.")
        clips = io.Autogrow.TemplatePrefix(clip, prefix="audio_", min=1, max=MOST_CLIPS)
        return io.Schema(
            node_id="MultiTalkDialogue",
            display_name="MultiTalk Dialogue",
            category=CATEGORY,
            description="Who speaks when: clips in turn or at their times, or one recording of everybody with a list, subtitles, or a "
            "channel for each. Whoever does not speak hears silence.",
            search_aliases=["who speaks when", "timeline", "srt", "vtt", "subtitles", "conversation", "duet", "diarization"],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="in turn",
                    tooltip="in turn: clips one after the other. at once: every clip is a speaker with a start time. who speaks when: one "
                    "recording and a list or subtitles. channels: one recording, a speaker on each channel.",
                ),
                io.String.Input(
                    "when",
                    default="",
                    multiline=True,
                    tooltip="in turn: who speaks each clip, such as A, B, A (empty: everybody one). at once: start times such as 0, 3.5. "
                    "who speaks when: A: 0-3.2, B: 3.2-7, or SRT or WebVTT with names. channels: nothing.",
                ),
                io.Float.Input("pause", default=0.0, min=0.0, max=60.0, step=0.05, tooltip="Seconds between clips in turn."),
                io.String.Input("names", default="", tooltip="Names from left to right, such as Anna, Ben. Empty: A, B, C, D."),
                io.Boolean.Input(
                    "clean",
                    default=False,
                    advanced=True,
                    tooltip="Speakers hear speech alone, without noise, music and breath (needs silero-vad). The sound track stays.",
                ),
                io.Autogrow.Input("audios", template=clips, tooltip="The clips, or the one recording."),
            ],
            outputs=[
                SPEAKER.Output(display_name="speakers", tooltip="All of them, for one speaker socket of MultiTalk Wav2Vec2 Embeds."),
                io.Audio.Output(display_name="audio", tooltip="The whole dialogue as it will be heard."),
                io.String.Output(display_name="timeline", tooltip="Who speaks when, as 'who speaks when' takes it."),
                io.Image.Output(display_name="picture", tooltip="Waveforms and turns; red is where two speak at once."),
            ],
        )

    @classmethod
    def execute(cls, mode, when, pause, names, clean, audios, **too_many):
        if too_many:
            raise ValueError(f"{', '.join(too_many)}: at most {MOST_CLIPS} clips can be connected.")
        as_they_are = mode == "channels"  # also those of surround sound
        sounds = [all_channels(audio) if as_they_are else sound_of(audio) for audio in inputs.in_order(audios)]
        made = dialogue(sounds, mode, when, pause, names, speech_only if clean else None)
        picture = timeline_picture(made.timeline, made.tracks, made.sound[0].shape[-1] / made.sound[1])
        return io.NodeOutput(made.speakers, as_audio(*playable(*made.sound)), made.timeline.text, picture[None])


class MultiTalkSpeakerBoxes(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkSpeakerBoxes",
            display_name="MultiTalk Speaker Boxes",
            category=CATEGORY,
            description="Draw a box over every face and say whose it is. Or connect a face detector: faces go to the speakers from left "
            "to right. People without a voice stay silent.",
            search_aliases=["bounding box", "face box", "who is where", "mask speakers", "face detection"],
            inputs=[
                io.Image.Input("image", tooltip="The original picture, the same as for MultiTalk Conditioning or Long Video."),
                io.String.Input(
                    "boxes",
                    default="",
                    socketless=True,  # the editor hides it: web/speaker_boxes.js
                    tooltip="What was drawn: a JSON list of boxes with names, speakers' numbers and silent people, in shares of the "
                    "picture or in its pixels.",
                ),
                io.MultiType.Input(
                    "faces",
                    types=[io.BoundingBox, io.BBOX, io.Mask],
                    optional=True,
                    tooltip="From a face detector, or a mask for each face. Used where nothing is drawn.",
                ),
                io.Combo.Input(
                    "bbox_format",
                    options=["auto", "xyxy", "xywh"],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="What the four numbers of a BBOX are: corners, or a corner and a size. auto takes what all faces can be. "
                    "BOUNDING_BOX and masks need no telling.",
                ),
                inputs.speakers(tooltip="From MultiTalk Dialogue or MultiTalk Speaker; none to make masks and boxes alone."),
            ],
            outputs=[
                SPEAKER.Output(display_name="speakers", tooltip="All of them, for one speaker socket of MultiTalk Wav2Vec2 Embeds."),
                io.Mask.Output(display_name="masks", tooltip="One for each person, in the same order."),
                io.BoundingBox.Output(display_name="bounding_boxes", tooltip="One for each person, in pixels."),
            ],
            is_output_node=True,  # so that detected faces can be seen without a render, and again after the editor was reloaded
        )

    @classmethod
    def execute(cls, image, boxes, speakers, faces=None, bbox_format="auto", **too_many):
        height, width = image.shape[1:3]
        places = parse_boxes(boxes) or [DrawnBox(box) for box in ([] if faces is None else faces_of(faces, (height, width), bbox_format))]
        connected = everyone(inputs.people(speakers, too_many))
        people = take_boxes(connected, places)
        if not people:
            raise SpeakerError("No box is drawn, no face was found, and no speaker is connected. Draw a box over each face.")
        masks = source_masks(people, height, width)
        boxes = bounding_boxes(masks)
        return io.NodeOutput(people, masks, [boxes], ui=editor_view(image, people, boxes, min(len(connected), len(people))))


def bounding_boxes(masks):
    """ComfyUI's BOUNDING_BOX around every mask of one picture."""
    edges = [mask_box(mask) for mask in masks]
    return [{"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0} for x0, y0, x1, y1 in edges]


def editor_view(image, people, boxes, connected):
    """For the box editor (web/speaker_boxes.js): the picture, and who was where in the form of its state.

    Texts under keys of our own: the editor would draw an "images" entry a second time, and count any file among a run's results.
    """
    height, width = image.shape[1:3]
    places = []
    for number, (person, box) in enumerate(zip(people, boxes, strict=True), start=1):
        x0, y0 = box["x"], box["y"]
        edges = (x0 / width, y0 / height, (x0 + box["width"]) / width, (y0 + box["height"]) / height)
        whose = {"speaker": number} if number <= connected else {"silent": True} if connected else {}
        places.append({"box": [round(edge, 4) for edge in edges], **({"name": person.name} if person.name else {}), **whose})
    saved = ui.PreviewImage(image[:1]).as_dict()["images"][0]
    return {"multitalk_picture": [saved["filename"], saved["subfolder"], saved["type"]], "multitalk_boxes": [json.dumps(places)]}


NODES = [MultiTalkSpeaker, MultiTalkDialogue, MultiTalkSpeakerBoxes]
