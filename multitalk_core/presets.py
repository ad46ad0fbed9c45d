"""Settings that go together, each number with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

SCRIPT = "MeiGen-AI/MultiTalk@c1ad840 generate_multitalk.py"
README = "MeiGen-AI/MultiTalk@c1ad840 README.md"
SHIFTS = {"multitalk-480": 7.0, "multitalk-720": 11.0}  # SCRIPT, _validate_args(): sample_shift by size
LIGHTX2V = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
FUSIONX = "Wan2.1_I2V_14B_FusionX_LoRA.safetensors"


@dataclass(frozen=True)
class Number:
    """A setting, and its source."""

    value: float
    source: str


@dataclass(frozen=True)
class Preset:
    """One way to sample."""

    steps: Number
    text_scale: Number
    audio_scale: Number
    cache: Number  # threshold of MultiTalk Step Cache; 0 is none
    shift: Number | None = None  # None: by size
    lora: str = ""  # that the numbers are for; at strength 1

    def shift_for(self, size: str) -> Number:
        """size: a key of SHIFTS."""
        return self.shift or Number(SHIFTS[size], f"{SCRIPT}, for {size}")

    def explain(self, size: str) -> str:
        """A line for every number."""
        rows = {"steps": self.steps, "shift": self.shift_for(size), "text_scale": self.text_scale, "audio_scale": self.audio_scale}
        lines = [f"{name} {number.value:g}: {number.source}" for name, number in (rows | {"cache": self.cache}).items()]
        if self.cache.value:
            lines.append(f"table {size}: set MultiTalk Step Cache's table by hand, to the size chosen here")
        if self.lora:
            lines.insert(0, f"LoRA at strength 1, on the WAN model: {self.lora}")
        return "\n".join(lines)


TEXT, AUDIO = Number(5.0, f"{SCRIPT}, sample_text_guide_scale"), Number(4.0, f"{SCRIPT}, sample_audio_guide_scale")
NO_TEXT = Number(1.0, f"{README}, with a distilled LoRA: 1, which saves an evaluation a step")
AUDIO_WITH_LORA = Number(2.0, f"{README}, with a distilled LoRA")
NO_CACHE = Number(0.0, "none")
PRESETS = {
    "quality": Preset(Number(40, f"{SCRIPT}, sample_steps"), TEXT, AUDIO, NO_CACHE),
    "balanced": Preset(
        Number(40, f"{SCRIPT}, sample_steps"), TEXT, AUDIO, Number(0.2, f"{SCRIPT}, teacache_thresh; {README} advises 0.2 to 0.5")
    ),
    "turbo lightx2v": Preset(
        Number(4, f"{README}, with lightx2v (it names the T2V LoRA of rank 32; this is the same makers' for image-to-video)"),
        NO_TEXT,
        AUDIO_WITH_LORA,
        NO_CACHE,
        Number(5.0, "ModelTC/LightX2V, its configurations for four distilled steps (sample_shift); MeiGen names none"),
        LIGHTX2V,
    ),
    "turbo FusionX": Preset(
        Number(8, f"{README}, with FusionX"), NO_TEXT, AUDIO_WITH_LORA, NO_CACHE, Number(2.0, f"{README}, with FusionX"), FUSIONX
    ),
    "draft": Preset(Number(10, f"{README}: down to 10 steps lip-sync does not suffer, motion and pictures do"), TEXT, AUDIO, NO_CACHE),
}
