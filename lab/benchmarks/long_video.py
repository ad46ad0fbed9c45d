"""`python dev.py bench long-video`: what a long video costs beside its model: memory by length, and time by clip.

Every length is made in a process of its own, through the same code as MultiTalk Long Video: a drawn face at 64 × 64, with the demo's
encoder and with one of the published size (12 layers of 768, random weights), whose embeddings take a hundred times as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ...tools.launch import launched

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "lab" / "benchmarks" / "results"
PUBLISHED = {"layers": 12, "dim": 768}
ENCODERS = ("demo", "published size")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py bench long-video", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60, 300], help="lengths to make (default: 10 60 300)")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--steps", type=int, default=8, help="of denoising, as in the examples (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "long_video.json")
    parser.add_argument("--plot", type=Path, help="draw the figures here (needs matplotlib)")
    parser.add_argument("--read", type=Path, help="measure nothing; tell and draw what such a file has")
    parser.add_argument("--one", nargs=2, metavar=("SECONDS", "ENCODER"), help=argparse.SUPPRESS)  # what a process of its own does
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    if options.read:
        found = json.loads(options.read.read_text(encoding="utf-8"))
        print(*map(in_words, found["runs"]), sep="\n")
        plot_if_asked(options, found)
        return 0
    from .begin import begin

    begin()
    if options.one:
        print(json.dumps(measure(int(options.one[0]), options.one[1], options.steps)))
        return 0
    from ..surroundings import surroundings

    found = {"what": __doc__.splitlines()[0], **surroundings(), "steps": options.steps, "runs": []}
    for encoder in options.encoders:
        for seconds in options.seconds:
            again = launched("lab.benchmarks.long_video", "--steps", str(options.steps), "--one", str(seconds), encoder)
            made = json.loads(subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
            found["runs"].append(made)
            print(in_words(made), flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot_if_asked(options, found)
    return 0


def plot_if_asked(options: argparse.Namespace, found: dict[str, Any]) -> None:
    if options.plot:
        plot(found["runs"], options.plot)


def measure(seconds: int, encoder: str, steps: int) -> dict[str, Any]:
    """One video: resident memory when each clip ends, the most in it, and how much of a clip's time is the model's."""
    import psutil
    import torch

    from ...comfy_bridge.long_video import Output
    from ...multitalk_core.video.disk import Exactly
    from ...multitalk_core.video.job import Job
    from ...multitalk_core.video.segments import CODECS

    video, backend = prepare(seconds, encoder, steps)
    process = psutil.Process()
    clips: list[dict[str, float]] = []
    most, over = [0.0], threading.Event()

    def resident() -> float:
        return process.memory_info().rss / 2**20

    def watch() -> None:
        while not over.wait(0.01):
            most[0] = max(most[0], resident())

    def tell(line: str) -> None:
        if "step" not in line:  # a clip begins, or they are joined
            clips.append({"at": time.monotonic(), "model": sum(backend.seconds.values()), "rss_mb": resident(), "peak_mb": most[0]})
            most[0] = 0.0

    watching = threading.Thread(target=watch)
    watching.start()

    with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder, torch.inference_mode():
        job = Job(Path(folder) / "job", "bench", video.video.clips, CODECS["h264"], 18)
        video.make(job, Output(Exactly(Path(folder) / "out.mp4")), tell)
        ended = time.monotonic()
    over.set()
    watching.join()
    spans = [
        {"seconds": b["at"] - a["at"], "model_seconds": b["model"] - a["model"], "rss_mb": b["rss_mb"], "peak_mb": b["peak_mb"]}
        for a, b in zip(clips, clips[1:], strict=False)
    ]
    return {
        "seconds": seconds,
        "encoder": encoder,
        "family": video.video.family.name,
        "frames": video.video.shots[-1].stop,
        "before_mb": clips[0]["rss_mb"],
        "clips": spans,
        "joining_peak_mb": most[0],
        "joining_seconds": ended - clips[-1]["at"],
    }


def prepare(seconds: int, encoder: str, steps: int, family: str = "multitalk") -> tuple[Any, Any]:
    """The video as the node would make it, and its backend, which counts the model's seconds."""
    from dataclasses import replace

    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from ...comfy_bridge.demo import load_demo
    from ...comfy_bridge.long_video import Settings, long_video
    from ...comfy_bridge.sampling import Sampling
    from ...comfy_bridge.scene import Models
    from ...comfy_bridge.weights import build_weights
    from ...multitalk_core.audio.files import read_sound
    from ...multitalk_core.audio.wav2vec import Wav2Vec2
    from ...multitalk_core.families import FAMILIES
    from ...multitalk_core.model import MultiTalkAdapter
    from ...multitalk_core.people.speakers import Speaker
    from ...multitalk_core.people.voices import encode_voices
    from ..scenes.faces import one_face
    from .timed import TimedBackend

    torch.manual_seed(0)
    demo = load_demo(ROOT / "demo" / "weights", FAMILIES[family])
    weights, listener = demo.weights, demo.audio_encoder
    if encoder != "demo":
        shape = replace(weights.shape, audio_features=PUBLISHED["layers"] * PUBLISHED["dim"])
        adapter = MultiTalkAdapter(shape)
        weights = build_weights({name: t.detach() for name, t in adapter.state_dict().items()}, "random", FAMILIES[family])
        network = Wav2Vec2Model(Wav2Vec2Config(feat_extract_norm="group", do_stable_layer_norm=False)).eval()
        listener = Wav2Vec2(network, stable_layer_norm=False, do_normalize=False, **PUBLISHED)
    waveform, rate = read_sound(ROOT / "demo" / "samples" / "voice_1.wav")
    waveform = waveform.repeat(1, -(-seconds * rate // waveform.shape[1]))[:, : seconds * rate]
    with torch.inference_mode():
        voices = encode_voices([Speaker(waveform, rate)], listener, "sequential")
    settings = Settings(0, 0, 1, Sampling(steps, 3.0, 1.0, 1.0), "auto", 81, 0, 1.0, ())
    picture = one_face().picture()[None]
    video = long_video(Models(demo.model, weights, demo.vae, demo.prompt, demo.prompt), voices, picture, None, settings)
    backend = TimedBackend.of(video.backend)
    return replace(video, backend=backend), backend


def in_words(run: dict[str, Any]) -> str:
    """A line for one video."""
    clips = run["clips"]
    beside = statistics.median(1 - clip["model_seconds"] / clip["seconds"] for clip in clips)
    line = f"{run['seconds']} s, encoder {run['encoder']}: {len(clips)} clips, {beside:.1%} of a clip's time beside the model, joined in "
    line += f"{run['joining_seconds']:.2f} s; {run['before_mb']:.0f} MB before"
    if len(clips) > 8:
        line += (
            f", {clips[0]['rss_mb']:.0f} after the first clip, then {growth(run, 'rss_mb'):+.2f} MB a minute of video; the most in a clip "
        )
        line += (
            f"{growth(run, 'peak_mb'):+.2f} MB a minute; the fastest clip of the last quarter takes {pace(run):.2f} of the first quarter's"
        )
    return line


def growth(run: dict[str, Any], what: str) -> float:
    """MB a minute of video, from the first quarter's median to the last one's; the first clip is left out."""
    values = [clip[what] for clip in run["clips"][1:]]
    quarter = len(values) // 4
    minutes = (len(values) - quarter) / len(run["clips"]) * run["frames"] / 25 / 60
    return (statistics.median(values[-quarter:]) - statistics.median(values[:quarter])) / minutes


def pace(run: dict[str, Any]) -> float:
    """How much longer late clips take than early ones. The fastest of each: others share the machine, and only ever make clips slower."""
    seconds = [clip["seconds"] for clip in run["clips"][1:]]
    quarter = len(seconds) // 4
    return min(seconds[-quarter:]) / min(seconds[:quarter])


def plot(runs: list[dict[str, Any]], file: Path) -> None:
    """Memory over the video, a line for each run."""
    from .. import plots

    with plots.figure(file) as axes:
        for run in runs:
            seconds = [(i + 1) * run["seconds"] / len(run["clips"]) for i in range(len(run["clips"]))]
            style = "-" if run["encoder"] == "demo" else "--"
            axes.plot(seconds, [clip["peak_mb"] for clip in run["clips"]], style, marker=".", label=f"{run['seconds']} s, {run['encoder']}")
        axes.set(xlabel="seconds of video that are finished", ylabel="most resident memory in the clip, MB", ylim=(0, None))
