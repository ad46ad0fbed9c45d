"""A real ComfyUI process with the pack in it, driven over its HTTP API: for tests and for `python dev.py demo`.

    with ComfyServer(comfyui, pack) as server:
        files = server.files(server.run(prompt))

Standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..processes import started

ADDRESS = "127.0.0.1"
PACK_NAME = "multitalk-nodes"  # the folder's name in custom_nodes; ComfyUI calls our nodes' module custom_nodes.<this>
START_LIMIT = 180.0  # seconds until the server must answer; 13–40 is usual on a CPU
CANCEL_LIMIT = 10.0  # seconds for a node to notice an interrupt; some only look at their end
REQUEST_LIMIT = 60.0  # seconds for one HTTP answer
POLL = 0.03  # seconds
LOG_LINES_SHOWN = 40
FOLDERS = ("custom_nodes", "input", "output", "temp", "user")
MODEL_FOLDERS = ("audio_encoders", "clip_vision", "diffusion_models", "loras", "model_patches", "text_encoders", "vae")
# what is copied where the system permits no links: what a user of the nodes gets, and nothing else
PRODUCT = (
    "__init__.py pyproject.toml requirements.txt nodes comfy_bridge multitalk_core web locales subgraphs workflows example_workflows demo"
)
COPY_MARK = ".copy-made-by-tools-server"  # a copy with this file in it may be replaced
FILE_KEYS = ("images", "video", "gifs", "audio")  # where nodes list their saved files; SaveVideo says "images"
CALLERS_MODULES = ("PYTHONPATH", "PYTHONHOME")  # would reach into ComfyUI


class ServerError(Exception):
    """Anything that goes wrong between us and ComfyUI."""


class ServerFailed(ServerError):
    """The process did not start, or died; the message ends with its last log lines."""


class Unreachable(ServerError):
    """The process runs but gave no answer to a request."""


class PromptRefused(ServerError):
    """ComfyUI did not accept a prompt, or not all of it.

    Attributes:
        error: ComfyUI's {"type", "message", "details", …}; empty where only single outputs were refused.
        node_errors: by node id, {"class_type", "errors": [{"type", "message", "details", …}], …}.
    """

    def __init__(self, what: str, error: dict, node_errors: dict):
        lines = [f"ComfyUI refused {what}: {_error_text(error)}" if error else f"ComfyUI refused {what}"]
        for node_id, node in node_errors.items():
            lines += [f"  node {node_id} ({node['class_type']}): {_error_text(reason)}" for reason in node["errors"]]
        lines.append("What to do: correct these nodes in the prompt; object_info() gives every node's inputs.")
        super().__init__("\n".join(lines))
        self.error, self.node_errors = error, node_errors


class NodeFailed(ServerError):
    """A node raised an exception.

    Attributes:
        node_id, node_type: the node in the prompt.
        exception_type: as ComfyUI writes it, such as RuntimeError or PIL.UnidentifiedImageError.
        exception_message, traceback: of the exception; text.
    """

    def __init__(self, message: dict):
        self.node_id = str(message["node_id"])
        self.node_type = message["node_type"]
        self.exception_type = message["exception_type"]
        self.exception_message = message["exception_message"].strip()
        self.traceback = "".join(message["traceback"])
        super().__init__(f"node {self.node_id} ({self.node_type}) failed with {self.exception_type}: {self.exception_message}")


class Interrupted(ServerError):
    """The prompt was interrupted before its end, here in node_id (node_type)."""

    def __init__(self, message: dict):
        self.node_id, self.node_type = str(message["node_id"]), message["node_type"]
        super().__init__(f"the prompt was interrupted at node {self.node_id} ({self.node_type})")


class PromptTimeout(ServerError):
    """The prompt did not end within the time limit."""


class ComfyServer:
    """A ComfyUI process on a free port of this machine, from `with` to the end of its block.

    Args:
        comfyui: ComfyUI's folder, the one with main.py.
        pack: this repository's folder; ComfyUI loads it as custom_nodes/multitalk-nodes.
        python: the interpreter with ComfyUI's requirements.
        base: ComfyUI's base directory (models, input, output, custom_nodes …); made where it is missing. Without one: a
            temporary folder, removed at the end.
        extra_arguments: added to ComfyUI's command line.
        cpu: run on the CPU, also where there is a GPU.
        port: to listen on (default: a free one).
        start_limit: seconds until the server must answer.
        expect_nodes: whether a pack whose nodes ComfyUI does not list is a failed start.
    Raises:
        ServerFailed: at the start of the block. The process died, the pack could not be imported, or the time was up.
    """

    def __init__(
        self,
        comfyui: Path,
        pack: Path,
        python: Path | str = sys.executable,
        base: Path | None = None,
        extra_arguments: Sequence[str] = (),
        *,
        cpu: bool = True,
        port: int | None = None,
        start_limit: float = START_LIMIT,
        expect_nodes: bool = True,
    ):
        self.comfyui, self.pack, self.python = Path(comfyui).absolute(), Path(pack).absolute(), python
        self.extra_arguments, self.cpu, self.start_limit, self.expect_nodes = tuple(extra_arguments), cpu, start_limit, expect_nodes
        self._given_base, self._given_port = base, port
        self._client_id = uuid.uuid4().hex
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's loopback
        if not (self.comfyui / "main.py").is_file():
            raise ServerFailed(f"{comfyui} has no main.py. Expected ComfyUI's folder: set COMFYUI_PATH to it.")

    def __enter__(self) -> ComfyServer:
        with ExitStack() as stack:
            if self._given_base is None:
                kept = tempfile.TemporaryDirectory(prefix="comfyui-base-", ignore_cleanup_errors=True)
                self.base = Path(stack.enter_context(kept))
            else:
                self.base = Path(self._given_base).absolute()
            make_base(self.base, self.pack)
            self.log = self.base / "server.log"
            self.port = self._given_port or free_port()
            self.process = stack.enter_context(_running([*self._command(), *self.extra_arguments], self.base, self.log))
            self._wait_until_ready()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._closing.close()

    def _command(self) -> list[str]:
        return command(self.python, self.comfyui, self.base, self.port, self.cpu)

    # -- starting

    def _wait_until_ready(self) -> None:
        """ComfyUI listens after it has loaded all nodes, so the first answer comes with the whole truth about the pack."""
        deadline = time.monotonic() + self.start_limit
        while not self._answers():
            self._expect_pack_imported()
            if time.monotonic() > deadline:
                raise self._failed(f"ComfyUI did not answer on port {self.port} within {self.start_limit:g} s")
            time.sleep(POLL)
        self._expect_pack_imported()
        if self.expect_nodes and not self.pack_nodes() and _defines_nodes(self.pack):
            raise self._failed(
                f"ComfyUI lists no node of {PACK_NAME}, though its nodes folder has node classes. "
                "Expected them in NODES of nodes/__init__.py, and no NODE_CLASS_MAPPINGS"
            )

    def _answers(self) -> bool:
        """Whether our process answers; the port may have gone to another one while ours was loading."""
        try:
            status, answer = self._request("/system_stats")
        except Unreachable:
            return False
        return status == 200 and isinstance(answer, dict) and str(self.base) in answer.get("system", {}).get("argv", ())

    def _expect_pack_imported(self) -> None:
        folder = re.escape(str(_place_of(self.base)))
        if re.search(rf"\(IMPORT FAILED\): {folder}\s*$", self._log_text(), re.MULTILINE):
            raise self._failed(f"ComfyUI could not import {PACK_NAME} from {self.pack}")

    def _expect_alive(self) -> None:
        if (code := self.process.poll()) is not None:
            raise self._failed(f"ComfyUI ended with exit code {code}")

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"{what}. The last lines of its log say why:\n{self.log_tail(LOG_LINES_SHOWN)}")

    # -- the API

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}"

    def get(self, path: str) -> Any:
        """What GET answers on a path such as "/queue": decoded where it is JSON, else bytes."""
        return self._expect_ok(path, *self._request(path))

    def object_info(self) -> dict[str, dict]:
        """Every node ComfyUI knows: its inputs, outputs and python_module by its id."""
        return self.get("/object_info")

    def pack_nodes(self) -> list[str]:
        """The ids of our nodes, as ComfyUI lists them."""
        return sorted(name for name, node in self.object_info().items() if node["python_module"] == f"custom_nodes.{PACK_NAME}")

    def queue(self, prompt: dict, client_id: str | None = None, workflow: dict | None = None) -> str:
        """Puts a prompt (a graph in API format) at the end of the queue; returns its id.

        Args:
            workflow: the editor's graph, which nodes write into files.
        Raises:
            PromptRefused: it or one of its outputs did not pass validation. ComfyUI would run the other outputs and say
                nothing; we take the prompt back.
        """
        asked = {"prompt": prompt, "client_id": client_id or self._client_id}
        if workflow is not None:
            asked["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        status, answer = self._post("/prompt", asked)
        if not isinstance(answer, dict):  # a prompt so malformed that ComfyUI's own check raises
            answer = {"error": {"type": f"HTTP status {status}", "message": _text(answer)}}
        node_errors = answer.get("node_errors") or {}
        if status != 200:
            error = answer.get("error") or {"type": f"HTTP status {status}"}
            raise PromptRefused("the prompt", error if isinstance(error, dict) else {"message": error}, node_errors)
        if node_errors:
            self.cancel(answer["prompt_id"])
            raise PromptRefused("some of the prompt's outputs", {}, node_errors)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, dict]:
        """Waits until a prompt has ended; returns what its output nodes reported, by node id.

        Raises:
            NodeFailed: a node raised an exception.
            Interrupted: somebody interrupted it.
            PromptTimeout: it has not ended after `timeout` seconds; it goes on.
            ServerFailed: the process died.
        """
        deadline = time.monotonic() + timeout
        while not (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise PromptTimeout(f"prompt {prompt_id} {self._place_in_queue(prompt_id)} after {timeout:g} s. {self._log_hint()}")
            time.sleep(POLL)
        entry = history[prompt_id]
        messages = dict(entry["status"]["messages"])
        if "execution_error" in messages:
            raise NodeFailed(messages["execution_error"])
        if "execution_interrupted" in messages:
            raise Interrupted(messages["execution_interrupted"])
        if entry["status"]["status_str"] != "success":
            raise ServerError(f"prompt {prompt_id} ended with {entry['status']}, expected success. {self._log_hint()}")
        return entry["outputs"]

    def run(self, prompt: dict, timeout: float = 300) -> dict[str, dict]:
        """queue() and wait(). A prompt that runs out of time is cancelled, so that the next one does not wait for it.

        ComfyUI keeps results: the same graph again runs nothing and names the first run's files, even where they were removed.
        """
        prompt_id = self.queue(prompt)
        try:
            return self.wait(prompt_id, timeout)
        except PromptTimeout:
            self.cancel(prompt_id)
            raise

    def files(self, outputs: dict[str, dict]) -> list[Path]:
        """The files that the outputs of wait() or run() name, in their order; those of preview nodes lie in temp."""
        entries = [entry for node in outputs.values() for key in FILE_KEYS for entry in node.get(key, ()) if "filename" in entry]
        return [self.base / entry.get("type", "output") / entry.get("subfolder", "") / entry["filename"] for entry in entries]

    def upload(self, path: Path, subfolder: str = "") -> str:
        """Sends a file of any kind to the input folder; returns the name that loader nodes know it by.

        Another file of the same name is kept, and this one gets a number.
        """
        path = Path(path)
        body, content_type = _multipart({"subfolder": subfolder, "type": "input"}, path)
        answer = self._expect_ok("/upload/image", *self._request("/upload/image", body, content_type))
        return f"{answer['subfolder']}/{answer['name']}" if answer["subfolder"] else answer["name"]

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stops the running prompt at its next check (with an id: if it is that one). Queued prompts stay."""
        self._expect_ok("/interrupt", *self._post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {}))

    def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or interrupts it where it is running and gives it a moment to stop.

        The interrupt is repeated: ComfyUI forgets one that comes just before the prompt's first node.
        """
        self._expect_ok("/queue", *self._post("/queue", {"delete": [prompt_id]}))
        deadline = time.monotonic() + CANCEL_LIMIT
        while self._is_in("queue_running", prompt_id) and time.monotonic() < deadline:
            self.interrupt(prompt_id)
            time.sleep(POLL)

    def log_tail(self, n: int = LOG_LINES_SHOWN) -> str:
        """The last n lines of what ComfyUI wrote, without colours."""
        return "\n".join(self._log_text().splitlines()[-n:])

    def _log_text(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))

    def _log_hint(self) -> str:
        return f"The last lines of {self.log}:\n{self.log_tail(10)}"

    def _is_in(self, queue: str, prompt_id: str) -> bool:
        return prompt_id in [item[1] for item in self.get("/queue")[queue]]

    def _place_in_queue(self, prompt_id: str) -> str:
        if self._is_in("queue_running", prompt_id):
            return "is still running"
        if self._is_in("queue_pending", prompt_id):
            return "is still waiting for others in the queue"
        return "is neither in the queue nor in the history (it was cancelled, or ComfyUI's worker died)"

    def _post(self, path: str, content: dict) -> tuple[int, Any]:
        return self._request(path, json.dumps(content).encode(), "application/json")

    def _request(self, path: str, body: bytes | None = None, content_type: str = "") -> tuple[int, Any]:
        """The status, and the answer: decoded where it is JSON, else bytes. A body makes it a POST."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type} if body is not None else {})
        self._expect_alive()
        try:
            with self._opener.open(request, timeout=REQUEST_LIMIT) as response:
                return response.status, _decoded(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error)
        except (OSError, http.client.HTTPException) as error:
            self._expect_alive()
            raise Unreachable(f"ComfyUI gave no answer on {path}, though its process runs: {error!r}. {self._log_hint()}") from error

    def _expect_ok(self, path: str, status: int, answer: Any) -> Any:
        if status != 200:
            raise ServerError(f"ComfyUI answered {path} with HTTP status {status}, expected 200: {_text(answer)}. {self._log_hint()}")
        return answer


def command(python: Path | str, comfyui: Path, base: Path, port: int, cpu: bool) -> list[str]:
    """What starts a ComfyUI that listens to this machine only, and knows no models and nodes but those in its base directory."""
    flags = ["--listen", ADDRESS, "--port", str(port), "--base-directory", str(base)]
    flags += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    return [str(python), str(comfyui / "main.py"), *flags, *(["--cpu"] if cpu else [])]


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


# -- the process


@contextmanager
def _running(command: list[str], folder: Path, log: Path) -> Iterator[subprocess.Popen]:
    """A process with its output in a file."""
    variables = {name: value for name, value in os.environ.items() if name not in CALLERS_MODULES}
    variables |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    with log.open("wb") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        with started(command, cwd=folder, env=variables, **streams) as process:
            yield process


# -- the base directory


def _place_of(base: Path) -> Path:
    return base / "custom_nodes" / PACK_NAME


def make_base(base: Path, pack: Path) -> None:
    """ComfyUI's base directory, with the pack among its custom nodes; what is missing is made."""
    for folder in (*FOLDERS, *(f"models/{name}" for name in MODEL_FOLDERS)):
        (base / folder).mkdir(parents=True, exist_ok=True)
    place_pack(pack, _place_of(base))


def place_pack(pack: Path, place: Path) -> None:
    """Links the pack to its place in custom_nodes; copies what users get of it where the system permits no links.

    Raises:
        ServerFailed: another folder is there that we did not make.
    """
    if place.exists() and place.samefile(pack):
        return
    if place.is_symlink():
        place.unlink()
    elif (place / COPY_MARK).exists():
        shutil.rmtree(place)
    elif place.exists():
        raise ServerFailed(f"{place} is there already and is not {pack}. Move it away, or choose another base directory.")
    try:
        place.symlink_to(pack, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        _copy_pack(pack, place)


def _copy_pack(pack: Path, place: Path) -> None:
    place.mkdir()
    (place / COPY_MARK).touch()
    for source in (pack / name for name in PRODUCT.split()):
        if source.is_dir():
            shutil.copytree(source, place / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, place)


def _defines_nodes(pack: Path) -> bool:
    sources = (file.read_text(encoding="utf-8") for file in (pack / "nodes").rglob("*.py"))
    return any(re.search(r"^class \w+\(.*\bComfyNode\b", source, re.MULTILINE) for source in sources)


# -- HTTP


def _decoded(response: http.client.HTTPResponse | urllib.error.HTTPError) -> Any:
    content = response.read()
    return json.loads(content) if response.headers.get_content_type() == "application/json" else content


def _text(answer: Any) -> str:
    text = answer.decode("utf-8", "replace").strip() if isinstance(answer, bytes) else json.dumps(answer)
    return text[:500] or "(nothing)"


def _error_text(error: dict) -> str:
    """'type: message (details)' of one of ComfyUI's error records."""
    text = ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))
    return f"{text} ({error['details']})" if error.get("details") else text


def _multipart(fields: dict[str, str], file: Path) -> tuple[bytes, str]:
    """The body and content type of a form with a file in its field "image", which is how ComfyUI calls files of any kind."""
    boundary = uuid.uuid4().hex
    escaped = file.name.replace("\\", "%5C").replace('"', "%22")
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts.append((f'name="image"; filename="{escaped}"\r\nContent-Type: application/octet-stream', file.read_bytes()))
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), data) for head, data in parts
    )
    return body + b"--%b--\r\n" % boundary.encode(), f"multipart/form-data; boundary={boundary}"
