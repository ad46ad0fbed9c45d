"""Run a module of this repository as a program: `python tools/launch.py lab.evaluation.main --quick`.

The module is imported as part of the package `multitalk_nodes`, whatever the repository's folder is called, and its `main()` gives the
exit code. The folder itself is kept off sys.path, because its package `nodes` would hide ComfyUI's module of the same name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACK = "multitalk_nodes"


def main() -> int:
    """Run the module that the command line names; its arguments follow."""
    if len(sys.argv) < 2:
        print(f"usage: {Path(__file__).name} MODULE [ARGUMENT ...]", file=sys.stderr)
        return 2
    module = sys.argv.pop(1)
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    register_pack()
    return importlib.import_module(f"{PACK}.{module}").main()


def launched(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this repository in another process, with this Python."""
    return [sys.executable, str(Path(__file__).resolve()), module, *arguments]


def register_pack() -> None:
    """Makes `import multitalk_nodes.multitalk_core` work, with relative imports between the pack's folders, and without ComfyUI.

    The pack's own __init__.py is not run: it needs ComfyUI.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if PACK not in sys.modules:
        spec = ModuleSpec(PACK, loader=None, is_package=True)
        spec.submodule_search_locations = [str(ROOT)]
        sys.modules[PACK] = importlib.util.module_from_spec(spec)


def start_comfy() -> Path:
    """Makes ComfyUI importable, on the CPU where there is no GPU; returns its folder. Call it before importing anything of comfy.

    Raises:
        RuntimeError: COMFYUI_PATH is not set, comfy was imported before, or another module has the name of one of ComfyUI's.
    """
    if not (value := os.environ.get("COMFYUI_PATH")):
        raise RuntimeError("COMFYUI_PATH is not set. Run this through dev.py, which finds a ComfyUI and sets it.")
    folder = Path(value).resolve()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    for name in ("comfy", "nodes", "utils"):
        _expect_from(folder, name)
    _use_cpu_without_gpu()
    return folder


def _use_cpu_without_gpu() -> None:
    import torch
    from comfy.cli_args import args

    if torch.cuda.is_available() or args.cpu:
        return
    if "comfy.model_management" in sys.modules:
        raise RuntimeError("comfy.model_management was imported before start_comfy(), so it looks for a GPU. Call start_comfy() first.")
    args.cpu = True


def _expect_from(folder: Path, name: str) -> None:
    spec = importlib.util.find_spec(name)
    places = [*(spec.submodule_search_locations or []), spec.origin] if spec else []
    if not any(place and folder in Path(place).resolve().parents for place in places):
        raise RuntimeError(f"'import {name}' finds {places or 'nothing'}, expected ComfyUI's in {folder}. Take the other one off sys.path.")


if __name__ == "__main__":
    sys.exit(main())
