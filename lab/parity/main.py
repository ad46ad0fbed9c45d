"""`python dev.py parity`: compare the pack with a set of tensors that the published code recorded."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...tools.launch import start_comfy


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py parity", description="Compare every item of a golden set with what the pack computes.")
    parser.add_argument("--goldens", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="ITEM", help="items such as 03 or 12")
    options = parser.parse_args()
    start_comfy()
    from comfy.cli_args import args

    args.cpu = True  # the goldens are float32 on a CPU, whatever this machine has
    from .runner import run

    return run(options.goldens, options.only)
