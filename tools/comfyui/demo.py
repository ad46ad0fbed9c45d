"""The demo: a drawn face talks, made by the pack's nodes in a real ComfyUI process; then its lips are held against the voice.

Run by `python dev.py demo`, in the environment that dev.py makes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "demo" / "samples"
FACE_HEIGHT = 84  # pixels, hair to chin; in the middle of what the demo model was trained on (docs/measured/demo-model.md)
SHORT_SIDE, LONGEST_SIDE = 128, 256  # pixels; it was trained on 128×128 and 192×128
MAX_SPEAKERS = 4
NOTES = "multitalk_notes"  # in what a node reports: what it assumed
CRUDE = (
    "The demo model was trained on drawn faces, seen from the front. On a photograph or a painting it can only be crude: expect a "
    "blurred face, and lips that may not move."
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Make a face talk with the embedded demo model, on the CPU.")
    parser.add_argument("--image", type=a_file, help="a picture with a face (default: drawn faces, one and two)")
    parser.add_argument(
        "--audio", type=a_file, action="append", default=[], help="speech, made whole; again for another person, who speaks then"
    )
    parser.add_argument(
        "--box", type=a_box, action="append", default=[], metavar="X0,Y0,X1,Y1", help="a person's face, hair to chin, in pixels"
    )
    parser.add_argument("--out", type=Path, default=Path("multitalk-demo.mp4"), help="the MP4 to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    if bool(options.image) != bool(options.audio):
        parser.error("--image and --audio belong together: give both, or neither for the drawn faces")
    if options.box and len(options.box) != len(options.audio):
        parser.error(
            f"{len(options.box)} --box were given for {len(options.audio)} --audio; give one for each, from left to right, or none"
        )
    if len(options.audio) > MAX_SPEAKERS:
        parser.error(f"at most {MAX_SPEAKERS} --audio can be given")
    if options.out.is_dir():
        parser.error(f"--out {options.out} is a folder; name the file to write, such as {options.out / 'talk.mp4'}")
    return options


def a_file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"'{text}' is not a file")
    return Path(text)


def a_box(text: str) -> list[float]:
    try:
        x0, y0, x1, y1 = box = [float(edge) for edge in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no box; write left,top,right,bottom in pixels, such as 120,40,380,360") from error
    if not (x1 > x0 >= 0 and y1 > y0 >= 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no box: right must be greater than left, and bottom greater than top")
    return box


def main() -> int:
    options = parse(sys.argv[1:])
    from ..processes import leave_on_signals
    from .server import ComfyServer, ServerError

    leave_on_signals()
    written: list[str] = []
    try:
        scenes = [own_scene(options)] if options.image else drawn_scenes(options.out)
        began = time.monotonic()
        with ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT) as running:
            say(began, "ComfyUI is running")
            for scene in scenes:
                began = time.monotonic()
                made = make(running, scene)
                written.append(str(made))
                say(began, f"{scene['title']}: {made}")
                print("\n".join(f"   {line}" for line in measure(made, scene)), flush=True)
    except (ServerError, OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as stopped:
        print(f"demo: stopped, and ComfyUI with it; written: {', '.join(written) or 'nothing'}.", file=sys.stderr)
        return getattr(stopped, "code", 130)
    return 0


def drawn_scenes(out: Path) -> list[dict[str, Any]]:
    """One speaker, and a dialogue of two."""
    boxes = json.loads((SAMPLES / "two_faces.json").read_text(encoding="utf-8"))["boxes"]
    one = {"title": "one speaker", "graph": "demo_one_speaker", "files": [SAMPLES / "face.png", SAMPLES / "voice_1.wav"]}
    two = {
        "title": "a dialogue",
        "graph": "demo_two_speakers",
        "files": [SAMPLES / "two_faces.png", *sorted(SAMPLES.glob("voice_*.wav"))[:2]],
    }
    one |= {"boxes": [json.loads((SAMPLES / "face.json").read_text(encoding="utf-8"))["boxes"][0]], "out": out}
    two |= {"boxes": boxes, "out": out.with_stem(out.stem + "-dialogue")}
    return [one, two]


def own_scene(options: argparse.Namespace) -> dict[str, Any]:
    print(CRUDE)
    return {"title": "your picture", "graph": None, "files": [options.image, *options.audio], "boxes": options.box, "out": options.out}


def make(server: Any, scene: dict[str, Any]) -> Path:
    """Upload, queue, wait, and copy the MP4 to where it is wanted; its absolute path."""
    picture, *voices = [server.upload(file) for file in scene["files"]]
    if scene["graph"]:
        graph = json.loads((ROOT / "workflows" / "api" / f"{scene['graph']}.json").read_text(encoding="utf-8"))
    else:
        graph = own_graph(picture, voices, scene)
    scene["seconds"] = [n["inputs"]["duration"] for n in graph.values() if n["class_type"] == "MultiTalkLoadAudio"]
    with Progress(server) as progress:
        progress.prompt = server.queue(graph, progress.client)
        outputs = server.wait(progress.prompt, timeout=math.inf)
    for note in [note for node in outputs.values() for note in node.get(NOTES, ())]:
        print(f"   {note}")
    video = next(file for file in server.files(outputs) if file.suffix == ".mp4")
    out = scene["out"].absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(video, out))


class Progress:
    """What ComfyUI says of the prompt that runs, in a line of the terminal, or a line now and then where there is none."""

    def __init__(self, server: Any) -> None:
        self.client, self.prompt = uuid.uuid4().hex, ""
        self._url, self._ready = f"{server.url}/ws?clientId={self.client}", threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        from ...multitalk_client.__main__ import Bar

        self._bar = Bar(stream=sys.stdout)
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._listening.cancel)
        self._thread.join(10)
        self._bar.end()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._listen())

    async def _listen(self) -> None:
        import aiohttp  # ComfyUI's own

        from ...multitalk_client.queue import progress_of

        self._loop, self._listening = asyncio.get_running_loop(), asyncio.current_task()
        with suppress(aiohttp.ClientError):  # it has died, which whoever waits learns
            async with aiohttp.ClientSession() as session, session.ws_connect(self._url, max_msg_size=0) as socket:
                self._ready.set()
                async for message in socket:
                    is_word = message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
                    if is_word and (progress := progress_of(message.data, self.prompt)):
                        self._bar(progress)
        self._ready.set()


def own_graph(picture: str, voices: list[str], scene: dict[str, Any]) -> dict[str, Any]:
    """The workflow of a long dialogue with the user's picture, voices and boxes, at the size that the demo model knows."""
    graph = json.loads((ROOT / "workflows" / "api" / "demo_long_dialogue.json").read_text(encoding="utf-8"))
    by_class = {node["class_type"]: number for number, node in graph.items()}
    width, height = fitted_size(scene["files"][0], scene["boxes"])
    print(
        f"   made at {width}×{height} pixels" + ("" if scene["boxes"] else "; with --box the face gets the size that the demo model knows")
    )
    graph[by_class["LoadImage"]]["inputs"]["image"] = picture
    graph[by_class["MultiTalkLongVideo"]]["inputs"] |= {"width": width, "height": height}
    loader, speaker = (graph[by_class[name]]["inputs"] for name in ("MultiTalkLoadAudio", "MultiTalkSpeaker"))
    embeds = graph[by_class["MultiTalkWav2VecEmbeds"]]["inputs"]
    graph = {number: node for number, node in graph.items() if node["class_type"] not in ("MultiTalkLoadAudio", "MultiTalkSpeaker")}
    for name in [name for name in embeds if name.startswith("speakers.")]:
        del embeds[name]
    for index, voice in enumerate(voices):
        box = ", ".join(str(edge) for edge in scene["boxes"][index]) if scene["boxes"] and len(voices) > 1 else ""
        audio, who = f"audio_{index}", f"speaker_{index}"
        graph[audio] = {"class_type": "MultiTalkLoadAudio", "inputs": {**loader, "audio": voice}}
        graph[who] = {"class_type": "MultiTalkSpeaker", "inputs": {**speaker, "audio": [audio, 0], "box": box}}
        embeds[f"speakers.{who}"] = [who, 0]
    return graph


def picture_size(picture: Path) -> tuple[int, int]:
    """Width and height as ComfyUI loads the picture: turned as its camera says."""
    from PIL import Image, ImageOps

    with Image.open(picture) as image:
        return ImageOps.exif_transpose(image).size


def fitted_size(picture: Path, boxes: list[list[float]]) -> tuple[int, int]:
    """Width and height in multiples of 16 at which the faces are as large as those that the demo model knows."""
    width, height = picture_size(picture)
    scale = SHORT_SIDE / min(width, height)
    if boxes:
        scale = FACE_HEIGHT * len(boxes) / sum(box[3] - box[1] for box in boxes)
    scale = min(scale, LONGEST_SIDE / max(width, height))
    return tuple(max(32, round(side * scale / 16) * 16) for side in (width, height))


def measure(video: Path, scene: dict[str, Any]) -> list[str]:
    """How well each mouth follows each voice, from the finished MP4, the face boxes and the lengths of the voices' turns."""
    if not scene["boxes"]:
        return ["lip-sync not measured: say where each face is with --box X0,Y0,X1,Y1"]
    lines = []
    for number, row in enumerate(correlations(video, scene), start=1):
        values = [f"voice {i}: {value:5.2f}" for i, value in enumerate(row, start=1)]
        lines.append(f"correlation of mouth {number} with " + ", ".join(values))
    return lines


def correlations(video: Path, scene: dict[str, Any]) -> list[list[float]]:
    """A row for every mouth, a column for every voice."""
    import torch

    from ...multitalk_core.audio.files import read_sound
    from ...multitalk_core.audio.loudness import voice_energy
    from ...multitalk_core.audio.sound import mono_16k
    from ...multitalk_core.lipsync.curves import mouth_opening, pearson

    faces = read_faces(video, scene)
    frames = len(faces[0][0])
    sound = mono_16k(*read_sound(video))
    begin = 0
    voices = []
    for file, seconds in zip(scene["files"][1:], scene["seconds"], strict=True):  # each has their turn of the MP4's own sound
        length = mono_16k(*read_sound(file, duration=seconds)).shape[0]
        turn = torch.zeros_like(sound)
        turn[begin : begin + length] = sound[begin : begin + length]
        voices.append(voice_energy(turn, frames))
        begin += length
    mouths = [mouth_opening(*face) for face in faces]
    return [[pearson(mouth, voice) for voice in voices] for mouth in mouths]


def in_the_video(box: list[float], scene: dict[str, Any], video: tuple[int, int]) -> tuple[float, ...]:
    """A box of the picture where the video of this width and height shows it: scaled to cover and cropped in the middle."""
    width, height = picture_size(scene["files"][0])
    scale = max(video[0] / width, video[1] / height)
    left, top = (width * scale - video[0]) / 2, (height * scale - video[1]) / 2
    return tuple(edge * scale - offset for edge, offset in zip(box, (left, top, left, top), strict=True))


def read_faces(video: Path, scene: dict[str, Any]) -> list[tuple[Any, tuple[float, ...]]]:
    """For every box the file's pictures of that face alone, [F, H, W, 3] in 0…1, and the box in them: a long video is never held whole."""
    import av
    import numpy as np
    import torch

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        boxes = [in_the_video(box, scene, (stream.width, stream.height)) for box in scene["boxes"]]
        corners = [[max(0, int(edge)) for edge in box] for box in boxes]
        seen: list[list[Any]] = [[] for _ in boxes]
        for frame in container.decode(stream):
            pixels = frame.to_ndarray(format="rgb24")
            for kept, (x0, y0, x1, y1) in zip(seen, corners, strict=True):
                kept.append(pixels[y0 : y1 + 1, x0 : x1 + 1].copy())
    inside = [(box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0) for box, (x0, y0, _, _) in zip(boxes, corners, strict=True)]
    return [(torch.from_numpy(np.stack(kept)).float() / 255, box) for kept, box in zip(seen, inside, strict=True)]


def say(began: float, what: str) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] demo: {what}", flush=True)
