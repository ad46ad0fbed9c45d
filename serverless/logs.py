"""Logs as one JSON object a line, without anything secret, whoever writes them; the job's id is in what is done for a job."""

from __future__ import annotations

import contextvars
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

job: contextvars.ContextVar[str] = contextvars.ContextVar("job", default="")

HIDDEN = "[hidden]"
LONGEST = 20_000  # characters of a line
PATTERNS = (  # each takes time in proportion to the text, whatever is in it
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), HIDDEN),  # names of AWS keys
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(https?://)[^\s/@\"']+@"), r"\1"),  # a password in an address
    (re.compile(r"\?[^\s?\"'<>\\=]+=[^\s\"'<>\\]*"), f"?{HIDDEN}"),  # signatures are in what an address asks
    (re.compile(r"[A-Za-z0-9+/]{200,}={0,2}"), "[base64]"),
)
LEVELS = {"ERROR", "WARNING", "WARN", "INFO", "DEBUG"}
PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Redactor:
    """Takes out of a text what nobody should read."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]} [and {len(text) - LONGEST} characters more]"
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        for pattern, shown in PATTERNS:
            text = pattern.sub(shown, text)
        return text


class JsonLines(logging.Formatter):
    """{"time", "level", "logger", "message", "job", …}: what is given as `extra` becomes fields."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job.get():
            data["job"] = job.get()
        data |= {name: value for name, value in vars(record).items() if name not in PLAIN}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return self._redact(json.dumps(data, ensure_ascii=False, default=str))


class Redacted:
    """A stream for what others print: the SDK prints whole jobs and answers when it is set to say much."""

    def __init__(self, stream: TextIO, redact: Redactor) -> None:
        self._stream, self._redact = stream, redact

    def write(self, text: str) -> int:
        self._stream.write(self._redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def set_up(redact: Redactor) -> None:
    """From here on everything that this process writes is redacted, and our own lines are JSON. RUNPOD_DEBUG_LEVEL says how much."""
    level = os.environ.get("RUNPOD_DEBUG_LEVEL", "").strip().upper()
    sys.stdout, sys.stderr = Redacted(sys.stdout, redact), Redacted(sys.stderr, redact)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(redact))
    logging.basicConfig(level=level if level in LEVELS else "INFO", handlers=[handler], force=True)
    for chatty in ("botocore", "boto3", "urllib3", "s3transfer", "aiohttp.access"):  # at DEBUG they write headers with signatures
        logging.getLogger(chatty).setLevel(logging.WARNING)
