"""What the example workflows say, and where their nodes stand in the editor."""

from __future__ import annotations

from dataclasses import dataclass

# Bands from left to right, each of groups from top to bottom; a group is its title and its columns of node types. The note is above the
# first. About as wide as high: the template browser shrinks a graph until it fits, and the editor hides all text below a scale of 0.57.
Bands = tuple[tuple[tuple[str, tuple[tuple[str, ...], ...]], ...], ...]


@dataclass(frozen=True)
class Example:
    """What an example workflow's note says, and its layout."""

    note: str
    layout: Bands


CLIP: Bands = (
    (("1 · Picture and models", (("LoadImage", "MultiTalkDemoModel"),)),),
    (
        ("2 · Who says what", (("MultiTalkLoadAudio",), ("MultiTalkSpeaker",), ("MultiTalkWav2VecEmbeds",))),
        (
            "3 · Make the clip (the demo model needs 8 steps)",
            (
                ("MultiTalkConditioning", "RandomNoise"),
                ("MultiTalkGuider", "MultiTalkScheduler", "KSamplerSelect"),
                ("SamplerCustomAdvanced", "MultiTalkDecode"),
            ),
        ),
    ),
    (("4 · Pictures and sound into one file", (("CreateVideo", "SaveVideo"),)),),
)
LONG: Bands = (
    (("1 · Face and models", (("LoadImage", "LoadVideo", "MultiTalkDemoModel"),)),),
    (("2 · Who says what", (("MultiTalkLoadAudio",), ("AudioConcat", "MultiTalkSpeaker"), ("MultiTalkWav2VecEmbeds",))),),
    (("3 · The whole video, clip by clip (the demo model needs 8 steps)", (("MultiTalkLongVideo",), ("PreviewAny",))),),
)
FILES = "They are in **ComfyUI/custom_nodes/multitalk-nodes/demo/samples**."
MODELS = """The demo model only knows drawn faces. For photographs, put *Load Diffusion Model* (WAN 2.1 image-to-video), *MultiTalk Model \
Loader*, *Load VAE*, *MultiTalk Wav2Vec2 Loader*, *Load CLIP* with two *CLIP Text Encode* and *Load CLIP Vision* in its place, and \
*MultiTalk Image Size* before"""
HELP = "Every node has a help page: select it and press the **i** above it."
NEXT = f"""

**Then try** another seed in *RandomNoise*, your own voice in *MultiTalk Load Audio*, or *family* **infinitetalk**. One clip is \
*frames* / 25 seconds long; for more, there is *MultiTalk Long Video*.

{MODELS} *MultiTalk Conditioning*. Then set text_scale 5, audio_scale 4, 40 steps, shift 7 and colour 1.

{HELP}"""
GOES_ON = f"""

The video is as long as the voices, whatever they last, and goes into the output folder. **Stop it, close ComfyUI, queue it again: it goes \
on where it was.**

{MODELS} *MultiTalk Long Video*. Then set text_scale 5, audio_scale 4, 40 steps and shift 7.

{HELP}"""

EXAMPLES = {
    "demo_one_speaker": Example(
        f"""## A drawn face talks

1. *Load Image*: upload **face.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav**.
3. Press **Run**. It takes less than a minute on two CPU cores; nothing is downloaded.

{FILES}{NEXT}""",
        CLIP,
    ),
    "demo_two_speakers": Example(
        f"""## Two drawn faces talk

1. *Load Image*: upload **two_faces.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav** and **voice_2.wav**.
3. Press **Run**. It takes less than a minute on two CPU cores; nothing is downloaded.

{FILES} Each *MultiTalk Speaker* has the box of one face: left, top, right, bottom in pixels. Who speaks when is the *layout* of \
*MultiTalk Wav2Vec2 Embeds*.{NEXT}""",
        CLIP,
    ),
    "demo_long_talk": Example(
        f"""## A talk of any length

1. *Load Image*: upload **face.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav** and **voice_2.wav**; *Concatenate Audio* makes one long recording of them.
3. Press **Run**. It takes about a minute on two CPU cores; nothing is downloaded.

{FILES}{GOES_ON}""",
        LONG,
    ),
    "demo_long_dialogue": Example(
        f"""## A dialogue of any length

1. *Load Image*: upload **two_faces.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav** and **voice_2.wav**. They speak in turn.
3. Press **Run**. It takes a minute and a half on two CPU cores; nothing is downloaded.

{FILES} Each *MultiTalk Speaker* has the box of one face.{GOES_ON}""",
        LONG,
    ),
    "demo_dubbing": Example(
        f"""## Somebody in a video gets a voice

1. *Load Video*: upload **silent_face.mp4**.
2. *MultiTalk Load Audio*: upload **voice_1.wav**.
3. Press **Run**. It takes less than a minute on two CPU cores; nothing is downloaded.

{FILES} The video's frames say how the face looks at the beginning of every clip; its last frame stays if the voice is longer. \
This is what the *infinitetalk* weights were made for.{GOES_ON}""",
        LONG,
    ),
}
