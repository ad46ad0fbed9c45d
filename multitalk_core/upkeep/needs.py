"""What a video needs of a card's memory, of the machine's and of a disk: arithmetic, in ComfyUI's own terms, not a measurement.

The published models are WAN 14B (dim 5120): tests and figures of this pack come from small models on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import FPS
from ..files import gigabytes
from ..sizes import LATENT_STRIDE, SizeClass, bucket
from ..windows import latent_frames

WAN_DIM = 5120  # 14B
CLIP_FRAMES = 81  # as trained
# ComfyUI comfy/model_base.py memory_required (attention that needs no whole matrix, two bytes a number) with supported_models.py WAN21's
# memory_usage_factor = dim / 2222: about 6 GB for a branch of 81 frames at 640×640
MIB_PER_LATENT = 2 * 0.01 * WAN_DIM / 2222
BRANCHES = 2  # of the guidance that ComfyUI computes together, if there is room; else one after another
RESERVED = int(0.8 * 2**30)  # comfy/model_management.py minimum_inference_memory
LAYERS = 40  # of WAN 14B; with too little memory they come and go one by one
FLOAT = 4  # bytes of a number of a finished frame
COPIES = 3  # of a clip's frames that are there at once: decoded, matched in colour, to be encoded
ENCODED = 0.25  # bytes a pixel, about the most that Long Video's H.264 takes (segments.py); clips and the finished video: twice


@dataclass(frozen=True)
class Needs:
    """Bytes.

    Attributes:
        branch: what one branch of the guidance takes beside the weights.
        whole: of the card, so that everything stays there; least: below that it cannot run.
        ram: of the machine, with the weights that wait there.
        disk: while a video of that length is made.
    """

    height: int
    width: int
    seconds: float
    weights: int
    branch: int
    whole: int
    least: int
    ram: int
    disk: int

    def rows(self, vram: int = 0, ram: int = 0, disk: int = 0) -> list[tuple[str, str, str]]:
        """(what, how much, what to change), held against what is there; 0 is unknown.

        Figures are arithmetic, not measured.
        """
        size = f"{self.width}×{self.height}"
        card, machine, place = "", "", ""
        if vram and vram < self.least:
            card = f"The card has {gigabytes(vram)}: take a smaller size, or fewer frames a clip."
        elif vram and vram < self.whole:
            card = f"The card has {gigabytes(vram)}: a part of the weights waits in RAM, which is slower. An fp8 or GGUF file is smaller."
        if ram and ram < self.ram:
            machine = f"The machine has {gigabytes(ram)}: take smaller files (fp8, GGUF), or make swap space."
        if disk and disk < self.disk:
            place = f"The disk has {gigabytes(disk)} left: free some."
        return [
            (f"VRAM for {size}", f"{gigabytes(self.whole)} with all weights there, {gigabytes(self.least)} at least (computed)", card),
            ("of that a branch", f"{gigabytes(self.branch)} for {CLIP_FRAMES} frames (computed)", ""),
            ("RAM for it", f"{gigabytes(self.ram)} (computed: weights {gigabytes(self.weights)}, and a clip's frames)", machine),
            (f"disk for {self.seconds:g} s", f"{gigabytes(self.disk)} (computed)", place),
        ]


def needs(size: SizeClass, seconds: float, wan: int, audio: int, others: int) -> Needs:
    """What it takes.

    Args:
        wan, audio, others: bytes of the files of WAN, of MultiTalk, and of VAE, CLIP vision, text and speech encoders.
    """
    height, width = bucket(1, 1, size)
    latents = latent_frames(CLIP_FRAMES) * (height // LATENT_STRIDE) * (width // LATENT_STRIDE)
    branch = int(latents * MIB_PER_LATENT * 2**20)
    frames = COPIES * CLIP_FRAMES * height * width * 3 * FLOAT
    return Needs(
        height=height,
        width=width,
        seconds=seconds,
        weights=wan + audio + others,
        branch=branch,
        whole=wan + audio + BRANCHES * branch + RESERVED,
        least=(wan + audio) // LAYERS + branch + RESERVED,
        ram=wan + audio + others + frames,
        disk=int(2 * seconds * FPS * height * width * ENCODED),
    )
