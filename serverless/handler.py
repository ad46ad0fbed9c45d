"""One job after another: what it wants done, and what is answered, whatever happens."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from multitalk_client import AsyncClient, ClientError, NodeFailed, Progress, Template

from . import logs, models
from .errors import JobError
from .generate import Generator
from .metrics import Metrics
from .schema import action_of, asked_of, batch_of
from .settings import Settings, secrets_in

log = logging.getLogger("multitalk.worker")

ENGINE, IMPLEMENTATION = "Real MultiTalk", "MeiGen-MultiTalk"  # older clients look for them
PATIENCE = 180.0  # seconds that ComfyUI may be gone: it is started anew, and large models take their time
SHORT_PATIENCE = 5.0  # for what somebody waits for
LONGEST = 2000  # characters of an error
BETWEEN = 5.0  # seconds between words of progress
HINTS = {
    "out_of_memory": "Ask for a smaller size, or take a larger GPU.",
    "deadline_exceeded": "Send the same job again: finished clips are kept. Or raise MULTITALK_JOB_SECONDS.",
    "interrupted": "Somebody interrupted ComfyUI; send the job again.",
    "comfyui_unreachable": "The worker's log says why ComfyUI is not running.",
    "comfyui_restarted": "The worker's log says why ComfyUI ended, most often for lack of memory.",
    "models_missing": "Put the files on the volume, in the folders of extra_model_paths.yaml; model_check tells more.",
    "disk_full": "Free some space on the worker's volume; finished clips are kept.",
}

FULL = ("No space left on device", "Disk quota exceeded")  # the system's words, in what other nodes raise

Update = Callable[[Mapping[str, Any], Any], None]


class Worker:
    """What RunPod calls for each job.

    Args:
        update: tells RunPod how far a job is.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None, update: Update | None = None) -> None:
        self.settings, self.metrics = settings, metrics or Metrics()
        self._generator, self._update = Generator(settings, self.metrics), update
        self._started = False  # ComfyUI has answered; before, it gets its time
        self._redact = logs.Redactor(secrets_in(os.environ))

    async def __call__(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a job {"id", "input"}; it never raises."""
        name = str(job.get("id") or uuid.uuid4())
        logs.job.set(name)
        given, action = job.get("input"), "unknown"
        self.metrics.running.inc()
        try:
            action = action_of(given)
            log.info("job begins", extra={"action": action})
            if action == "generate" and (batch := batch_of(given)) is not None:
                answer = await self._batch(name, batch, job)
            else:
                answer = await self._answered(lambda: self._do(action, name, given, job))
        except JobError as error:
            answer = error.reply()
        finally:
            self.metrics.running.dec()
        failed = "error" in answer
        self.metrics.jobs.labels(action, "failed" if failed else "completed").inc()
        if failed:
            self.metrics.errors.labels(answer["error_code"]).inc()
            log.error("job failed", extra={"action": action, "code": answer["error_code"], "error": answer["error"]})
        else:
            log.info("job ends", extra={"action": action, "timings": (answer.get("video_info") or {}).get("timings")})
        return answer

    async def _do(self, action: str, name: str, given: Mapping[str, Any], job: Mapping[str, Any], together: int = 1) -> dict[str, Any]:
        """One of the actions; `together` videos go into one answer."""
        patience = SHORT_PATIENCE if self._started and action != "generate" else PATIENCE
        async with AsyncClient(self.settings.comfyui, patience=patience) as client:
            await client.system_stats()
            self._started = True
            if action == "health_check":
                return await self.health(client)
            if action == "model_check":
                return await self._model_check(client, name, given.get("deep") is True)
            if action == "volume_explore":
                return {"status": "success", "folders": await client.model_files()}
            return await self._generator.video(client, name, asked_of(given), self._teller(job), together)

    async def _batch(self, name: str, batch: list[Mapping[str, Any]], job: Mapping[str, Any]) -> dict[str, Any]:
        """Several videos, one after another. One that fails does not keep the others from being made, but the job is not a success."""
        keys = [key for given in batch if (key := given.get("s3_output_key")) is not None]
        if len(set(map(str, keys))) < len(keys):
            raise JobError("Two videos of a batch have the same s3_output_key; one would replace the other.", "invalid_input")
        results = []
        for number, given in enumerate(batch, start=1):
            one = f"{name}-{number}"
            results.append(await self._answered(lambda given=given, one=one: self._do("generate", one, given, job, len(batch))))
        if not (failed := [result for result in results if "error" in result]):
            return {"results": results}
        text = f"{len(failed)} of {len(results)} videos were not made; the first because {failed[0]['error']}"
        return JobError(text, "batch_failed", results=results).reply()

    async def _answered(self, work: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """The work's answer, or what the answer says about its failure; both within the job's seconds."""
        try:
            return await asyncio.wait_for(work(), self.settings.seconds)
        except JobError as error:
            failure = error
        except ClientError as error:
            failure = JobError(str(error), "disk_full" if _is_full(error) else error.code, **error.details)
        except asyncio.TimeoutError:
            failure = JobError(f"The job was not finished after {self.settings.seconds:g} s, so it was called off.", "deadline_exceeded")
        except Exception as error:  # noqa: BLE001 - the last place before RunPod, which would send the stack trace to the caller
            log.exception("job broke")
            full = _is_full(error)
            failure = JobError(
                "The worker's disk is full." if full else "The worker failed; its log says why.", "disk_full" if full else "internal"
            )
        answer = failure.reply()
        answer["error"] = self._redact(answer["error"][:LONGEST])
        answer["error_details"] = json.loads(self._redact(json.dumps(answer["error_details"], default=str)))
        if hint := HINTS.get(failure.code):
            answer["error_details"] = {**answer["error_details"], "hint": hint}
        return answer

    # -- what there is

    async def health(self, client: AsyncClient) -> dict[str, Any]:
        """As older clients read it.

        Raises:
            ClientError: ComfyUI does not answer.
        """
        template = Template.load(self.settings.template)
        host = await client.system_stats()
        state = await models.look(client, template.graph)
        loaded = state.complete and await models.is_loaded(client, template.graph)
        return {
            "status": "healthy",
            "version": self.settings.version,
            "commit": self.settings.commit,
            "implementation": IMPLEMENTATION,
            "multitalk_available": state.complete,
            "multitalk_loaded": loaded,
            "model_info": {
                "models_available": state.available,
                "models_loaded": dict.fromkeys(models.COMPONENTS, loaded),
                "models_needed": state.needed,
                "nodes_missing": state.missing_nodes,
            },
            "multitalk_inference": {"available": state.complete, "loaded": loaded, "engine": ENGINE},
            "template": self.settings.template,
            "comfyui": host.get("system", {}).get("comfyui_version"),
        }

    async def _model_check(self, client: AsyncClient, job: str, deep: bool) -> dict[str, Any]:
        state = await models.look(client, Template.load(self.settings.template).graph)
        found = {name: {"file": file, "available": name not in state.missing} for name, file in state.needed.items()}
        data = {"status": "success", "complete": state.complete, "models": found, "nodes_missing": state.missing_nodes}
        return data | {"model_info": {"models_available": state.available}, "details": await models.details(client, job, deep)}

    def _teller(self, job: Mapping[str, Any]) -> Callable[[Progress], None] | None:
        if self._update is None:
            return None
        update, last = self._update, [0.0]

        def on_progress(progress: Progress) -> None:
            now = asyncio.get_running_loop().time()
            if now - last[0] >= BETWEEN:
                last[0] = now
                update(job, {"state": progress.state, "text": progress.text, "done": progress.done, "of": progress.of})

        return on_progress


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk without space is behind it: the worker's, or ComfyUI's, of which the exception's type and message are left."""
    if isinstance(error, NodeFailed) and (error.exception == "DiskFullError" or any(words in error.message for words in FULL)):
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
