"""Makes demo/samples: drawn faces with their boxes, and two synthetic voices.

Run it in the development environment, with espeak-ng on the path:

    python demo/make_samples.py

The pictures depend on nothing but faces.py; espeak-ng says the same samples every time, but another version of it may say others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import faces  # beside this file
from PIL import Image

SAMPLES = Path(__file__).parent / "samples"
# espeak-ng's voice, words a minute, pitch, and what is said; " ... " is a pause
VOICES = {
    "voice_1": ("en-us", 150, 42, "Hello! ... My mouth is made of numbers."),
    "voice_2": ("en-gb+f3", 145, 60, "Shall we go? ... Come on, come on."),
}
WORD_GAP = 8  # in espeak-ng's units of 10 ms


def main() -> int:
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        print("espeak-ng is not installed. On Debian and Ubuntu: apt-get install espeak-ng")
        return 1
    SAMPLES.mkdir(exist_ok=True)
    for name, scene in (("face", faces.one_face()), ("two_faces", faces.two_faces())):
        pixels = (scene.picture() * 255).round().byte().numpy()
        Image.fromarray(pixels).save(SAMPLES / f"{name}.png")
        (SAMPLES / f"{name}.json").write_text(json.dumps({"boxes": scene.boxes}) + "\n", encoding="utf-8")
    for name, (voice, speed, pitch, words) in VOICES.items():
        options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(WORD_GAP)]
        subprocess.run([espeak, *options, "-w", str(SAMPLES / f"{name}.wav"), words], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
