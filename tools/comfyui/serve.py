"""`python dev.py serve`: a ComfyUI with the pack, and the serverless worker on the SDK's server, both for this machine only."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..processes import STOP_LIMIT, leave_on_signals, run
from .server import ADDRESS, command, free_port, make_base

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "demo_long_talk"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py serve", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="of the worker's API (default: %(default)s)")
    parser.add_argument("--health-port", type=int, default=8081, help="of /health, /ready and /metrics (default: %(default)s)")
    parser.add_argument("--template", default=TEMPLATE, help="of workflows/api (default: %(default)s)")
    parser.add_argument("--base", type=Path, help="ComfyUI's base directory, with models, input and output (default: a temporary one)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    leave_on_signals()
    with tempfile.TemporaryDirectory(prefix="multitalk-serve-", ignore_cleanup_errors=True) as folder:
        base = (options.base or Path(folder)).absolute()
        make_base(base, ROOT)
        port = free_port()
        variables = os.environ | {
            "COMFYUI_URL": f"http://{ADDRESS}:{port}",
            "MULTITALK_TEMPLATE": options.template,
            "MULTITALK_HEALTH_PORT": str(options.health_port),
            "MULTITALK_COMMIT": _commit(),
        }
        variables |= {f"MULTITALK_{kind.upper()}_FOLDER": str(base / kind) for kind in ("input", "output", "temp")}
        worker = [sys.executable, "-m", "serverless", "--rp_serve_api", "--rp_api_host", ADDRESS, "--rp_api_port", str(options.port)]
        comfyui = command(sys.executable, Path(os.environ["COMFYUI_PATH"]), base, port, cpu=not _has_gpu())
        return run([*worker, "--", *comfyui], cwd=ROOT, env=variables, patience=STOP_LIMIT)  # dev.py waits for us, and longer


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
