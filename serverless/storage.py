"""The bucket: files in, videos out, each of them checked."""

from __future__ import annotations

import base64
import errno
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import JobError
from .fetch import too_large

REGION = "eu-west-1"
ATTEMPTS = 5  # of boto3, with its back-off
CONNECT, SILENCE = 10, 60  # seconds
URL_SECONDS = 7 * 24 * 3600  # that a signed address is good for; S3 allows no more
VIDEO_TYPES = {".mp4": "video/mp4", ".mkv": "video/x-matroska"}
JOB, INFO = "multitalk-job", "multitalk-info"  # what an object says of itself
LONGEST_INFO = 1500  # bytes; S3 takes 2048 of everything
NOT_THERE = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
DENIED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}


@dataclass(frozen=True)
class Settings:
    """Where the bucket is. Secrets stay out of the repr."""

    bucket: str | None
    region: str
    endpoint: str | None
    key: str | None
    secret: str | None
    token: str | None  # of keys that are good for a while

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """From environment variables; an empty one is as if it were not set."""

        def first(*names: str) -> str | None:
            return next((value for name in names if (value := environment.get(name, "").strip())), None)

        return cls(
            bucket=first("AWS_S3_BUCKET_NAME", "S3_BUCKET"),
            region=first("AWS_REGION") or REGION,
            endpoint=first("BUCKET_ENDPOINT_URL"),
            key=first("AWS_ACCESS_KEY_ID", "BUCKET_ACCESS_KEY_ID"),
            secret=first("AWS_SECRET_ACCESS_KEY", "BUCKET_SECRET_ACCESS_KEY"),
            token=first("AWS_SESSION_TOKEN"),
        )

    def __repr__(self) -> str:
        return f"Settings(bucket={self.bucket!r}, region={self.region!r}, endpoint={self.endpoint!r})"


class Bucket:
    """One bucket, for names alone; others by s3:// addresses.

    All methods block. They raise JobError for what cannot be helped, after boto3 has tried several times.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._opened: Any = None

    def download(self, name: str, file: Path, limit: int) -> None:
        """A key of the default bucket, or s3://bucket/key, into a file of at most `limit` bytes."""
        bucket, key = self.place_of(name)
        with self._told("read", key):
            length = self._client.head_object(Bucket=bucket, Key=key)["ContentLength"]
            if length > limit:
                raise too_large(limit)
            self._client.download_file(bucket, key, str(file))

    def check(self, name: str) -> None:
        """Raises JobError if nothing can be written there: better before a video is made than after. Leaves nothing behind."""
        bucket, key = self.place_of(name)
        with self._told("write", key):
            begun = self._client.create_multipart_upload(Bucket=bucket, Key=key)
        with suppress(JobError), self._told("clean up", key):  # a right of its own, which not everybody has
            self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=begun["UploadId"])

    def find(self, name: str, job: str) -> dict[str, Any] | None:
        """What `upload` stored about a video that the same job left there before; None if there is none."""
        bucket, key = self.place_of(name)
        try:
            with self._told("read", key):
                kept = self._client.head_object(Bucket=bucket, Key=key)["Metadata"]
        except JobError as error:
            if error.code in ("input_not_found", "storage_denied"):  # who may not list gets "denied" for what is not there
                return None
            raise
        return json.loads(base64.b64decode(kept[INFO])) if kept.get(JOB) == job and INFO in kept else None

    def upload(self, file: Path, name: str, job: str, info: Mapping[str, Any]) -> str:
        """Writes a video and asks whether all of it is there; returns its s3:// address.

        Args:
            job: whose it is, for `find`.
            info: about the video, as JSON can hold it.
        """
        bucket, key = self.place_of(name)
        text = base64.b64encode(json.dumps(info).encode()).decode()
        kept = {JOB: job, INFO: text} if len(text) < LONGEST_INFO else {}
        more = {"ContentType": VIDEO_TYPES.get(file.suffix, "application/octet-stream"), "Metadata": kept}
        with self._told("write", key):
            self._client.upload_file(str(file), bucket, key, ExtraArgs=more)
            length = self._client.head_object(Bucket=bucket, Key=key)["ContentLength"]
        if length != file.stat().st_size:
            raise JobError(f"The bucket holds {length} bytes of '{key}', expected {file.stat().st_size}.", "storage_failed", key=key)
        return f"s3://{bucket}/{key}"

    def address(self, name: str) -> str:
        """An https address that is good for a week."""
        bucket, key = self.place_of(name)
        return self._client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=URL_SECONDS)

    def place_of(self, name: str) -> tuple[str, str]:
        """(bucket, key) of a name."""
        if name.startswith("s3://"):
            bucket, _, key = name.removeprefix("s3://").partition("/")
            if not bucket or not key:
                raise JobError("An s3:// address is s3://bucket/key.", "invalid_input")
            return bucket, key
        if not self.settings.bucket:
            raise JobError(
                "There is no bucket for names alone. Set AWS_S3_BUCKET_NAME on the endpoint, or send s3://, https:// or base64.",
                "storage_not_configured",
            )
        return self.settings.bucket, name

    @property
    def _client(self) -> Any:
        if self._opened is None:
            import boto3
            from botocore.config import Config

            if not (self.settings.key and self.settings.secret):
                raise JobError("The bucket's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set.", "storage_not_configured")
            self._opened = boto3.client(
                "s3",
                region_name=self.settings.region,
                endpoint_url=self.settings.endpoint,
                aws_access_key_id=self.settings.key,
                aws_secret_access_key=self.settings.secret,
                aws_session_token=self.settings.token,
                config=Config(
                    signature_version="s3v4",
                    retries={"max_attempts": ATTEMPTS, "mode": "standard"},
                    connect_timeout=CONNECT,
                    read_timeout=SILENCE,
                    proxies={},
                ),
            )
        return self._opened

    @contextmanager
    def _told(self, doing: str, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            raise _explained(error, doing, key) from error


def _explained(error: BaseException, doing: str, key: str) -> JobError:
    code = str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))
    said = {code, *re.findall(r"\((\w+)\)", str(error))}  # of an upload in parts only the text is left
    if said & DENIED:
        text = f"The bucket refuses to {doing} '{key}': check the endpoint's keys and their rights."
        text += " Without the right s3:ListBucket it also says so of what is not there." if doing == "read" else ""
        return JobError(text, "storage_denied", key=key)
    if said & NOT_THERE:
        if doing == "read":
            return JobError(f"'{key}' is not in the bucket.", "input_not_found", key=key)
        return JobError(f"The bucket for '{key}' does not exist: check AWS_S3_BUCKET_NAME.", "storage_failed", key=key)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return JobError("The worker's disk is full.", "disk_full")
    return JobError(f"The bucket could not {doing} '{key}' ({code or type(error).__name__}).", "storage_failed", key=key)
