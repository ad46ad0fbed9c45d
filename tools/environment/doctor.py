"""`python dev.py doctor`: versions, device, attention, memory, what a video needs of them, and what to change."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path

from . import environment
from .steps import StepFailed


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, metavar="DIR", help="look here for models (default: ComfyUI's own folders)")
    parser.add_argument(
        "--size", choices=("multitalk-480", "multitalk-720"), default="multitalk-480", help="of a video (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=_seconds, default=10.0, help="and its length (default: %(default)g)")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("expected a length above 0")
    return seconds


def main(arguments: list[str]) -> int:
    """Prints the facts; 1 if one of them is a problem."""
    options = parse(arguments)
    if options.models and not options.models.is_dir():
        raise StepFailed("doctor", f"there is no folder {options.models}", "name the folder that ComfyUI has its models in.")
    from ...multitalk_core.upkeep.machine import as_text

    facts, verdict = _facts(options)
    print(as_text(facts), *verdict, sep="\n")
    return int(any(fact.problem for fact in facts))


def _facts(options: argparse.Namespace):
    """What ComfyUI says, if it can be imported; else what can be said without it."""
    from ...multitalk_core.upkeep.machine import Fact, compilers, disks, versions

    def without(why: str, advice: str):
        place = options.models or Path.cwd()
        return [Fact("ComfyUI", why, advice, True), *versions(), *compilers(), *disks({place.absolute().name: place})], []

    host = environment.found_comfyui()
    if host is None:
        return without("none was found", "Set COMFYUI_PATH to the folder that its main.py is in.")
    os.environ["COMFYUI_PATH"] = str(host.path)
    sys.argv[1:] = []  # ComfyUI reads it
    from ..launch import start_comfy

    try:
        start_comfy()
        from ...comfy_bridge.diagnosis import diagnose, model_places
    except (ImportError, OSError) as error:
        advice = (
            f"Run this with the Python that runs ComfyUI, or install what it needs: {sys.executable} -m pip install -r requirements.txt"
        )
        return without(f"{host.version} cannot be imported here ({error})", advice)
    from ...multitalk_core.upkeep.check import check_models
    from ...multitalk_core.upkeep.folders import places

    here = options.models
    checked = check_models(places(here.absolute()) if here else model_places(), from_comfy=not here)
    found = checked.verdict(shlex.quote(str(here or host.path / "models")))
    return diagnose(checked, options.size, options.seconds, here, started=False), [f"models: {found}"]
