"""A job that asks for a video: from what it names to a file that was looked at, in the bucket or in the answer."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from multitalk_client import AsyncClient, ClientError, Made, Progress, Template, id_of
from multitalk_client.comfy import SUBFOLDER
from multitalk_client.queue import files_of, reports_of, seconds_of
from multitalk_client.templates import Prompt

from . import models, prepare
from .errors import JobError
from .inputs import Inputs
from .metrics import Metrics, Timings
from .schema import Delivery, Generate, Workflow
from .settings import Settings
from .storage import Bucket
from .video import Video, at_rate, probe

log = logging.getLogger("multitalk.job")

LARGEST_ANSWER = 7_000_000  # bytes of videos inside an answer: RunPod takes 10 MB, and base64 is a third longer
NOTE = "Real MultiTalk inference"  # older clients look for it
OTHER = "A workflow without MultiTalk"
SEEDS = ("seed", "noise_seed")

OnProgress = Callable[[Progress], None]


class Generator:
    """Makes videos; ComfyUI keeps the models between them."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._bucket = Bucket(settings.storage)

    async def video(
        self, client: AsyncClient, job: str, asked: Generate | Workflow, on_progress: OnProgress | None = None, together: int = 1
    ) -> dict[str, Any]:
        """The job's answer.

        Args:
            job: its name; whoever asks under it again gets the same video.
            on_progress: is called with every word of progress.
            together: videos that go into one answer.
        Raises:
            JobError, ClientError: what went wrong.
        """
        began, timings = time.monotonic(), Timings(self._metrics)
        form, key = self._form(asked), asked.s3_output_key or f"multitalk/{re.sub(r'[^A-Za-z0-9_.-]', '_', job)}.mp4"
        if form != "base64":
            with timings.phase("check_storage"):
                await asyncio.to_thread(self._bucket.check, key)
                if (info := await asyncio.to_thread(self._bucket.find, key, job)) is not None:
                    return {"video": await self._address(form, key), "video_info": info}
        folder = f"{SUBFOLDER}/{id_of(job)}"  # of ComfyUI's inputs
        with tempfile.TemporaryDirectory(prefix="multitalk-job-") as name:
            try:
                prepared = await self._prepared(client, asked, Inputs(Path(name), self._bucket), folder, timings)
                with timings.phase("render"):
                    made = await client.make(
                        prepared.graph,
                        Path(name) / "made.mp4",
                        job=job,
                        files=prepared.files,
                        folder=folder,
                        timeout=self._settings.seconds,
                        progress=on_progress,
                    )
                file, video, notes = await self._finished(made, asked, timings)
                info = _info(made, prepared.graph, video, [*notes, *prepared.notes], timings)
                with timings.phase("deliver"):
                    if form == "base64":
                        answer = await asyncio.to_thread(_inside, file, LARGEST_ANSWER // together)
                    else:
                        await asyncio.to_thread(self._bucket.upload, file, key, job, info)
                        answer = await self._address(form, key)
            finally:
                await self._tidy(client, job, folder)
        self._metrics.pace.observe((time.monotonic() - began) / video.duration)
        return {"video": answer, "video_info": info | {"timings": dict(timings)}}

    def _form(self, asked: Delivery) -> str:
        """How the video is handed over; what is not possible is refused before it is made."""
        form = asked.output_format or ("s3" if self._settings.storage.bucket or asked.s3_output_key else "base64")
        if form != "base64" and not self._settings.storage.bucket:
            raise JobError(f"output_format {form} needs a bucket: set AWS_S3_BUCKET_NAME on the endpoint.", "storage_not_configured")
        return form

    async def _prepared(
        self, client: AsyncClient, asked: Generate | Workflow, inputs: Inputs, folder: str, timings: Timings
    ) -> prepare.Prepared:
        if isinstance(asked, Workflow):
            graph = prepare.workflow_of(asked, self._settings)
            with timings.phase("check_models"):
                (await models.look(client, graph)).expect_complete()
            with timings.phase("fetch"):
                return await prepare.with_files(client, asked, graph, inputs, folder)
        template = prepare.template_of(asked, self._settings)
        with timings.phase("check_models"):
            await self.ready(client, template)
        with timings.phase("fetch"):
            request = await prepare.request_of(asked, template, inputs)
        with timings.phase("upload"):
            return await prepare.fill(client, asked, template, request, folder)

    async def ready(self, client: AsyncClient, template: Template) -> models.State:
        """Loads a template's models, if they are not.

        Raises:
            JobError: not all of them are there, or not all of them load.
        """
        state = await models.look(client, template.graph)
        state.expect_complete()
        await models.load(client, template.graph, state, self._settings.seconds)
        state.expect_loaded()
        return state

    async def _finished(self, made: Made, asked: Delivery, timings: Timings) -> tuple[Path, Video, list[str]]:
        """The file as it is handed over, looked at."""
        with timings.phase("probe"):
            video = await asyncio.to_thread(probe, made.file)
        note = f"{video.frames} frames generated at {video.fps:g} fps"
        if asked.fps is None or abs(asked.fps - video.fps) < 0.01:
            return made.file, video, [note]
        with timings.phase("convert"):
            file = made.file.with_name("converted.mp4")
            await asyncio.to_thread(at_rate, made.file, asked.fps, file)
            video = await asyncio.to_thread(probe, file)
        return file, video, [f"{note}, converted to {video.frames} at {video.fps:g} fps"]

    async def _address(self, form: str, key: str) -> str:
        if form == "url":
            return await asyncio.to_thread(self._bucket.address, key)
        return "s3://{}/{}".format(*self._bucket.place_of(key))

    async def _tidy(self, client: AsyncClient, job: str, folder: str) -> None:
        """Removes a job's files from ComfyUI's folders, as far as they are on this machine; an answer does not depend on it."""
        folders, saved = self._settings.folders, []
        if not folders:
            return
        with suppress(ClientError, aiohttp.ClientError, asyncio.TimeoutError):
            state, entry = await client.look(id_of(job))
            saved = files_of(entry) if state == "ended" else []
        try:
            for output in saved:
                if output.type in folders:
                    place = (folders[output.type] / output.subfolder / output.filename).resolve()
                    if place.is_relative_to(folders[output.type].resolve()):
                        place.unlink(missing_ok=True)
            if "input" in folders:
                shutil.rmtree(folders["input"] / folder, ignore_errors=True)
        except OSError as error:
            log.warning("a job's files could not be removed", extra={"why": str(error)})


def _inside(file: Path, limit: int) -> str:
    """A video as base64."""
    if (length := file.stat().st_size) > limit:
        text = f"The video has {length} bytes, and there is room for {limit} in the answer. Ask for output_format s3 or url."
        raise JobError(text, "output_too_large", bytes=length)
    return base64.b64encode(file.read_bytes()).decode()


def _info(made: Made, graph: Prompt, video: Video, notes: Sequence[str], timings: Timings) -> dict[str, Any]:
    """What the answer says about a video."""
    if (seconds := seconds_of(made.entry)) is not None:
        timings["comfyui"] = seconds
    shape = next((report.get("audio_features") for report in reports_of(made.entry)), None)
    ours = any(node["class_type"].startswith("MultiTalk") and "model" in node["inputs"] for node in graph.values())
    seeds = (node["inputs"][name] for node in graph.values() for name in SEEDS if name in node["inputs"])
    return {
        "width": video.width,
        "height": video.height,
        "fps": video.fps,
        "frames": video.frames,
        "duration": round(video.duration, 3),
        "seed": next((seed for seed in seeds if isinstance(seed, int)), None),
        "processing_note": f"{NOTE if ours else OTHER}: {'; '.join(notes)}",
        "models_used": {"wav2vec_model" if name == "wav2vec" else name: file for name, file in models.needed_by(graph).items()},
        "audio_features_shape": shape,
        "timings": dict(timings),
    }
