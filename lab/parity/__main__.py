"""Entry of `python dev.py parity`; run as a folder, so the pack gets its name here first."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py parity", description="Compare every item of a golden set with what the pack computes.")
    parser.add_argument("--goldens", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="ITEM", help="items such as 03 or 12")
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location("multitalk_tools_pack", Path(__file__).parents[1] / "pack.py")
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    pack.register_pack()
    pack.start_comfy()
    from comfy.cli_args import args

    args.cpu = True  # the goldens are float32 on a CPU, whatever this machine has
    from multitalk_nodes.lab.parity.runner import run

    return run(options.goldens, options.only)


if __name__ == "__main__":
    sys.exit(main())
