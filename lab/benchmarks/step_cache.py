"""`python dev.py bench step-cache`: what step caches save on the demo model, and what they cost in pictures and in lip-sync.

MultiTalk Step Cache (TeaCache) and core's EasyCache at five thresholds each, against the same video without a cache. Faces, voices and
words are new to the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "lab" / "benchmarks" / "results"
SEED = 20_290_000  # of no training, and of no other measurement
THRESHOLDS = (0.05, 0.1, 0.2, 0.4, 0.8)
CACHES = ("TeaCache", "EasyCache")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py bench step-cache", description=__doc__.splitlines()[0])
    parser.add_argument("--one", type=int, default=4, help="clips of one speaker (default: %(default)s)")
    parser.add_argument("--two", type=int, default=2, help="clips of two (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of denoising (default: %(default)s)")
    parser.add_argument("--audio-scale", type=float, default=2.0, help="above 1, two evaluations a step (default: %(default)g)")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--seed", type=int, default=SEED, help="of faces, voices and noise (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "step_cache.json")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    from .begin import begin

    begin()
    from ..surroundings import surroundings

    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    found = {"what": __doc__.splitlines()[0], **surroundings(), **settings, "videos": [], "rows": []}
    for kind, count in (("one", options.one), ("two", options.two)):
        for number in small(kind, count, options.seed):
            found["videos"] += videos(kind, number, options)
            found["rows"] = rows(found["videos"])
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{kind}: case {number} done", flush=True)
    print(table(found["rows"]))
    return 0


def small(kind: str, count: int, seed: int) -> list[int]:
    """Numbers of the first cases whose faces are 64 × 64 pixels."""
    from ..evaluation.cases import Scope, layout_of

    numbers = (number for number in itertools.count() if layout_of(kind, number, Scope(seed=seed, quick=True)).endswith("_SMALL"))
    return list(itertools.islice(numbers, count))


def videos(kind: str, number: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One case without a cache, then with each cache at each threshold."""
    import torch

    from ...multitalk_core.clock import SAMPLE_RATE
    from ...multitalk_core.people.speakers import Speaker
    from ..evaluation.cases import Scope, Settings, draw_case, plan_of
    from ..evaluation.evaluate import Product, Take, psnr

    scope = Scope(seed=options.seed, quick=True)
    case = draw_case(kind, number, scope)
    heard = tuple(Speaker(voice[None], SAMPLE_RATE, box=box) for voice, box in zip(case.voices, case.boxes, strict=True))
    settings = Settings(steps=options.steps, audio_scale=options.audio_scale)
    take = Take(case.picture, heard, plan_of(kind, scope), settings, 0.0, case.seed)
    product = Product(ROOT / "demo" / "weights")
    demo = product.demo(settings.family)
    made, plain = [], None
    for cache, threshold in [("none", 0.0), *((cache, threshold) for cache in CACHES for threshold in options.thresholds)]:
        product._demos[settings.family] = dataclasses.replace(demo, model=caching(demo.model, cache, threshold))
        with torch.inference_mode(), Evaluations(demo.model) as evaluations:
            frames = (torch.cat(list(product.make(take))).clamp(0, 1) * 255).round() / 255
        plain = frames if plain is None else plain
        row = {"kind": kind, "number": number, "cache": cache, "threshold": threshold, "evaluations": evaluations.made}
        made.append({**row, "psnr": psnr(frames, plain), "own_voice": own_voices(frames, case)})
    return made


def caching(model: Any, cache: str, threshold: float) -> Any:
    """The model behind a cache's node; everything but the threshold as the node proposes it."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    from ...comfy_bridge.step_cache import cache_steps
    from ...multitalk_core.step_cache import TABLES, Rule

    if cache == "TeaCache":
        return cache_steps(model, Rule(threshold, TABLES["none"]))  # no polynomial was fitted to the demo model
    return EasyCacheNode.execute(model, threshold, 0.15, 0.95, False)[0] if cache == "EasyCache" else model


class Evaluations:
    """Counts the branches that go through the model's blocks."""

    def __init__(self, model: Any) -> None:
        self.first, self.made = model.model.diffusion_model.blocks[0], 0

    def __enter__(self) -> Evaluations:
        self.hook = self.first.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    def _count(self, _block: Any, _inputs: Any, keywords: dict[str, Any]) -> None:
        self.made += len(keywords["transformer_options"]["cond_or_uncond"])


def own_voices(frames: Any, case: Any) -> list[float]:
    """Correlation of every mouth with its own voice."""
    from ...multitalk_core.audio.loudness import voice_energy
    from ...multitalk_core.lipsync.curves import mouth_opening, pearson

    pairs = zip(case.boxes, case.voices, strict=True)
    return [pearson(mouth_opening(frames, box), voice_energy(voice, frames.shape[0])) for box, voice in pairs]


def rows(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over clips (PSNR, evaluations) and voices (lip-sync) of each cache and threshold; the worst of each too."""
    plain = {(video["kind"], video["number"]): video for video in made if video["cache"] == "none"}
    found = []
    for cache, threshold in dict.fromkeys((video["cache"], video["threshold"]) for video in made):
        chosen = [video for video in made if (video["cache"], video["threshold"]) == (cache, threshold)]
        without = [plain[video["kind"], video["number"]] for video in chosen]
        own = [voice for video in chosen for voice in video["own_voice"]]
        lost = [a - b for v, w in zip(chosen, without, strict=True) for a, b in zip(w["own_voice"], v["own_voice"], strict=True)]
        found.append(
            {
                "cache": cache,
                "threshold": threshold,
                "clips": len(chosen),
                "voices": len(own),
                "saved": 1 - sum(v["evaluations"] for v in chosen) / sum(w["evaluations"] for w in without),
                "psnr": mean([video["psnr"] for video in chosen]),
                "psnr_least": min(video["psnr"] for video in chosen),
                "own_voice": mean(own),
                "lost": mean(lost),
                "lost_most": max(lost),
            }
        )
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(found: list[dict[str, Any]]) -> str:
    """The rows as they stand in docs/measured/step-cache.md."""
    heads = ("cache", "threshold", "evaluations saved", "PSNR (least), dB", "own voice", "lost (most)")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in found:
        if row["cache"] == "none":
            lines.append(f"| none | | 0 % | | {row['own_voice']:.3f} | |")
            continue
        same = row["psnr_least"] >= 100  # not one bit differs
        pictures = "the same" if same else f"{row['psnr']:.1f} ({row['psnr_least']:.1f})"
        lost = f"{row['lost']:.3f} ({row['lost_most']:.3f})"
        cells = (row["cache"], f"{row['threshold']:g}", f"{row['saved']:.0%}", pictures, f"{row['own_voice']:.3f}", lost)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("%", " %").replace("  %", " %").replace("-0.", "−0.")
