"""Training clips as the diffusion model sees them: latents, what is known of them, and what every speaker is heard to say.

Clips come in groups of one size and one arrangement of faces, because all clips of a forward pass have the same masks.

Shapes: B clips of a group, S speakers, F video frames, T latent frames, L encoder layers, D encoder dim.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ldm.wan.vae as wan
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...multitalk_core.audio.loudness import voice_energy
from ...multitalk_core.audio.wav2vec import Wav2Vec2
from ...multitalk_core.clock import FPS, SAMPLE_RATE
from ...multitalk_core.generate import GREY
from ...multitalk_core.people.speakers import Speaker, check_places, ref_target_masks, source_masks, token_masks
from ...multitalk_core.windows import audio_windows
from ..scenes import scenes
from ..scenes.speech import Corpus
from .stage import Report, StageError, check_run, fingerprint, save
from .train_encoder import heard
from .vae import to_latent

# a layout, how many clips of it make a group, and how often it is drawn
GROUPS = (
    (scenes.ONE_SMALL, 8, 0.10),
    (scenes.TWO_SMALL, 4, 0.16),
    (scenes.ONE, 4, 0.20),
    (scenes.TWO, 3, 0.26),
    (scenes.ONE_FAR, 4, 0.05),
    (scenes.TWO_FAR, 4, 0.08),
    (scenes.ONE_WIDE, 3, 0.05),
    (scenes.THREE, 3, 0.06),
    (scenes.FOUR, 2, 0.04),
)
FRAMES, SHORT, LONG_SHARE = 81, 33, 0.65
KNOWN = {"frame": 1, "motion_9": 9, "motion_25": 25}  # frames of the clip that its condition may hold
SETTLED = 4  # latents of grey after known ones, the last of which stays the same from then on
SILENT, TURNS = 0.14, 0.35  # shares of speakers that say nothing, and that speak in turn
FROM_STILL = 0.4  # share of clips that begin with the picture of closed mouths
DRAWN_MASKS = 0.5  # share of groups whose speakers have boxes instead of equal parts of the picture
MOUTH_WEIGHT = 4.0
MADE_WITH = "made_with.json"
FADE = SAMPLE_RATE // 100  # samples at the ends of a turn


@dataclass(frozen=True)
class Group:
    """Clips of one layout. Everything is [B, …] but the masks."""

    latents: Tensor  # [B, 16, T, h, w]
    known: dict[str, Tensor]  # [B, 16, T, h, w] each: a condition, filled up with grey
    windows: Tensor  # [B, S, F, 5, L, D]
    weights: Tensor  # [B, 1, 1, h, w]: how much a latent counts
    masks: Tensor | None  # [S + 1, N]; None for one speaker

    def state(self) -> dict[str, Any]:
        half = {"latents": self.latents.half(), "windows": self.windows.half(), "weights": self.weights}
        return half | {"known": {name: known.half() for name, known in self.known.items()}, "masks": self.masks}

    def some(self, clips: np.ndarray) -> Group:
        """The group with only these clips."""
        known = {name: tensor[clips] for name, tensor in self.known.items()}
        return Group(self.latents[clips], known, self.windows[clips], self.weights[clips], self.masks)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Group:
        known = {name: tensor.float() for name, tensor in state["known"].items()}
        return cls(state["latents"].float(), known, state["windows"].float(), state["weights"], state["masks"])


@torch.no_grad()
def make_groups(
    folder: Path, report: Report, vae: wan.WanVAE, encoder: Wav2Vec2, corpus: Corpus, count: int, share: tuple[int, int], seed: int
) -> None:
    """Files 0…count of groups, those that this process makes (number % share[1] == share[0]) and that are missing.

    Raises:
        StageError: the folder's clips were made with another VAE, another encoder or another seed.
    """
    _check_made_with(folder, {"vae": fingerprint(vae.encoder.state_dict()), "encoder": fingerprint(encoder.state_dict()), "seed": seed})
    for number in range(share[0], count, share[1]):
        if not (file := _file(folder, number)).exists():
            save(file, make_group(np.random.default_rng((seed, number)), vae, encoder, corpus).state())
        if number // share[1] % 10 == 0:
            report(f"clips {number}/{count}")


def group_files(folder: Path, count: int) -> list[Path]:
    """The first `count` groups.

    Raises:
        StageError: some are missing.
    """
    files = [_file(folder, number) for number in range(count)]
    if missing := [file for file in files if not file.exists()]:
        raise StageError(f"{len(missing)} of {count} groups of clips are missing in {folder}. Run the stage 'clips' first.")
    return files


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.pt"


def _check_made_with(folder: Path, models: dict[str, Any]) -> None:
    """Every process writes the same, so it does not matter who is first."""
    folder.mkdir(exist_ok=True)
    file = folder / MADE_WITH
    if not file.exists():
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(models), encoding="utf-8")
        os.replace(partial, file)
    check_run(file, json.loads(file.read_text(encoding="utf-8")), models)


def make_group(random: np.random.Generator, vae: wan.WanVAE, encoder: Wav2Vec2, corpus: Corpus) -> Group:
    layout, clips, _ = GROUPS[random.choice(len(GROUPS), p=[share for *_, share in GROUPS])]
    frames = FRAMES if random.random() < LONG_SHARE else SHORT
    places = layout.places(random)
    videos, pictures, windows, weights = zip(
        *(_make_clip(random, layout, places, frames, encoder, corpus) for _ in range(clips)), strict=True
    )
    video, picture = torch.stack(videos), torch.stack(pictures)[:, None]
    known = {name: known_latents(vae, video[:, :count], frames) for name, count in KNOWN.items()}
    known["reference"] = known_latents(vae, picture, frames)
    masks = any_masks(random, layout, places)
    return Group(encode(vae, video), known, torch.stack(windows), torch.stack(weights), masks)


def _make_clip(
    random: np.random.Generator,
    layout: scenes.Layout,
    places: list[tuple[float, float, float]],
    frames: int,
    encoder: Wav2Vec2,
    corpus: Corpus,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Video [F, H, W, 3], its picture of closed mouths [H, W, 3], audio windows [S, F, 5, L, D] and weights [1, 1, h, w]."""
    voices = any_voices(random, layout.speakers, corpus)
    total = voices[0].shape[0] * FPS // SAMPLE_RATE
    start = int(random.integers(0, total - frames + 1)) if random.random() < 0.75 else 0
    energies = torch.stack([voice_energy(voice, total) for voice in voices])[:, start : start + frames]
    scene = layout.scene(random, places)
    video = scene.video(scenes.act(energies, random))
    picture = scene.picture()
    if random.random() < FROM_STILL:
        video[0] = picture
    tracks = [encoder.encode(heard(voice, random)) for voice in voices]
    return video, picture, audio_windows(tracks, start, start + frames), _latent_weights(scene)


def any_voices(random: np.random.Generator, speakers: int, corpus: Corpus) -> list[Tensor]:
    """What each speaker says [N]: all the time, in turn, or nothing."""
    voices = [corpus[random.integers(len(corpus))] for _ in range(speakers)]
    length = voices[0].shape[0]
    if speakers > 1 and random.random() < TURNS:
        cuts = np.sort(random.uniform(0.15, 0.85, speakers - 1)) * length
        edges = [0, *cuts.astype(int), length]
        for voice, turn in zip(voices, random.permutation(speakers), strict=True):
            _silence_outside(voice, edges[turn], edges[turn + 1])
    for voice in voices:
        if random.random() < SILENT:
            voice.zero_()
    return voices


def _silence_outside(voice: Tensor, begin: int, end: int) -> None:
    gate = torch.zeros(voice.shape[0] + 2 * FADE)
    gate[begin + FADE : end + FADE] = 1
    voice *= F.avg_pool1d(gate[None], 2 * FADE + 1, stride=1)[0]


def any_masks(random: np.random.Generator, layout: scenes.Layout, places: list[tuple[float, float, float]]) -> Tensor | None:
    """The speakers' classes on the token grid, by boxes about their faces or by equal parts of the picture."""
    if layout.speakers == 1:
        return None
    boxes: list[Any] = [None] * layout.speakers
    if random.random() < DRAWN_MASKS:
        share = random.uniform(0.75, 1.3)
        part = layout.width / layout.speakers
        boxes = [
            (max(i * part, x - share * r), max(0, y - share * 1.1 * r), min((i + 1) * part, x + share * r), y + share * r)
            for i, (x, y, r) in enumerate(places)
        ]
    speakers = [Speaker(box=box) for box in boxes]
    masks = source_masks(speakers, layout.height, layout.width)
    tokens = token_masks(ref_target_masks(masks, layout.height, layout.width))
    check_places(tokens)
    return tokens


def encode(vae: wan.WanVAE, frames: Tensor) -> Tensor:
    """[B, F, H, W, 3] in 0…1 → [B, 16, T, h, w] as the diffusion model sees it."""
    return to_latent(vae.encode(frames.permute(0, 4, 1, 2, 3) * 2 - 1))


def known_latents(vae: wan.WanVAE, known: Tensor, frames: int) -> Tensor:
    """Latents of known frames [B, n, H, W, 3] and grey up to `frames`, as generate.condition_clip makes them.

    Long grey is not encoded again.
    """
    length = min(frames, known.shape[1] + 4 * SETTLED)
    grey = torch.full((known.shape[0], length - known.shape[1], *known.shape[2:]), GREY)
    latents = encode(vae, torch.cat([known, grey], dim=1))
    missing = (frames - 1) // 4 + 1 - latents.shape[2]
    return torch.cat([latents, latents[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)


def _latent_weights(scene: Any) -> Tensor:
    """[1, 1, h, w]: mouths count more."""
    weights = torch.ones(1, 1, scene.height // 8, scene.width // 8)
    for face in scene.faces:
        left, top, right, bottom = face.mouth_box
        weights[..., top // 8 : (bottom + 7) // 8, left // 8 : (right + 7) // 8] = MOUTH_WEIGHT
    return weights
