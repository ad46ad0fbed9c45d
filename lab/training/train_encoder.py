"""Trains the demo's Wav2Vec2: every layer's states shall tell, through one linear map, how a voice sounds under whatever is around it.

What it is held to is computed from the undisturbed voice: its loudness (what mouths follow), how often the sound crosses zero, which tells
hisses from vowels, and its level in logarithms, which tells a quiet voice from none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ...multitalk_core.audio.loudness import normalise_loudness, voice_energy
from ...multitalk_core.audio.wav2vec import Wav2Vec2
from ...multitalk_core.clock import FPS, SAMPLE_RATE
from ...multitalk_core.lipsync.curves import pearson
from ..scenes.speech import Corpus, disturbed
from .stage import Report, Stage

DIM, LAYERS, HEADS = 32, 4, 2
RATE = 2.5e-3
BATCH = 8
DISTURBED, SNR = 0.4, (8.0, 30.0)  # share of voices with something around them; dB
SILENT = 0.05
QUIETEST = 1e-2  # sound pressure below which levels are not distinguished
HOP = SAMPLE_RATE // FPS


def configuration() -> Wav2Vec2Config:
    """transformers' configuration at the demo's size, without anything random in training."""
    return Wav2Vec2Config(
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * DIM,
        conv_dim=(DIM,) * 7,
        feat_extract_norm="group",
        conv_bias=False,
        do_stable_layer_norm=False,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        vocab_size=32,
    )


def empty_encoder() -> Wav2Vec2:
    """The product's encoder over transformers' network, with random weights."""
    network = Wav2Vec2Model(configuration()).eval()
    return Wav2Vec2(network, stable_layer_norm=False, do_normalize=True, dim=DIM, layers=LAYERS)


def heard(clean: Tensor, random: np.random.Generator) -> Tensor:
    """What a microphone makes of a voice [N]: at the loudness that the pack brings every voice to, now and then with noise or music."""
    if random.random() < DISTURBED:
        clean = disturbed(clean, random, random.uniform(*SNR))
    return normalise_loudness(clean)


def sounds_like(clean: Tensor) -> Tensor:
    """What is to be read from a voice [N]: [F, 3]."""
    loud = voice_energy(clean, clean.shape[0] // HOP)
    frames = clean[: loud.shape[0] * HOP].reshape(-1, HOP)
    crossings = (frames[:, 1:] * frames[:, :-1] < 0).float().mean(dim=1) * (loud > 0.02)
    level = (frames.square().mean(dim=1).sqrt() + QUIETEST).log() / 4
    return torch.stack([loud, crossings, level], dim=1)


def train_encoder(folder: Path, report: Report, corpus: Corpus, held_out: Corpus, steps: int, seed: int) -> Wav2Vec2:
    """The finished encoder, and how well its last layer tells the loudness of voices it never heard."""
    torch.manual_seed(seed)
    encoder = empty_encoder()
    readers = nn.ModuleList([nn.Linear(DIM, 3) for _ in range(LAYERS)])
    trained = [*encoder.parameters(), *readers.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-3)
    stage = Stage(folder / "wav2vec2.pt", steps, {"encoder": encoder, "readers": readers, "adam": optimiser}, report, seed)
    for step in stage:
        random = stage.random(step)
        losses = []
        for _ in range(BATCH):
            clean = corpus[random.integers(len(corpus))] * (random.random() > SILENT)
            states, found = encoder(heard(clean, random)), sounds_like(clean)
            losses += [(reader(states[:, layer]) - found).square().mean() for layer, reader in enumerate(readers)]
        loss = torch.stack(losses).mean()
        stage.optimise(loss, step)
        stage.note(error=float(loss.detach()))
    report(f"wav2vec2: correlation with the loudness of voices never heard: {_score(encoder, readers[-1], held_out):.3f}")
    return encoder


@torch.no_grad()
def _score(encoder: Wav2Vec2, reader: nn.Module, voices: Corpus) -> float:
    scores = []
    for index in range(min(len(voices), 64)):
        value, true = reader(encoder(normalise_loudness(voices[index]))[:, -1])[:, 0], sounds_like(voices[index])[:, 0]
        scores.append(pearson(value, true))
    return float(np.mean(scores))
