"""`python dev.py models check | get | paths`: what of the published models is there, fetching them, and telling ComfyUI where they are."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

from ..environment.steps import Step, StepFailed

PACKAGES = {"check": ("torch", "einops"), "get": ("huggingface_hub",), "paths": ()}  # what each imports
VOLUME = 80 * 10**9  # bytes: 100 GB with room for videos


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, to see which Python can do it."""
    parser = argparse.ArgumentParser(prog="dev.py models", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    check = commands.add_parser("check", help="which models are there, wrong, incomplete or missing; ends with 0 if all are there")
    check.add_argument("--deep", action="store_true", help="compare SHA-256 with the published files' (reads every byte)")
    check.add_argument("--json", action="store_true", help="in the field names of the worker's answers")
    get = commands.add_parser(
        "get", help="fetch sets of models, or single files: verified, and going on where an earlier run was broken off"
    )
    get.add_argument("wanted", nargs="*", metavar="SET|FILE", help="a set's or a listed file's name; without any, the sets are listed")
    get.add_argument("--dry-run", action="store_true", help="tell what would be fetched, and whether it fits; nothing is asked for")
    get.add_argument("--replace", action="store_true", help="put files in the place of others that have their names")
    paths = commands.add_parser("paths", help="print an extra_model_paths.yaml for ComfyUI")
    for command in (check, get, paths):
        command.add_argument("--models", type=Path, required=command is check, metavar="DIR", help="a folder like ComfyUI's models")
    for command in (check, get):
        command.add_argument(
            "--manifest", type=Path, metavar="FILE", help="another list of files, of the form of multitalk_core/upkeep/models.json"
        )
    options = parser.parse_args(arguments)
    if options.command == "get" and options.wanted and not options.models:
        parser.error("get SET needs --models DIR: where ComfyUI has its models")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    from ...multitalk_core.upkeep.published import ManifestError

    try:
        return {"check": check, "get": get, "paths": paths}[options.command](options)
    except ManifestError as error:
        raise StepFailed("models", str(error), "mend the list, or leave --manifest out.") from error


def paths(options: argparse.Namespace) -> int:
    from ...multitalk_core.upkeep.folders import as_yaml

    print(as_yaml(options.models.expanduser().absolute() if options.models else None), end="")
    return 0


def check(options: argparse.Namespace) -> int:
    from ...multitalk_core.upkeep.check import check_models
    from ...multitalk_core.upkeep.folders import places

    models = _folder(options.models)
    if not models.is_dir():
        raise StepFailed("models", f"there is no folder {models}", "name the folder that ComfyUI has its models in: --models DIR")
    checked = check_models(places(models), options.deep, _bar() if options.deep else None, _manifest(options))
    print(json.dumps(checked.as_json(), indent=1) if options.json else checked.table(shlex.quote(str(options.models))))
    return 0 if checked.complete else 1


def get(options: argparse.Namespace) -> int:
    from .get import Fetcher, NotFetched

    manifest, step = _manifest(options), Step("models")
    if not options.wanted:
        print(_listed(manifest))
        return 0
    wanted, models = _wanted(options.wanted, manifest), _folder(options.models)
    if models.exists() and not models.is_dir():
        raise StepFailed("models", f"{models} is a file", "name the folder that ComfyUI has its models in: --models DIR")
    fetcher, failures = Fetcher(models, step, options.replace), []
    try:
        items = [fetcher.item(entry) for entry in wanted.files]
        print(_plan(wanted, items, fetcher.disks(items)))
        fetcher.expect_room(items)
        if options.dry_run:
            failures = [f"'{item.path}' is another file: move it away, or use --replace" for item in items if item.refused]
        for item in [] if options.dry_run else items:
            try:
                step.say(f"{item.entry.name}: {fetcher.get(item)}")
            except NotFetched as failure:
                failures.append(f"{item.entry.name}: {failure}")
                step.say(failures[-1])
            except OSError as error:
                failures.append(f"{item.entry.name}: this machine refuses it ({error})")
                step.say(failures[-1])
    except NotFetched as failure:
        raise StepFailed("models", str(failure), "then run the same command again.") from failure
    except KeyboardInterrupt:
        step.say("stopped; the same command goes on from here")
        raise
    except OSError as error:
        raise StepFailed("models", f"the folder cannot be used ({error})", "make it writable, or name another.") from error
    if failures:
        text = "\n".join(failures)
        raise StepFailed(
            "models", f"{len(failures)} of {len(items)} files are not there:\n{text}", "as said above; then run the same command again."
        )
    return 0


def _listed(manifest) -> str:
    rows = [f"  {name:<20} {preset.size_in_words:>15}   {preset.about}" for name, preset in manifest.presets.items()]
    fits = [name for name, preset in manifest.presets.items() if preset.bytes < VOLUME]
    return "\n".join(["sets of models:", *rows, f"a volume of 100 GB has room for any one of: {', '.join(fits)}"])


def _wanted(names: list[str], manifest):
    """Sets and single files, together."""
    from ...multitalk_core.upkeep.published import FileSet

    files = {}
    for name in names:
        if name not in manifest.presets and name not in manifest.files:
            advice = f"name a set ({', '.join(manifest.presets)}), or a file of the list"
            raise StepFailed("models", f"there is no set '{name}', and no listed file of that name", advice)
        for entry in manifest.presets[name].files if name in manifest.presets else [manifest.files[name]]:
            files[entry.name] = entry
    about = manifest.presets[names[0]].about if len(names) == 1 and names[0] in manifest.presets else "single files"
    return FileSet(" ".join(names), about, tuple(files.values()))


def _plan(wanted, items, disks) -> str:
    from ...multitalk_core.files import gigabytes

    rows = [f"  {f'{item.entry.folder}/{item.entry.name}':<90} {item.entry.size_in_words:>16}   {item.state}" for item in items]
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    missing = gigabytes(sum(item.missing for item in items))
    free = ", ".join(gigabytes(free) + (f" on the disk of {folder}" if len(disks) > 1 else "") for folder, _, free in disks)
    return "\n".join(
        [f"{wanted.name}: {wanted.about} ({wanted.size_in_words})", *rows, f"to fetch: {missing} from {endpoint}; free: {free}"]
    )


def _folder(given: Path) -> Path:
    return given.expanduser().absolute()


def _manifest(options: argparse.Namespace):
    from ...multitalk_core.upkeep.published import Manifest

    return Manifest.load(options.manifest) if options.manifest else Manifest.load()


def _bar():
    """Tells on a terminal how far the hashing is."""
    last = [0.0]

    def on_progress(done: int, of: int) -> None:
        if sys.stderr.isatty() and (time.monotonic() - last[0] > 1 or done == of):
            last[0] = time.monotonic()
            print(f"\rcomparing SHA-256: {100 * done // max(1, of)} %", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return on_progress
