#!/usr/bin/env python3
"""The developer's command: `python dev.py test`, and the rest under `python dev.py --help`.

Standard library only: what it runs, it runs in an environment that it makes itself (tools/environment/environment.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python gets as far as here
    sys.exit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}. Run it with a newer one: python3.12 dev.py …")

from tools.launch import register_pack

register_pack()

from multitalk_nodes.lab import faults as faults_options
from multitalk_nodes.lab.benchmarks import drift as drift_options
from multitalk_nodes.lab.benchmarks import long_video as long_video_options
from multitalk_nodes.lab.benchmarks import performance as performance_options
from multitalk_nodes.lab.benchmarks import step_cache as step_cache_options
from multitalk_nodes.lab.benchmarks import sync_check as sync_check_options
from multitalk_nodes.lab.evaluation import main as eval_options
from multitalk_nodes.lab.training import run as train_options
from multitalk_nodes.tools import testing
from multitalk_nodes.tools.comfyui import demo as demo_options
from multitalk_nodes.tools.comfyui import serve as serve_options
from multitalk_nodes.tools.environment import doctor as doctor_options
from multitalk_nodes.tools.environment import environment
from multitalk_nodes.tools.environment.steps import StepFailed
from multitalk_nodes.tools.environment.venvs import clean_variables
from multitalk_nodes.tools.models import main as models_options
from multitalk_nodes.tools.processes import leave_on_signals, run
from multitalk_nodes.tools.release import matrix as matrix_options
from multitalk_nodes.tools.release import signatures as signatures_options


def env(options: argparse.Namespace) -> int:
    """make the environment and print its paths"""
    made = environment.prepare()
    if options.prune:
        environment.prune(made.folder)
    rows = {"comfyui": made.host.path, "python": made.python, "goldens": made.goldens or "none found (MULTITALK_GOLDENS)"}
    for name, value in rows.items():
        print(f"{name:<8} {value}")
    return 0


def test(options: argparse.Namespace) -> int:
    """ruff, the quick tests, and a few on the oldest ComfyUI; further arguments go to pytest, which then runs in one process"""
    if options.matrix:
        matrix_options.parse(options.more)
        return environment.prepare().launch("tools.release.matrix", options.more)
    return testing.test(environment.prepare(), options.more, options.all, options.coverage)


def lint(options: argparse.Namespace) -> int:
    """ruff check, ruff format --check, pyright on multitalk_core"""
    made = environment.prepare()
    checks = (["ruff", "check"], ["ruff", "format", "--check"], ["pyright", "--pythonpath", str(made.python)])
    return max([made.run(["-m", *check]) for check in checks])


def parity(options: argparse.Namespace) -> int:
    """compare the core with the published code's results"""
    made = environment.prepare()
    goldens = Path(options.goldens).resolve() if options.goldens else made.goldens
    if goldens is None:
        raise StepFailed("parity", "no folder of goldens was found", "name it: python dev.py parity --goldens DIR")
    only = ["--only", *options.only] if options.only else []
    return made.launch("lab.parity.main", ["--goldens", str(goldens), *only])


def demo(options: argparse.Namespace) -> int:
    """make a drawn face talk on the CPU, or your own: --image FACE --audio SPEECH --out FILE"""
    demo_options.parse(options.more)  # a wrong call, or --help, needs no environment
    made = environment.prepare()
    return made.launch("tools.comfyui.demo", options.more)


def serve(options: argparse.Namespace) -> int:
    """ComfyUI and the serverless worker on this machine, with the demo model: a request in, a video out"""
    serve_options.parse(options.more)
    made = environment.prepare()
    return made.launch("tools.comfyui.serve", options.more)


def train_demo(options: argparse.Namespace) -> int:
    """train the demo's model, from nothing to its four files (hours on a CPU; goes on where it was broken off)"""
    train_options.parse(options.more)  # a wrong call, or --help, needs no environment
    made = environment.prepare()
    return made.launch("lab.training.run", options.more)


def eval_demo(options: argparse.Namespace) -> int:
    """measure the demo's model on newly drawn faces, and on voices and words that it never heard"""
    eval_options.parse(options.more)
    made = environment.prepare()
    return made.launch("lab.evaluation.main", options.more)


BENCHES = {
    "performance": performance_options,
    "long-video": long_video_options,
    "drift": drift_options,
    "sync-check": sync_check_options,
    "step-cache": step_cache_options,
}


def bench(options: argparse.Namespace) -> int:
    """measure speed (--gpu: on a card), or with a name: long-video, drift, sync-check, step-cache; writes docs/measured"""
    name, *more = options.more if options.more and not options.more[0].startswith("-") else ["performance", *options.more]
    if name not in BENCHES:
        raise StepFailed("bench", f"there is no measurement '{name}'", "name one: python dev.py bench " + " | ".join(BENCHES))
    BENCHES[name].parse(more)
    made = environment.prepare()
    return made.launch(f"lab.benchmarks.{BENCHES[name].__name__.rpartition('.')[2]}", more)


def models(options: argparse.Namespace) -> int:
    """`models check` what is there, `models get` what is missing, `models paths` for ComfyUI's extra_model_paths.yaml"""
    chosen = models_options.parse(options.more)
    if (other := environment.python_with(*models_options.PACKAGES[chosen.command])) is not None:
        return again(other)
    return models_options.main(options.more)


def doctor(options: argparse.Namespace) -> int:
    """versions, device, attention, memory, and what to change; run it with ComfyUI's Python to look at that"""
    doctor_options.parse(options.more)
    if not importlib.util.find_spec("torch") and (other := environment.python_there()) is not None:
        return again(other)
    return doctor_options.main(options.more)


def again(python: Path) -> int:
    """This command once more, by another Python."""
    return run([str(python), __file__, *sys.argv[1:]], env=clean_variables())


def mutants(options: argparse.Namespace) -> int:
    """change one sign, index or range at a time and see that parity notices (5 minutes)"""
    made = environment.prepare()
    if made.goldens is None:
        raise StepFailed("mutants", "no folder of goldens was found", "set MULTITALK_GOLDENS to one")
    return made.launch("lab.parity.mutants", [str(made.goldens)])


def faults(options: argparse.Namespace) -> int:
    """put ten random faults into the product, one at a time, and see that the quick tests notice (an hour or less)"""
    faults_options.parse(options.more)
    made = environment.prepare()
    return made.launch("lab.faults", options.more)


def kills(options: argparse.Namespace) -> int:
    """kill -9 ComfyUI while it makes a long video: --count 12 takes three minutes"""
    made = environment.prepare()
    return made.launch("lab.kills", options.more)


def release_signatures(options: argparse.Namespace) -> int:
    """record the nodes' inputs and outputs and the workflows of the version in pyproject.toml, which later ones are held against"""
    signatures_options.parse(options.more)
    made = environment.prepare()
    return (made.on_oldest() or made).launch("tools.release.signatures", options.more)


PARITY_OPTIONS = {
    "--goldens": {"metavar": "DIR", "help": "folder of the published code's results (default: MULTITALK_GOLDENS or ../shared/goldens)"},
    "--only": {"metavar": "ITEM", "nargs": "+", "help": "compare these items only"},
}
TEST_OPTIONS = {
    "--all": {"action": "store_true", "help": "the slow tests, too"},
    "--coverage": {"action": "store_true", "help": "say which lines of the product ran, in ComfyUI's processes, too"},
    "--matrix": {"action": "store_true", "help": "the demo on every supported version (half an hour); writes a page in docs/measured"},
}
ENV_OPTIONS = {"--prune": {"action": "store_true", "help": "remove the environments that older requirements left in the cache"}}

# a command is a function and a row: its options, and whether it takes arguments that it does not know
COMMANDS = (
    (demo, {}, True),
    (serve, {}, True),
    (models, {}, True),
    (doctor, {}, True),
    (eval_demo, {}, True),
    (train_demo, {}, True),
    (test, TEST_OPTIONS, True),
    (parity, PARITY_OPTIONS, False),
    (bench, {}, True),
    (kills, {}, True),
    (mutants, {}, False),
    (faults, {}, True),
    (release_signatures, {}, True),
    (lint, {}, False),
    (env, ENV_OPTIONS, False),
)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for function, flags, takes_more in COMMANDS:
        name = function.__name__.replace("_", "-")
        command = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, add_help=not takes_more or bool(flags), allow_abbrev=False
        )
        command.set_defaults(function=function, takes_more=takes_more)
        for flag, settings in flags.items():
            command.add_argument(flag, **settings)
    options, options.more = parser.parse_known_args(arguments)
    if options.more and not options.takes_more:
        parser.error(f"unrecognized arguments: {' '.join(options.more)}")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    leave_on_signals()
    try:
        return options.function(options)
    except StepFailed as failure:
        print(f"\ndev.py stopped at {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
