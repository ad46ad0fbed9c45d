"""Makes demo/samples: drawn faces with their boxes, a video of one that says nothing, and two synthetic voices.

Run it in the development environment:

    python lab/scenes/make_samples.py

Everything follows from this file, faces.py, train/speech.py and the pinned espeakng-loader.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "demo" / "samples"
SILENT_FRAMES = 88
# espeak-ng's voice, words a minute, pitch, and what is said; " ... " is a pause
VOICES = {
    "voice_1": ("en-us", 150, 42, "Hello! ... My whole mouth is made of numbers."),
    "voice_2": ("en-us+f3", 145, 60, "Shall we go? ... Come on, come on."),
}


def main() -> int:
    SAMPLES.mkdir(exist_ok=True)
    write_pictures()
    write_video()
    write_voices()
    return 0


def write_pictures() -> None:
    """One, two and four faces at the size of the example workflows, and small."""
    from PIL import Image

    from . import faces

    scenes = {
        "face": faces.one_face((128, 128)),
        "two_faces": faces.two_faces((128, 192)),
        "face_small": faces.one_face((64, 64)),
        "two_faces_small": faces.two_faces((64, 128)),
        "four_faces": faces.any_faces(8, 4, (64, 256)),
    }
    for name, scene in scenes.items():
        Image.fromarray((scene.picture() * 255).round().byte().numpy()).save(SAMPLES / f"{name}.png")
        (SAMPLES / f"{name}.json").write_text(json.dumps({"boxes": scene.boxes}) + "\n", encoding="utf-8")


def write_video() -> None:
    """Somebody to be dubbed: a face that moves a little, blinks, and says nothing."""
    import numpy as np
    import torch

    from ...multitalk_core.video.segments import CODECS, to_pixels, write_segment
    from . import faces
    from .scenes import act

    acting = act(torch.zeros(1, SILENT_FRAMES), np.random.default_rng(0))
    frames = faces.one_face((128, 128)).video(acting)
    sway = np.rint(3 * np.sin(np.arange(SILENT_FRAMES) / 12)).astype(int)
    frames = torch.stack([torch.roll(frame, int(shift), dims=1) for frame, shift in zip(frames, sway, strict=True)])
    write_segment(SAMPLES / "silent_face.mp4", to_pixels(frames), CODECS["h264"], 18)


def write_voices() -> None:
    import soundfile

    from ...multitalk_core.clock import SAMPLE_RATE
    from .speech import Voice, synthesise

    for name, (voice, rate, pitch, words) in VOICES.items():
        soundfile.write(SAMPLES / f"{name}.wav", synthesise(words, Voice(voice, rate, pitch)).numpy(), SAMPLE_RATE, subtype="PCM_16")
