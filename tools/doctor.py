"""`python dev.py doctor`: versions, device, attention, memory, what a video needs of them, and what to change."""

from __future__ import annotations

import argparse
import os
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
    parser.add_argument("--seconds", type=float, default=10.0, help="and its length (default: %(default)g)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Prints the facts; 1 if one of them is a problem."""
    options = parse(arguments)
    from .pack import register_pack, start_comfy

    register_pack()
    from multitalk_nodes.multitalk_core.diagnosis import Fact, as_text, compilers, disks, versions

    host, facts = None, versions()
    if not any(fact.problem for fact in facts):
        host = environment.found_comfyui()
    if host is None:
        told = "not looked at, as long as something is missing" if any(fact.problem for fact in facts) else "none found"
        facts += [*compilers(), *disks({"models": options.models or Path.cwd()}), Fact("ComfyUI", told, "Set COMFYUI_PATH to its folder.")]
        print(as_text(facts))
        return int(any(fact.problem for fact in facts))
    os.environ["COMFYUI_PATH"] = str(host.path)
    sys.argv[1:] = []  # ComfyUI reads it
    start_comfy()
    from multitalk_nodes.comfy_bridge.diagnosis import diagnose, model_places
    from multitalk_nodes.multitalk_core.model_check import check_models
    from multitalk_nodes.multitalk_core.model_folders import places

    if options.models and not options.models.is_dir():
        raise StepFailed("doctor", f"there is no folder {options.models}", "name the folder that ComfyUI has its models in.")
    checked = check_models(places(options.models.absolute()) if options.models else model_places())
    facts = diagnose(checked, options.size, options.seconds)
    print(as_text(facts), f"models: {checked.verdict()}", sep="\n")
    return int(any(fact.problem for fact in facts))
