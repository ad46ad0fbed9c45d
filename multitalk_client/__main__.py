"""`python -m multitalk_client generate --image face.png --audio voice.wav --out talk.mp4`"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from .comfy import SERVER
from .errors import ClientError
from .queue import Progress
from .request import Request, Voice
from .sync import Client
from .templates import DEFAULT, Template, templates

FIELDS = ("image", "video", "layout", "duration", "prompt", "negative_prompt", "width", "height")
FIELDS += ("size", "frames", "seed", "steps", "shift", "text_scale", "audio_scale", "family")
BAR = 30  # characters
BETWEEN = 10.0  # seconds between lines where there is no terminal


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m multitalk_client", description="Talking videos from a ComfyUI with the MultiTalk nodes."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="a picture and voices in, a video out")
    make.add_argument("--audio", action="append", type=Path, required=True, help="speech; again for the next person")
    make.add_argument(
        "--box", action="append", type=_box, default=[], metavar="X0,Y0,X1,Y1", help="a person's face, in the order of --audio"
    )
    make.add_argument("--out", type=Path, required=True, help="the file to write")
    make.add_argument("--template", default=DEFAULT, help=f"one of {', '.join(templates())}, or a .json file (default: %(default)s)")
    make.add_argument(
        "--server", default=os.environ.get("COMFYUI_URL", SERVER), help="ComfyUI's address (default: %(default)s, or COMFYUI_URL)"
    )
    make.add_argument("--header", action="append", default=[], metavar="NAME: VALUE", help="sent along, such as 'Authorization: Bearer …'")
    make.add_argument("--job", help="a name; asking again under it waits for the same video (default: the request itself)")
    make.add_argument("--timeout", type=float, default=3600.0, help="seconds for everything (default: %(default)g)")
    make.add_argument("--quiet", action="store_true", help="no progress")
    for name in FIELDS:
        described = Request.model_fields[name].description
        make.add_argument(f"--{name.replace('_', '-')}", help=described)
    options = parser.parse_args(arguments)
    if options.box and len(options.box) != len(options.audio):
        parser.error(f"{len(options.box)} --box for {len(options.audio)} --audio; give one for each, or none")
    if any(":" not in header for header in options.header):
        parser.error("a --header is a name, a colon and a value")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    bar = Bar(sys.stderr, options.quiet)
    try:
        request, template = request_of(options), Template.load(options.template)
        headers = {name.strip(): value.strip() for name, value in (header.split(":", 1) for header in options.header)}
        with Client(options.server, headers) as client:
            made = client.generate(request, options.out, template, job=options.job, timeout=options.timeout, progress=bar)
    except ClientError as error:
        bar.end()
        print(f"multitalk_client: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        bar.end()
        print("multitalk_client: called off", file=sys.stderr)
        return 130
    bar.end()
    print(made)
    return 0


def request_of(options: argparse.Namespace) -> Request:
    """The options as a request; what pydantic finds wrong ends the program as argparse would."""
    boxes = options.box or [None] * len(options.audio)
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    try:
        return Request(audio=[Voice(audio=file, box=box) for file, box in zip(options.audio, boxes, strict=True)], **given)
    except ValidationError as error:
        lines = [f"--{'-'.join(map(str, item['loc'])).replace('_', '-')}: {item['msg']}" for item in error.errors()]
        print("multitalk_client: " + "\n".join(lines), file=sys.stderr)
        raise SystemExit(2) from error


def _box(text: str) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = (float(edge) for edge in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no box; write left,top,right,bottom in pixels") from error
    return x0, y0, x1, y1


class Bar:
    """Progress in one line where there is a terminal, else a line now and then."""

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self._stream, self._quiet, self._live = stream, quiet, stream.isatty()
        self._began, self._printed, self._text, self._last = time.monotonic(), 0.0, "", ""
        self._at = Progress("waiting")

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return
        if progress.text:
            self._text = progress.text
        if progress.node == self._at.node and not progress.of:  # a text says nothing of the steps
            progress = replace(progress, done=self._at.done, of=self._at.of)
        self._at = progress
        line = self._told(progress)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", file=self._stream, flush=True)
        elif time.monotonic() - self._printed > BETWEEN:
            self._printed = time.monotonic()
            print(line, file=self._stream, flush=True)
        self._last = line

    def end(self) -> None:
        if self._live and self._last:
            print(file=self._stream)

    def _told(self, progress: Progress) -> str:
        if progress.state == "waiting":
            return f"waiting: {progress.ahead} before" if progress.ahead else "waiting"
        if progress.state == "reconnecting":
            return "the connection was lost; connecting again"
        seconds = time.monotonic() - self._began
        if not progress.of:
            return f"{seconds:5.0f} s  {self._text or 'running'}"
        full = BAR * progress.done // progress.of
        return f"{seconds:5.0f} s [{'#' * full}{'.' * (BAR - full)}] {progress.done}/{progress.of} {self._text}"


if __name__ == "__main__":
    sys.exit(main())
