"""Does parity notice? Changes one sign, index or range in a copy of the pack and expects parity to turn red: `python dev.py mutants`."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from ...tools.launch import start_comfy
from ...tools.processes import leave_on_signals

ROOT = Path(__file__).resolve().parents[2]
COPY = "multitalk_mutant"  # the changed pack's name beside the real one
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "tests", "demo", "docs", "workflows")


@dataclass(frozen=True)
class Mutant:
    """One change of one file, and the items that must notice."""

    file: str
    before: str
    after: str
    items: str
    quick: bool = False  # part of the test suite; all of them run by hand

    def __str__(self) -> str:
        return f"{self.file}: {self.before.strip()} → {self.after.strip()}"


CORE, BRIDGE = "multitalk_core", "comfy_bridge"
MUTANTS = (
    Mutant(f"{CORE}/audio/sound.py", "to_mono(as_sound(waveform, rate), rate)", "as_sound(waveform, rate)[0]", "01", quick=True),
    Mutant(f"{CORE}/audio/loudness.py", "TARGET_LUFS = -23.0", "TARGET_LUFS = -22.9", "01"),
    Mutant(f"{CORE}/audio/loudness.py", "RELATIVE_GATE = -10.0", "RELATIVE_GATE = -4.0", "01"),
    Mutant(f"{CORE}/audio/loudness.py", "4.0, 1 / math.sqrt(2), 1500.0", "-4.0, 1 / math.sqrt(2), 1500.0", "01"),
    Mutant(f"{CORE}/audio/sound.py", 'following = end if layout == "sequential"', 'following = end if layout == "parallel"', "01"),
    Mutant(f"{CORE}/audio/sound.py", 'quality="HQ"', 'quality="LQ"', "01"),
    Mutant(f"{CORE}/audio/wav2vec.py", 'mode="linear", align_corners=True', 'mode="linear", align_corners=False', "02", quick=True),
    Mutant(f"{CORE}/audio/wav2vec.py", "collected[-1] = norm(collected[-1])", "collected[0] = norm(collected[0])", "14"),
    Mutant(f"{CORE}/audio/wav2vec.py", "return (voice - mean) / deviation", "return (voice + mean) / deviation", "01"),
    Mutant(f"{CORE}/clock.py", "max(1, int(samples / SAMPLE_RATE * FPS))", "max(1, round(samples / SAMPLE_RATE * FPS) - 1)", "02"),
    Mutant(f"{CORE}/windows.py", "torch.arange(WINDOW) - WINDOW // 2", "torch.arange(WINDOW) - WINDOW // 2 + 1", "03"),
    Mutant(f"{CORE}/windows.py", "torch.minimum(phase, 2 * length - 1 - phase)", "torch.minimum(phase, 2 * length - 2 - phase)", "03 15"),
    Mutant(f"{CORE}/windows.py", "advance = clip_frames - overlap", "advance = clip_frames - overlap + 1", "10"),
    Mutant(f"{CORE}/windows.py", ".clamp(min=0)", ".clamp(min=1)", "03"),
    Mutant(f"{CORE}/model.py", "LABEL_STARTS = (0.0, 20.0", "LABEL_STARTS = (0.0, 16.0", "04"),
    Mutant(f"{CORE}/model.py", "BACKGROUND_LABEL = 12.0", "BACKGROUND_LABEL = 10.0", "04"),
    Mutant(f"{CORE}/model.py", "return maps.argmax(dim=1)", "return maps[:, :-1].argmax(dim=1)", "04"),
    Mutant(f"{CORE}/model.py", "k[:, :tokens].transpose(1, 2)", "k[:, -tokens:].transpose(1, 2)", "04", quick=True),
    Mutant(f"{CORE}/model.py", "looks.float().mean(dim=1)", "looks.float().amax(dim=1)", "04"),
    Mutant(f"{CORE}/model.py", "torch.polar(torch.ones_like(angle), angle)", "torch.polar(torch.ones_like(angle), 2 * angle)", "04"),
    Mutant(f"{CORE}/model.py", "later[:, :, 1:-1, centre]", "later[:, :, 1:-1, centre + 1]", "03"),
    Mutant(f"{CORE}/model.py", "(0, 0, 0, 1)) for part", "(0, 0, 0, 1), value=1.0) for part", "06"),
    Mutant(f"{CORE}/guidance.py", '+ audio_scale * (pred["drop_text"]', '- audio_scale * (pred["drop_text"]', "06"),
    Mutant(f"{CORE}/guidance.py", "difference + self.settings.momentum", "difference - self.settings.momentum", "06"),
    Mutant(f"{CORE}/guidance.py", "(precise - parallel", "(precise + parallel", "06"),
    Mutant(f"{CORE}/guidance.py", "threshold / norm).clamp(max=1.0)", "threshold / norm).clamp(min=1.0)", "06"),
    Mutant(f"{CORE}/schedule.py", "np.linspace(1000, 1, steps", "np.linspace(1000, 1000 / steps, steps", "06"),
    Mutant(f"{CORE}/schedule.py", "(1 - sigma) * latent + sigma * noise", "sigma * latent + (1 - sigma) * noise", "06"),
    Mutant(f"{CORE}/step_cache.py", "-3.54229917e04", "+3.54229917e04", "11", quick=True),
    Mutant(f"{CORE}/step_cache.py", "value * distance + coefficient", "value * distance - coefficient", "11"),
    Mutant(f"{CORE}/step_cache.py", "self._accumulated += rule", "self._accumulated = rule", "06"),
    Mutant(f"{CORE}/step_cache.py", "        self._accumulated = 0.0\n        return True", "        return True", "11"),
    Mutant(f"{CORE}/step_cache.py", "/ before.float()", "/ now.float()", "11"),
    Mutant(f"{CORE}/sizes.py", "round((pictures.shape[-1] - width) / 2)", "(pictures.shape[-1] - width + 1) // 2", "07 08"),
    Mutant(f"{CORE}/sizes.py", "return math.ceil(scale * height)", "return math.floor(scale * height)", "07"),
    Mutant(f"{CORE}/sizes.py", 'mode="bicubic", align_corners=False', 'mode="bicubic", antialias=True, align_corners=False', "13", quick=True),
    Mutant(f"{CORE}/people/places.py", "MARGIN = 0.05", "MARGIN = 0.06", "08"),
    Mutant(f"{CORE}/people/speakers.py", "1 - spoken.amax(dim=0", "1 - spoken.amin(dim=0", "08"),
    Mutant(f"{CORE}/colour.py", "200 * (y - z)", "200 * (z - y)", "09"),
    Mutant(f"{CORE}/colour.py", "square().mean(dim=2, keepdim=True).sqrt()", "abs().mean(dim=2, keepdim=True)", "09"),
    Mutant(f"{CORE}/families.py", 'motion_frames=9, known="reference"', 'motion_frames=9, known="motion"', "12"),
    Mutant(f"{CORE}/families.py", 'known="reference", motion_latents="clean"', 'known="reference", motion_latents="noised"', "12"),
    Mutant(f"{CORE}/families.py", 'motion_frames=25, known="motion", motion_latents="noised"', 'motion_frames=25, known="motion", motion_latents="clean"', "06"),
    Mutant(f"{CORE}/generate.py", "GREY = 0.5", "GREY = 0.0", "06"),
    Mutant(f"{CORE}/generate.py", "if index == 0:\n        return seed", "if index == 0:\n        return seed + 1", "06"),
    Mutant(f"{CORE}/generate.py", "video.source(shot.start), video", "video.source(shot.start + 1), video", "12"),
    Mutant(f"{CORE}/generate.py", "known_latent_frames, known[-1:], motion", "known_latent_frames, 1 - known[-1:], motion", "06"),
    Mutant(f"{BRIDGE}/conditioning.py", "mask[:, :, :known_latent_frames] = 0", "mask[:, :, known_latent_frames:] = 0", "05", quick=True),
    Mutant(f"{BRIDGE}/conditioning.py", "_hearing(extra, extra[NULL_AUDIO], null=True) if", "extra if", "06"),
    Mutant(f"{BRIDGE}/patches.py", "clean = executor.class_obj.inner_model.process_latent_in(self._motion.latent.to(x))", "clean = self._motion.latent.to(x)", "12"),
    Mutant(f"{BRIDGE}/patches.py", "torch.cat([held, x[:, :, count:]], dim=2), timestep", "x, timestep", "12"),
    Mutant(f"{BRIDGE}/conditioning.py", "torch.tensor([float(null)])", "torch.zeros(1)", "06"),
    Mutant(f"{BRIDGE}/patches.py", "call.masks = self._masks.to(x.device)", "call.masks = None", "05"),
    Mutant(f"{BRIDGE}/patches.py", "(1 - torch.tensor(null, device=x.device))[:, None] * positions", "positions[None].repeat(len(null), 1)", "06"),
    Mutant(f"{BRIDGE}/patches.py", "call.labels[row] = speaker_positions(maps)[0]", "call.labels[0] = speaker_positions(maps)[0]", "06"),
    Mutant(f"{BRIDGE}/step_cache.py", "[(uuid, branch, *places) for", "[(0, 0, *places) for", "06"),
    Mutant(f"{BRIDGE}/step_cache.py", "left[i] = entered[i] + branch", "left[i] = entered[i] - branch", "06"),
    Mutant(f"{BRIDGE}/step_cache.py", "level * (1 - SAME)).sum()) - 1)", "level * (1 - SAME)).sum()) - 2)", "06"),
    Mutant(f"{BRIDGE}/guider.py", '"drop_text": "negative", "drop_audio"', '"drop_text": "positive", "drop_audio"', "06"),
    Mutant(f"{BRIDGE}/guider.py", "guided = x - sigma * self", "guided = x + sigma * self", "06"),
    Mutant(f"{BRIDGE}/weights.py", "return voices.cpu(), null.cpu()", "return voices.cpu(), 0 * null.cpu()", "05"),
    Mutant(f"{CORE}/people/voices.py", "return normalise_loudness(voice) if level else voice", "return normalise_loudness(voice)[1:] if level else voice[1:]", "01"),
    Mutant(f"{CORE}/people/voices.py", "starts = tuple(begin / SAMPLE_RATE", "starts = tuple(0 * begin / SAMPLE_RATE", "01"),
    Mutant(f"{BRIDGE}/scene.py", "masks = tokens if len(voices.speakers) > 1 else None", "masks = tokens.flip(0) if len(voices.speakers) > 1 else None", "12"),
    Mutant(f"{BRIDGE}/clip.py", "clip, fit, None, voices.tracks", "clip, 1 - fit, None, voices.tracks", "06"),
    Mutant(f"{BRIDGE}/sampling.py", "prepare_noise(samples, seed, ", "prepare_noise(samples, seed + 1, ", "06"),
    Mutant(f"{BRIDGE}/scene.py", "and torch.equal(one, other)", "", "12"),
    Mutant(f"{BRIDGE}/backend.py", "comfy.sample.prepare_noise(empty, seed)", "comfy.sample.prepare_noise(empty, seed + 1)", "06"),
)  # fmt: skip


def survives(mutant: Mutant, goldens: Path) -> bool:
    """Whether parity finds nothing outside its tolerance with the change; a mutant that only breaks the run off survives, too.

    The changed copy is imported beside the pack, under a name of its own. Call tools/launch.py's start_comfy() first.

    Raises:
        ValueError: the code is no longer what the mutant changes.
    """
    with tempfile.TemporaryDirectory(prefix="multitalk-mutant-") as folder:
        copy = Path(folder) / "pack"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        file = copy / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.before) != 1:
            raise ValueError(f"{mutant.file} has {text.count(mutant.before)} places '{mutant.before}'; the mutant must name exactly one.")
        file.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
        try:
            return not any(not check.passed and check.name != "broke off" for check in parity(copy, goldens, mutant.items.split()))
        except (ImportError, NameError, SyntaxError, AssertionError):
            return True


def parity(pack: Path, goldens: Path, items: list[str]) -> list[Any]:
    """The checks that this copy of the pack makes of a golden set; nothing of the copy stays imported."""
    spec = ModuleSpec(COPY, loader=None, is_package=True)
    spec.submodule_search_locations = [str(pack)]
    sys.modules[COPY] = importlib.util.module_from_spec(spec)
    try:
        runner = importlib.import_module(f"{COPY}.lab.parity.runner")
        return list(runner.checks(runner.Goldens(goldens), items))
    finally:
        for name in [name for name in sys.modules if name == COPY or name.startswith(f"{COPY}.")]:
            del sys.modules[name]


def main() -> int:
    leave_on_signals()
    start_comfy()
    import comfy.cli_args
    import comfy.utils

    comfy.cli_args.args.cpu = True  # the goldens are float32 on a CPU, whatever this machine has
    comfy.utils.set_progress_bar_enabled(False)
    goldens = Path(sys.argv[1])
    began = time.perf_counter()
    items = sorted({item for mutant in MUTANTS for item in mutant.items.split()})
    wrong = [check for check in parity(ROOT, goldens, items) if not check.passed]
    if wrong:
        print(f"Parity is not green without a mutant; mend that first: {wrong}")
        return 2
    survivors = 0
    for number, mutant in enumerate(MUTANTS, start=1):
        alive = survives(mutant, goldens)
        survivors += alive
        print(f"{'SURVIVES' if alive else 'noticed':8} {number:2} {mutant}   (item {mutant.items})", flush=True)
    files = len({mutant.file for mutant in MUTANTS})
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} mutants in {files} modules noticed; {time.perf_counter() - began:.0f} s")
    return 1 if survivors else 0
