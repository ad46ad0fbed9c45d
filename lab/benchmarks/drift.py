"""`python dev.py bench drift`: what becomes of a long video, from its MP4: pictures clip by clip, and lip-sync at its beginning and end.

Drawn faces at 64 × 64 pixels each, with colours matched to the source and not; voices, words and faces are new to the demo model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "lab" / "benchmarks" / "results"
FAMILIES = ("multitalk", "infinitetalk")
SEED = 20_270_000  # of no training, and of no evaluation
CLIP_FRAMES = 81


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py bench drift", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each video (default: %(default)g)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--speakers", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--colours", type=float, nargs="+", default=(0.0, 1.0), help="strengths of the colour matching (default: 0 1)")
    parser.add_argument("--videos", type=int, default=2, help="of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of denoising (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "drift.json")
    parser.add_argument("--plot", type=Path, help="draw the figures here (needs matplotlib)")
    options = parser.parse_args(arguments)
    if options.seconds * 25 < 2 * CLIP_FRAMES:
        parser.error(f"--seconds {options.seconds:g} has no end that is apart from its beginning; give {2 * CLIP_FRAMES / 25:g} or more")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    from .begin import begin

    begin()
    from ..surroundings import surroundings

    found = {"what": __doc__.splitlines()[0], **surroundings(), "steps": options.steps, "seconds": options.seconds, "videos": []}
    kinds = itertools.product(range(options.videos), options.speakers, options.families, options.colours)
    for number, speakers, family, colour in kinds:
        made = measure(number, speakers, family, colour, options)
        found["videos"].append(made)
        print(in_words(made), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(found["videos"], options.plot)
    return 0


def measure(number: int, speakers: int, family: str, colour: float, options: argparse.Namespace) -> dict[str, Any]:
    """One video beside what a perfect model makes: PSNR of every clip's new frames, and own voice's correlation at both ends."""
    import numpy as np
    import torch

    from ...multitalk_core.audio.loudness import voice_energy
    from ...multitalk_core.clock import SAMPLE_RATE
    from ...multitalk_core.families import FAMILIES as RULES
    from ...multitalk_core.people.speakers import Speaker
    from ...multitalk_core.windows import plan_clips
    from ..evaluation.cases import Case, Settings, draw_voices
    from ..evaluation.evaluate import Product, Take, psnr
    from ..evaluation.files import video_parts, write_video
    from ..scenes import scenes

    random = np.random.default_rng((SEED, speakers, number))  # the same faces and voices whatever is done with them
    frames = round(options.seconds * 25)
    layout = scenes.ONE_SMALL if speakers == 1 else scenes.TWO_SMALL
    scene = layout.scene(random)
    voices = draw_voices(random, speakers, frames)
    energies = torch.stack([voice_energy(voice, frames) for voice in voices])
    case = Case("", scene, torch.stack(voices), scenes.act(energies, random), int(random.integers(2**31)))
    heard = tuple(Speaker(voice[None], SAMPLE_RATE, box=box) for voice, box in zip(voices, scene.boxes, strict=True))
    plan = plan_clips(frames, CLIP_FRAMES, RULES[family].motion_frames)
    take = Take(case.picture, heard, plan, Settings(steps=options.steps, family=family), colour, case.seed)
    with tempfile.TemporaryDirectory(prefix="multitalk-drift-") as folder, torch.inference_mode():
        file, truth = Path(folder) / "made.mp4", Path(folder) / "truth.mp4"
        write_video(file, Product(ROOT / "demo" / "weights").make(take))
        starts = [clip.start + clip.drop for clip in plan]
        counts = [clip.keep for clip in plan]
        write_video(truth, (case.truth(start, start + count) for start, count in zip(starts, counts, strict=True)))
        return {
            "number": number,
            "speakers": speakers,
            "family": family,
            "colour": colour,
            "psnr": [psnr(*parts) for parts in zip(video_parts(file, counts), video_parts(truth, counts), strict=True)],
            "own_voice": ends(file, scene.boxes, energies),
            "own_voice_of_truth": ends(truth, scene.boxes, energies),
        }


def ends(file: Path, boxes: list[Any], energies: Any) -> dict[str, list[float]]:
    """Correlation of every mouth with its own voice, in the video's first clip and in its last 81 frames."""
    from ...multitalk_core.lipsync.curves import mouth_opening, pearson
    from ..evaluation.files import read_video

    video = read_video(file)
    parts = {"first": slice(0, CLIP_FRAMES), "last": slice(-CLIP_FRAMES, None)}
    return {
        name: [pearson(mouth_opening(video[part], box), energy[part]) for box, energy in zip(boxes, energies, strict=True)]
        for name, part in parts.items()
    }


def in_words(made: dict[str, Any]) -> str:
    """A line for one video."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    first, last = (f"{mean(made['own_voice'][end]):.3f} ({mean(made['own_voice_of_truth'][end]):.3f})" for end in ("first", "last"))
    kind = f"{made['speakers']} speaker{'s' if made['speakers'] > 1 else ''}, {made['family']}, colour {made['colour']:g}"
    picture = f"PSNR {made['psnr'][0]:.1f} to {made['psnr'][-1]:.1f} dB over {len(made['psnr'])} clips"
    return f"{kind}: {picture}; own voice (ground truth's) {first} in the first clip, {last} in the last"


def plot(videos: list[dict[str, Any]], file: Path) -> None:
    """PSNR by clip, the mean of all videos of a kind, a line for each family and strength."""
    import numpy as np

    from ..plots import figure

    with figure(file) as axes:
        for family, colour in sorted({(video["family"], video["colour"]) for video in videos}):
            curves = np.array([video["psnr"] for video in videos if (video["family"], video["colour"]) == (family, colour)])
            style = "-" if colour else "--"
            axes.plot(range(1, curves.shape[1] + 1), curves.mean(axis=0), style, marker=".", label=f"{family}, colour {colour:g}")
        axes.set(xlabel="clip", ylabel="PSNR of its new frames, dB")
