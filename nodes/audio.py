"""Voices in: files, and the encoder that listens to them."""

import hashlib
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..comfy_bridge.encoder import as_encoder, load_encoder
from ..multitalk_core.audio.files import read_channels
from ..multitalk_core.audio.sound import CHANNEL_NAMES, pick_channel, playable, to_stereo
from ..multitalk_core.errors import AudioError
from ..multitalk_core.people.voices import encode_voices
from . import inputs
from .base import Node
from .types import CATEGORY, VOICES


def as_audio(waveform, rate, names=()):
    """A sound [C, N] as ComfyUI's AUDIO; `names` are its channels', where there are more than two and they are known."""
    return {"waveform": waveform[None], "sample_rate": rate, CHANNEL_NAMES: names}


class MultiTalkLoadAudio(Node):
    @classmethod
    def define_schema(cls):
        folder = folder_paths.get_input_directory()
        files = folder_paths.filter_files_content_types(os.listdir(folder), ["audio", "video"])
        return io.Schema(
            node_id="MultiTalkLoadAudio",
            display_name="MultiTalk Load Audio",
            category=CATEGORY,
            description="A voice from an audio file, or the sound track of a video.",
            search_aliases=["load voice", "load speech", "audio from video"],
            inputs=[
                io.Combo.Input(
                    "audio", options=sorted(files), upload=io.UploadType.audio, tooltip="An audio or video file in the input folder."
                ),
                io.Float.Input("start", default=0.0, min=0.0, max=36000.0, step=0.01, tooltip="Seconds to skip at the beginning."),
                io.Float.Input("duration", default=0.0, min=0.0, max=36000.0, step=0.01, tooltip="Seconds to take; 0 takes everything."),
                io.Combo.Input(
                    "channel",
                    options=["all", "left", "right"],
                    default="all",
                    tooltip="One side of a stereo file, for recordings with a person on each side. 'all' keeps the file's channels.",
                ),
                io.Custom("AUDIO_UI").Input("audioUI", optional=True, tooltip="Plays what was loaded."),
            ],
            outputs=[io.Audio.Output(tooltip="At the file's own rate and channels.")],
        )

    @classmethod
    def execute(cls, audio, start, duration, channel, audioUI=None):
        if missing := cls._missing(audio):  # a linked name is known only now
            raise AudioError(missing)
        recording = read_channels(Path(folder_paths.get_annotated_filepath(audio)), start, duration)
        names = recording.names if channel == "all" else ()
        waveform = pick_channel(recording.waveform, channel)
        played = playable(to_stereo(waveform, names), recording.rate)
        return io.NodeOutput(as_audio(waveform, recording.rate, names), ui=ui.PreviewAudio(as_audio(*played), cls=cls))

    @classmethod
    def validate_inputs(cls, audio):
        return True if audio is None else cls._missing(audio) or True  # None: it is linked, and comes when the graph runs

    @classmethod
    def _missing(cls, audio):
        """What is wrong with a file's name; None for one that is there."""
        if audio and isinstance(audio, str) and folder_paths.exists_annotated_filepath(audio):
            return None
        return f"The audio file '{audio}' is not in the input folder. Upload it, or choose another."

    @classmethod
    def fingerprint_inputs(cls, audio, **_):
        if audio is None:  # linked: what names the file counts already, and the file is not known yet
            return ""
        digest = hashlib.sha256()
        with open(folder_paths.get_annotated_filepath(audio), "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


class MultiTalkWav2VecLoader(Node):
    @classmethod
    def define_schema(cls):
        files = [f for f in folder_paths.get_filename_list("audio_encoders") if f.endswith(".safetensors")]
        return io.Schema(
            node_id="MultiTalkWav2VecLoader",
            display_name="MultiTalk Wav2Vec2 Loader",
            category=CATEGORY,
            description="The speech encoder MultiTalk was trained with: chinese-wav2vec2-base.",
            search_aliases=["audio encoder", "wav2vec", "speech encoder"],
            inputs=[
                io.Combo.Input(
                    "encoder_name", options=files, tooltip="A Wav2Vec2 file in models/audio_encoders (a Hugging Face folder works, too)."
                ),
                io.Combo.Input(
                    "normalise",
                    options=["auto", "on", "off"],
                    default="auto",
                    advanced=True,
                    tooltip="Whether samples are brought to zero mean and unit variance first. 'auto' follows the encoder's own files.",
                ),
            ],
            outputs=[io.AudioEncoder.Output()],
        )

    @classmethod
    def execute(cls, encoder_name, normalise):
        path = Path(folder_paths.get_full_path_or_raise("audio_encoders", encoder_name))
        return io.NodeOutput(load_encoder(path, {"auto": None, "on": True, "off": False}[normalise]))


class MultiTalkWav2VecEmbeds(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkWav2VecEmbeds",
            display_name="MultiTalk Wav2Vec2 Embeds",
            category=CATEGORY,
            description="Listens to all speakers on one clock, and mixes the video's sound track.",
            search_aliases=["audio embeds", "wav2vec embeds", "dialogue"],
            inputs=[
                io.AudioEncoder.Input("audio_encoder", tooltip="From MultiTalk Wav2Vec2 Loader, or core's Load Audio Encoder."),
                io.Combo.Input(
                    "layout",
                    options=["sequential", "parallel"],
                    default="sequential",
                    tooltip="sequential: one after the other. parallel: all from the beginning. A speaker's own start time wins.",
                ),
                io.Boolean.Input(
                    "level",
                    default=True,
                    advanced=True,
                    tooltip="Bring every voice to −23 LUFS before listening, as published. The sound track keeps its loudness.",
                ),
                inputs.speakers(tooltip="One to four speakers; more than two is experimental."),
            ],
            outputs=[
                VOICES.Output(display_name="voices"),
                io.Audio.Output(display_name="audio", tooltip="All speakers mixed, at the sources' best quality."),
                io.Int.Output(display_name="frames", tooltip="Length of the video at 25 frames a second."),
            ],
        )

    @classmethod
    def execute(cls, audio_encoder, layout, level, speakers, **too_many):
        connected = inputs.people(speakers, too_many)
        voices = encode_voices(connected, as_encoder(audio_encoder), layout, level, Path(folder_paths.get_temp_directory()))
        return io.NodeOutput(voices, as_audio(*playable(voices.sound, voices.rate)), voices.frames)


NODES = [MultiTalkLoadAudio, MultiTalkWav2VecLoader, MultiTalkWav2VecEmbeds]
