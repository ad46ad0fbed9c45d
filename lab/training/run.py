"""`python dev.py train-demo`: from nothing to the demo's four files, in stages that can each be broken off and gone on with.

Run in the development environment; ComfyUI's and the pack's own code computes every forward pass.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ...tools.launch import launched, start_comfy

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("speech", "wav2vec2", "encoder", "clips", "decoder", "round_trip", "dit", "going_on", "files")


@dataclass(frozen=True)
class Plan:
    """How much of everything there is."""

    utterances: int
    wav2vec2_steps: int
    joint_steps: int
    decoder_steps: int
    lasting_steps: int
    round_trip_scenes: int
    clip_groups: int
    dit_steps: int
    going_on_steps: int


PLANS = {
    "full": Plan(1600, 1500, 2900, 10000, 3500, 60, 900, 10500, 6000),
    "smoke": Plan(16, 3, 3, 3, 3, 3, 6, 3, 3),  # only shows that everything runs
}
SECONDS = 8.0  # of an utterance
SEEDS = {"vae": 1, "wav2vec2": 2, "clips": 3, "dit": 4, "round_trip": 5, "going_on": 6, "speech": 10, "held_out_speech": 11}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py train-demo", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="checkpoints and clips (default: .train, and the plan's name in it)")
    parser.add_argument("--out", type=Path, help="where the four files go (default: demo/weights; of the plan smoke, weights in --work)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these (default: all, in this order)")
    parser.add_argument("--plan", choices=PLANS, default="full", help="how much training: smoke only shows that everything runs")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that make clips (default: %(default)s)")
    parser.add_argument("--share", type=int, nargs=2, metavar=("I", "N"), help=argparse.SUPPRESS)  # of a process that makes clips
    options = parser.parse_args(arguments)
    options.work = options.work or ROOT / ".train" / options.plan
    options.out = options.out or (ROOT / "demo" / "weights" if options.plan == "full" else options.work / "weights")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1 process was expected")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    start()
    import torch

    from .stage import StageError

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    options.work.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"[{(time.monotonic() - began) / 60:6.1f} min] {line}", flush=True)

    try:
        for stage in options.stages:
            report(stage)
            globals()[f"stage_{stage}"](options, PLANS[options.plan], device, report)
    except (StageError, ImportError, OSError) as error:
        print(f"train-demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def start() -> None:
    """Make ComfyUI importable, with the attention that has a fast gradient."""
    start_comfy()
    from comfy.cli_args import args

    from ...tools.processes import leave_on_signals

    leave_on_signals()
    args.use_pytorch_cross_attention = True  # of ComfyUI's attentions, the one with a fast gradient


def stage_speech(options, plan, device, report):
    """Sentences of many voices, and others of voices, words and languages that are never trained on."""
    for split in ("train", "held_out"):
        voices(options, plan, split)


def voices(options, plan, split):
    from ..scenes.speech import corpus

    if split == "train":
        return corpus(options.work, split, plan.utterances, SECONDS, SEEDS["speech"])
    return corpus(options.work, split, min(64, plan.utterances), SECONDS, SEEDS["held_out_speech"])


def stage_wav2vec2(options, plan, device, report):
    from .train_encoder import train_encoder

    speech = voices(options, plan, "train"), voices(options, plan, "held_out")
    return train_encoder(options.work, report, *speech, plan.wav2vec2_steps, SEEDS["wav2vec2"])


def stage_encoder(options, plan, device, report):
    from .train_vae import frozen_encoder

    return frozen_encoder(options.work, report, plan.joint_steps, device, SEEDS["vae"])


def stage_clips(options, plan, device, report):
    """In processes of one thread each."""
    import torch

    from ...tools.processes import started
    from .clips import make_groups

    cpu = torch.device("cpu")
    encoder = stage_wav2vec2(options, plan, cpu, report)  # before others ask for it
    vae = stage_encoder(options, plan, cpu, report)
    if options.share or options.jobs == 1:
        share = tuple(options.share or (0, 1))
        speech = voices(options, plan, "train")
        make_groups(options.work / "clips", report, vae, encoder, speech, plan.clip_groups, share, SEEDS["clips"])
        return
    again = launched("lab.training.run", "--work", str(options.work), "--plan", options.plan, "--device", "cpu", "--stages", "clips")
    shares = [[*again, "--share", str(i), str(options.jobs)] for i in range(options.jobs)]
    with ExitStack() as stack:
        running = [stack.enter_context(started(share, env=os.environ | {"OMP_NUM_THREADS": "1"})) for share in shares]
        codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("train-demo: a process that makes clips failed; its message is above. Start again: finished clips stay.")


def stage_decoder(options, plan, device, report):
    from .train_vae import train_vae

    return train_vae(options.work, report, plan.joint_steps, plan.decoder_steps, plan.lasting_steps, device, SEEDS["vae"])


def stage_round_trip(options, plan, device, report):
    from .round_trip import measure_round_trip

    vae = stage_decoder(options, plan, device, report)
    return measure_round_trip(options.work, report, vae, plan.round_trip_scenes, device, SEEDS["round_trip"])


def stage_dit(options, plan, device, report):
    from .train_dit import train_dit

    return train_dit(options.work, clips_of(options, plan), report, plan.dit_steps, device, SEEDS["dit"])


def clips_of(options, plan):
    from .clips import group_files

    return group_files(options.work / "clips", plan.clip_groups)


def stage_going_on(options, plan, device, report):
    from .train_dit import train_going_on

    talker, round_trip = stage_dit(options, plan, device, report), stage_round_trip(options, plan, device, report)
    clips = clips_of(options, plan)
    return train_going_on(talker, round_trip, options.work, clips, report, plan.going_on_steps, device, SEEDS["going_on"])


def stage_files(options, plan, device, report):
    from .files import write_files
    from .train_vae import whole

    talker, vae, encoder = (stage(options, plan, device, report) for stage in (stage_going_on, stage_decoder, stage_wav2vec2))
    from .stage import histories

    training = {"plan": asdict(plan), "seeds": SEEDS, "stages": histories(options.work)}
    write_files(options.out, talker, whole(vae.cpu()), encoder, training)
