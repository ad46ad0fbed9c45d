"""ComfyUI as a process with the pack in it, and what the harness makes of its answers.

The tests of starting and stopping use a main.py of a few lines instead of ComfyUI's.
"""

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multitalk_nodes.tools import processes
from multitalk_nodes.tools.comfyui.server import (
    COPY_MARK,
    PACK_NAME,
    ComfyServer,
    Interrupted,
    NodeFailed,
    PromptRefused,
    PromptTimeout,
    ServerFailed,
    place_pack,
)

ROOT = Path(__file__).resolve().parents[2]


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def empty_image(size: int = 8, color: int = 0) -> dict:
    return node("EmptyImage", width=size, height=size, batch_size=1, color=color)


def save(node_id: str, prefix: str = "test") -> dict:
    return node("SaveImage", images=[node_id, 0], filename_prefix=prefix)


def blurs(count: int) -> dict:
    """A long prompt: ComfyUI looks for an interrupt before every node."""
    chain = {str(i): node("ImageBlur", image=[str(i - 1), 0], blur_radius=20, sigma=5.0) for i in range(1, count + 1)}
    return {"0": empty_image(1024), **chain, "save": save(str(count))}


def png_size(file: Path) -> tuple[int, int]:
    return struct.unpack(">II", file.read_bytes()[16:24])


# -- a real ComfyUI


def test_the_pack_is_imported(server):
    assert "IMPORT FAILED): " not in server.log_tail(1000)
    assert f"custom_nodes{os.sep}{PACK_NAME}" in server.log_tail(1000)


def test_comfyui_lists_its_nodes_and_ours(server):
    assert {"EmptyImage", "SaveImage", "LoadAudio"} <= server.object_info().keys()
    assert set(server.pack_nodes()) <= server.object_info().keys()


def test_a_prompt_saves_a_file(server):
    scale = node("ImageScale", image=["1", 0], upscale_method="bilinear", width=24, height=16, crop="disabled")
    outputs = server.run({"1": empty_image(), "2": scale, "3": save("2", "folder/scaled")})
    (file,) = server.files(outputs)
    assert file.parent == server.base / "output" / "folder"
    assert png_size(file) == (24, 16)


def test_a_preview_lies_in_temp(server):
    (file,) = server.files(server.run({"1": empty_image(), "2": node("PreviewImage", images=["1", 0])}))
    assert file.parent == server.base / "temp"
    assert file.is_file()


def test_audio_is_among_the_files(server):
    silence = node("EmptyAudio", duration=0.1, sample_rate=16000, channels=1)
    (file,) = server.files(server.run({"1": silence, "2": node("SaveAudio", audio=["1", 0], filename_prefix="audio")}))
    assert file.suffix == ".flac"
    assert file.is_file()


def test_an_unknown_node_is_refused(server):
    with pytest.raises(PromptRefused, match=r"missing_node_type.*NoSuchNode.*not found.*#1") as refused:
        server.queue({"1": node("NoSuchNode"), "2": save("1")})
    assert refused.value.error["type"] == "missing_node_type"


def test_a_bad_value_is_refused_with_the_node_and_the_input(server):
    with pytest.raises(PromptRefused, match=r"node 1 \(EmptyImage\): value_smaller_than_min.*width") as refused:
        server.queue({"1": empty_image(0), "2": save("1")})
    assert refused.value.node_errors["1"]["class_type"] == "EmptyImage"


def test_a_prompt_with_one_bad_output_is_refused_whole(server):
    """ComfyUI answers 200 and runs the good one: here that would be 59 blurs."""
    with pytest.raises(PromptRefused, match=r"some of the prompt's outputs\n  node bad \(SaveImage\): required_input_missing.*images"):
        server.queue(blurs(59) | {"bad": node("SaveImage", filename_prefix="bad")})
    server.run({"1": empty_image(), "2": save("1")}, timeout=10)


def test_what_is_no_prompt_is_refused(server):
    with pytest.raises(PromptRefused):
        server.queue({})
    with pytest.raises(PromptRefused, match="500"):
        server.queue({"1": "text"})


def test_a_failing_node_is_named_and_the_next_prompt_runs(server):
    """The blur pads by reflection, which needs an image larger than its radius."""
    with pytest.raises(NodeFailed, match=r"node small \(ImageBlur\) failed with RuntimeError: .*[Pp]adding") as failed:
        server.run({"1": empty_image(4), "small": node("ImageBlur", image=["1", 0], blur_radius=31, sigma=1.0), "3": save("small")})
    assert (failed.value.node_id, failed.value.node_type, failed.value.exception_type) == ("small", "ImageBlur", "RuntimeError")
    assert "execute" in failed.value.traceback
    assert server.files(server.run({"1": empty_image(color=1), "2": save("1")}))


def test_an_interrupted_prompt_says_so(server):
    prompt_id = server.queue(blurs(60))
    server.cancel(prompt_id)
    with pytest.raises(Interrupted, match=r"at node \d+ \((ImageBlur|EmptyImage)\)"):
        server.wait(prompt_id, timeout=30)


def test_a_prompt_that_takes_too_long_makes_room_for_the_next(server):
    with pytest.raises(PromptTimeout, match=r"still running after 0.5 s"):
        server.run(blurs(61), timeout=0.5)
    server.run({"1": empty_image(color=2), "2": save("1")}, timeout=10)


def test_a_cancelled_prompt_in_the_queue_does_not_run(server):
    first, second = server.queue(blurs(62)), server.queue({"1": empty_image(), "2": save("1", "cancelled")})
    server.cancel(second)
    server.cancel(first)
    server.run({"1": empty_image(color=3), "2": save("1")}, timeout=10)
    assert not list((server.base / "output").glob("cancelled*"))
    with pytest.raises(PromptTimeout, match="neither in the queue nor in the history"):
        server.wait(second, timeout=0.1)


def test_an_uploaded_file_comes_back(server, tmp_path):
    content = bytes(range(256)) + b"\r\n--\r\n"
    file = tmp_path / 'Ünï "quoted" (1).bin'
    file.write_bytes(content)
    name = server.upload(file, subfolder="a/b")
    assert name.startswith("a/b/")
    assert (server.base / "input" / name).read_bytes() == content
    file.write_bytes(content + b"other")
    other = server.upload(file, subfolder="a/b")
    assert other != name
    assert (server.base / "input" / other).read_bytes() == content + b"other"


def test_an_uploaded_image_can_be_loaded(server):
    (file,) = server.files(server.run({"1": empty_image(16, color=0x102030), "2": save("1", "round")}))
    loaded = server.run({"1": node("LoadImage", image=server.upload(file, subfolder="images")), "2": save("1", "again")})
    assert png_size(server.files(loaded)[0]) == (16, 16)


# -- starting and stopping, with a main.py of our own

ANSWERING = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"system": {"argv": sys.argv}} if self.path == "/system_stats" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path):
    """Makes a ComfyServer over a main.py with the given source and a pack without nodes."""
    pack = tmp_path / "pack"
    (pack / "nodes").mkdir(parents=True)
    (pack / "__init__.py").touch()

    def make(source: str, **arguments) -> ComfyServer:
        (tmp_path / "main.py").write_text(source)
        return ComfyServer(tmp_path, pack, **{"base": tmp_path / "base", "start_limit": 20, **arguments})

    return make


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def ends_soon(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_a_folder_without_main_is_no_comfyui(tmp_path):
    with pytest.raises(ServerFailed, match="no main.py"):
        ComfyServer(tmp_path, ROOT)


def test_a_process_that_dies_shows_its_last_lines(fake):
    with pytest.raises(ServerFailed, match=r"exit code 3[\s\S]*line 99") as failed, fake("[print('line', i) for i in range(100)]; exit(3)"):
        pass
    assert "line 60" in str(failed.value)
    assert "line 59" not in str(failed.value)


def test_a_pack_that_cannot_be_imported_stops_the_start(fake, tmp_path):
    line = f"   0.1 seconds (IMPORT FAILED): {tmp_path / 'base' / 'custom_nodes' / PACK_NAME}"
    started = time.monotonic()
    with pytest.raises(ServerFailed, match=f"could not import {PACK_NAME}"), fake(f"import time\nprint({line!r})\ntime.sleep(60)"):
        pass
    assert time.monotonic() - started < 10


def test_node_classes_that_comfyui_does_not_list_stop_the_start(fake, tmp_path):
    (tmp_path / "pack" / "nodes" / "theme.py").write_text("class Speaker(io.ComfyNode):\n    pass\n")
    with pytest.raises(ServerFailed, match="lists no node"), fake(ANSWERING):
        pass


def test_a_server_that_does_not_answer_is_given_up(fake):
    with pytest.raises(ServerFailed, match="did not answer"), fake("import time; time.sleep(60)", start_limit=0.5):
        pass


def test_a_death_during_a_prompt_is_told_at_once(fake):
    with fake(ANSWERING) as server:
        server.process.kill()
        server.process.wait()
        with pytest.raises(ServerFailed, match="exit code"):
            server.wait("any")


@pytest.mark.skipif(os.name == "nt", reason="signals and process groups")
def test_the_end_of_the_block_stops_the_process_and_its_children(fake, monkeypatch):
    monkeypatch.setattr(processes, "STOP_LIMIT", 0.5)
    child = "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += "print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
    with fake(child + ANSWERING) as server:
        pids = [server.process.pid, int(server.log_tail().split()[0])]
        assert all(map(is_running, pids))
    assert all(map(ends_soon, pids))


@pytest.mark.skipif(os.name == "nt", reason="signals and process groups")
def test_the_server_goes_when_its_program_is_killed(fake, tmp_path):
    fake(ANSWERING)
    script = "import sys, time; from tools.comfyui.server import ComfyServer\n"
    script += (
        "with ComfyServer(sys.argv[1], sys.argv[2], base=sys.argv[3]) as server: print(server.process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "pack"), str(tmp_path / "base")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        pid = int(program.stdout.readline())
        assert is_running(pid)
        program.send_signal(signal.SIGKILL)
    assert ends_soon(pid)


def test_where_links_are_not_permitted_the_pack_is_copied(monkeypatch, tmp_path):
    def refuse(*arguments, **more):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    place = tmp_path / PACK_NAME
    for _ in range(2):  # an older copy is replaced
        place_pack(ROOT, place)
    for file in ("__init__.py", "nodes/__init__.py", "multitalk_core/model.py", COPY_MARK):
        assert (place / file).is_file()
    assert not (place / "tests").exists()


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    place = tmp_path / PACK_NAME
    place.mkdir()
    with pytest.raises(ServerFailed, match="there already"):
        place_pack(ROOT, place)
    assert place_pack(place, place) is None  # the pack itself, installed there
