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
PEOPLE: Bands = (
    (("1 · Who is where", (("LoadImage", "MultiTalkDemoModel"), ("MultiTalkSpeakerBoxes", "MultiTalkPreviewSpeakers"))),),
    (
        ("2 · Who speaks when", (("MultiTalkLoadAudio",), ("MultiTalkDialogue", "MultiTalkWav2VecEmbeds"))),
        ("3 · Make the clip (the demo model needs 8 steps)", (("MultiTalkConditioning",), ("MultiTalkSampler", "MultiTalkDecode"))),
    ),
    (("4 · Into one file, and does everybody follow their voice?", (("CreateVideo", "SaveVideo", "MultiTalkSyncCheck"),)),),
)
LARGE: Bands = (
    (
        (
            "1 · Models",
            (
                ("UNETLoader", "LoraLoaderModelOnly", "MultiTalkModelLoader", "VAELoader"),
                ("MultiTalkWav2VecLoader", "CLIPVisionLoader", "CLIPLoader"),
            ),
        ),
    ),
    (
        ("2 · Who is where", (("LoadImage", "LoadVideo"), ("MultiTalkImageSize", "MultiTalkSpeakerBoxes"), ("MultiTalkPreviewSpeakers",))),
        (
            "3 · Who says what, and how it looks",
            (("MultiTalkLoadAudio",), ("MultiTalkDialogue", "MultiTalkSpeaker"), ("MultiTalkWav2VecEmbeds", "CLIPTextEncode")),
        ),
    ),
    (("4 · The whole video, clip by clip", (("MultiTalkLongVideo",), ("PreviewAny", "MultiTalkSyncCheck"))),),
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
SEVERAL = f"""

**Then try** your own picture and voices, one recording with *mode* **who speaks when**, or a face detector at *faces*.

{MODELS} *MultiTalk Conditioning*. Then set text_scale 5, audio_scale 4, 40 steps, shift 7 and colour 1.

{HELP}"""
DOWNLOADS = """The editor offers the missing files for download (they have 50 GB together). The settings are those of the distilled LoRA: \
4 steps, shift 5, text_scale 1, audio_scale 2. For the best quality bypass the LoRA, and set 40 steps, shift 7, text_scale 5, audio_scale 4.

The video is as long as the voices, and goes on where it was when it is stopped and queued again."""

EXAMPLES = {
    "infinitetalk_one_speaker": Example(
        f"""## A person talks, for as long as you like

1. *Load Image*: a picture of somebody, from the front.
2. *MultiTalk Load Audio*: their voice.
3. Press **Run**.

{DOWNLOADS}

{HELP}""",
        LARGE,
    ),
    "infinitetalk_dialogue": Example(
        f"""## Two people talk with each other

1. *Load Image*: a picture of two people.
2. *MultiTalk Load Audio*: the voice of each, or one recording of both, with *mode* **who speaks when** in *MultiTalk Dialogue*.
3. *MultiTalk Speaker Boxes*: drag the boxes over their faces. *MultiTalk Preview Speakers* shows what the model will see.
4. Press **Run**. *MultiTalk Sync Check* says afterwards whether everybody followed their own voice.

{DOWNLOADS}

{HELP}""",
        LARGE,
    ),
    "infinitetalk_dubbing": Example(
        f"""## Somebody in a video gets a voice

1. *Load Video*: a video of one person.
2. *MultiTalk Load Audio*: the new voice.
3. Press **Run**. *width* 640 and *height* 0 keep the video's shape.

{DOWNLOADS}

{HELP}""",
        LARGE,
    ),
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
    "demo_duet": Example(
        f"""## Two drawn faces talk at once

1. *Load Image*: upload **two_faces.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav** and **voice_2.wav**.
3. Press **Run**. It takes less than a minute on two CPU cores; nothing is downloaded.

{FILES} *MultiTalk Dialogue* lays both voices on one clock: Ben begins 0.2 s after Anna. In *MultiTalk Speaker Boxes* every face \
has a box; drag them. *MultiTalk Preview Speakers* shows who is where before anything is rendered, *MultiTalk Sync Check* afterwards \
whose mouth followed whose voice.{SEVERAL}""",
        PEOPLE,
    ),
    "demo_bystander": Example(
        f"""## One talks, the other listens

1. *Load Image*: upload **two_faces.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav**.
3. Press **Run**. It takes less than a minute on two CPU cores; nothing is downloaded.

{FILES} Ben's box is *silent* in *MultiTalk Speaker Boxes*: he gets a place of his own and hears silence. Without that, a bystander's lips \
may move, too.{SEVERAL}""",
        PEOPLE,
    ),
    "demo_four_people": Example(
        f"""## Four drawn faces talk in turn

1. *Load Image*: upload **four_faces.png**.
2. *MultiTalk Load Audio*: upload **voice_1.wav** and **voice_2.wav**; two people share each of them, with another part of it.
3. Press **Run**. It takes less than a minute on two CPU cores; nothing is downloaded.

{FILES} More than two people are an experiment with the published models, which were trained for two; the demo model was \
trained for four.{SEVERAL}""",
        PEOPLE,
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
