"""`python dev.py bench`: how near to bare WAN, beside ComfyUI's own InfiniteTalk, and everything around a step.

Writes docs/measured/performance.md.

On the CPU by default; --gpu measures WAN 14B with random weights at its true size on a CUDA card. Both keep a file of their own under
lab/benchmarks/results; the page says what of both is there, and "not measured" of the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "lab" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "measured" / "performance.md"
CPU_PARTS = ("counted", "steps", "guidance", "listening", "hour", "importing", "graph", "clips")
GPU_PARTS = ("steps", "guidance", "clips")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="on a CUDA card: WAN 14B, 480p and 720p, and whole clips")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", choices=CPU_PARTS, help=f"of {', '.join(CPU_PARTS)}; the others stay as they were"
    )
    parser.add_argument(
        "--rounds", type=int, help="of each comparison of steps (default: 5 on a CPU, 3 on a card); of guidance a third, at least 2"
    )
    parser.add_argument(
        "--listen", type=int, nargs="+", default=[60, 600], help="seconds of voice (default: 60 600; an hour takes 8 minutes)"
    )
    parser.add_argument(
        "--sizes", nargs="+", help=argparse.SUPPRESS
    )  # of lab/benchmarks/sized.py: a try of --gpu without a card takes "tiny"
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files (default: lab/benchmarks/results)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that is written (default: docs/measured/performance.md)")
    parser.add_argument("--write-page", action="store_true", help="measure nothing; write the page from the files")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # what a process of its own does
    options = parser.parse_args(arguments)
    if options.gpu and (wrong := set(options.only or ()) - set(GPU_PARTS)):
        parser.error(f"{', '.join(sorted(wrong))} is measured on the CPU only; leave --gpu out")
    if options.sizes and options.results == RESULTS:
        parser.error("--sizes needs --results: the files here are those of the true sizes")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    from .begin import begin

    begin(cpu=not options.gpu)
    from . import performance_page

    if options.one:
        from .around import ONE

        what, *arguments = options.one
        print(json.dumps(ONE[what](*arguments)))
        return 0
    if not options.write_page:
        measure(options)
    options.page.write_text(performance_page.page(options.results), encoding="utf-8")
    print(f"wrote {options.page}")
    return 0


def measure(options: argparse.Namespace) -> None:
    """All parts, or some; the file is written after each, with what it had of the others."""
    import torch

    from ..surroundings import surroundings

    if options.gpu and not torch.cuda.is_available() and not options.sizes:
        raise SystemExit("bench --gpu needs a CUDA card, and there is none here. Without --gpu it measures on the CPU.")
    file = options.results / f"performance_{'gpu' if options.gpu else 'cpu'}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    options.results.mkdir(parents=True, exist_ok=True)
    for name in options.only or (GPU_PARTS if options.gpu else CPU_PARTS):
        began = time.monotonic()
        found[name] = {**surroundings(), "found": part(name, options)}
        found[name]["took"] = round(time.monotonic() - began)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {found[name]['took']} s", flush=True)


def part(name: str, options: argparse.Namespace) -> Any:
    """One part's figures."""
    import torch

    from . import around, clips, steps
    from .sized import SIZES, Sized

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() and options.gpu else ("cpu", torch.float32)
    sizes = [SIZES[size] for size in options.sizes or (("480p", "720p") if options.gpu else ("cpu",))]
    rounds = options.rounds or (3 if options.gpu else 5)
    if name == "counted":
        return steps.counted_sizes()
    if name == "steps":
        found = {}
        for size in sizes:  # the first in full; of the others what is dearest, because a card is lent for minutes
            compared = (("ours", 2), ("core", 2)) if found else ()
            found[size.name] = steps.time_steps(Sized(size, device, dtype), rounds, compared)
            steps.let_go()
        return found
    if name == "guidance":
        forms = (steps.FORMS[0], steps.FORMS[-1]) if options.gpu else steps.FORMS
        size = sizes[0] if options.gpu else SIZES["one block"]
        return {size.name: steps.guided_steps(Sized(size, device, dtype), max(2, rounds // 3), forms)}
    if name == "listening":
        return [around.in_a_process_of_its_own("listening", str(seconds)) for seconds in options.listen]
    if name == "clips":
        return clips.on_a_card(sizes[0], device, dtype) if options.gpu else clips.on_the_cpu()
    return around.in_a_process_of_its_own(name)
