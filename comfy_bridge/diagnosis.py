"""What only ComfyUI knows: where its models are, which device it computes on, and how it attends."""

from __future__ import annotations

import sys
from pathlib import Path

import comfy.model_management
import comfy.utils
import comfyui_version
import folder_paths
import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention

from ..multitalk_core.files import gigabytes
from ..multitalk_core.sizes import SizeClass
from ..multitalk_core.upkeep.check import NEEDED, PRESENT, ModelCheck
from ..multitalk_core.upkeep.folders import FOLDERS, Places
from ..multitalk_core.upkeep.machine import Fact, compilers, disks, free_on, memory, versions
from ..multitalk_core.upkeep.needs import needs

SLOW = ("attention_sub_quad", "attention_split", "attention_basic")
ON_MEMORY = ("highvram", "gpu_only", "lowvram", "novram", "cpu", "reserve_vram", "disable_dynamic_vram", "disable_smart_memory")


def model_places() -> Places:
    """ComfyUI's folders, with those of extra_model_paths.yaml."""
    return {name: [Path(folder) for folder in folder_paths.get_folder_paths(name)] for name in FOLDERS}


def diagnose(check: ModelCheck, size: SizeClass, seconds: float, models: Path | None = None, started: bool = True) -> list[Fact]:
    """Everything, from versions to what a video of this size and length needs.

    Args:
        models: the models folder; ComfyUI's own if not given.
        started: this is ComfyUI as somebody started it, with their options; else a program that only asks it.
    """
    ram, free_ram = memory()
    device = comfy.model_management.get_torch_device()
    on_card = not comfy.model_management.is_device_cpu(device)
    vram = int(comfy.model_management.get_total_memory(device)) if on_card else 0
    output = Path(folder_paths.get_output_directory())
    facts = [Fact("ComfyUI", comfyui_version.__version__), *versions(), _device(device, vram, started), _attention(on_card)]
    facts += compilers(arguments=sys.argv)
    if ram:
        facts.append(Fact("RAM", f"{gigabytes(ram)}, {gigabytes(free_ram)} free"))
    facts += disks({"output": output, "temp": Path(folder_paths.get_temp_directory())})
    facts.append(Fact("disk of models", f"{gigabytes(free_on(models or Path(folder_paths.models_dir)))} free"))
    wan, audio, others = _sizes(check)
    return facts + [Fact(*row) for row in needs(size, seconds, wan, audio, others).rows(vram, ram, free_on(output))]


def _device(device: torch.device, vram: int, started: bool) -> Fact:
    flags = [f"--{name.replace('_', '-')}" for name in ON_MEMORY if getattr(args, name, None)]
    state = f"{comfy.model_management.vram_state.name}{', ' + ' '.join(flags) if flags else ''}"
    name = comfy.model_management.get_torch_device_name(device)
    if not started:
        state = "as ComfyUI starts without options" if vram else "ComfyUI needs --cpu to start here"
    if not vram:
        advice = "The published models need a card. The demo model (MultiTalk Demo Model) runs without one."
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else ""
        if built and not torch.cuda.is_available():
            advice = f"torch is built for {built}, but finds no card. If there is one: is its driver installed, and visible here? {advice}"
        return Fact("device", f"{name} ({state})", advice)
    free = int(comfy.model_management.get_free_memory(device))
    return Fact("device", f"{name}, {gigabytes(vram)}, {gigabytes(free)} free ({state})")


def _attention(on_card: bool) -> Fact:
    name = attention.optimized_attention.__name__
    slow = on_card and name in SLOW
    return Fact("attention", name, "It is slow and takes more memory: start ComfyUI with --use-pytorch-cross-attention." if slow else "")


def _sizes(check: ModelCheck) -> tuple[int, int, int]:
    """Bytes of WAN, of MultiTalk and of the rest: of the files that are there, else of those to get."""
    sizes = {}
    for role in NEEDED:
        present = [file.size for file in check.of(role) if file.state == PRESENT]
        sizes[role] = max(present, default=check.suggested[role].bytes)
    return sizes.pop("wan21"), sizes.pop("multitalk"), sum(sizes.values())
