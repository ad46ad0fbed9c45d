"""What ends a program ends what it has started: with programs of a few lines, and with `dev.py serve` itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from multitalk_nodes.tools.comfyui.server import free_port

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and process groups")

WITH_TOOLS = f"import os, signal, subprocess, sys, time; sys.path.insert(0, {str(ROOT)!r}); from tools.processes import *\n"
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"]
# as our tools do: something in a session of its own, something that they do not look after
TIDY = WITH_TOOLS + f"leave_on_signals()\nwith started({SLEEP}) as it: subprocess.Popen({SLEEP}); print('ready', flush=True); it.wait()"
DEAF = WITH_TOOLS + (
    "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
    f"subprocess.Popen({STUBBORN}); time.sleep(0.5); print('ready', flush=True); time.sleep(60)"
)


def starter(source: str, patience: float = 8) -> subprocess.Popen:
    """A program that runs another one with `run`; both are up."""
    words = [sys.executable, "-c", source]
    code = WITH_TOOLS + f"sys.exit(run({words}, patience={patience}))"
    return until_said([sys.executable, "-c", code], "ready")


def hear_all() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def until_said(command: list[str], said: str, **more) -> subprocess.Popen:
    # a shell that starts us in the background has Ctrl-C ignored, and nohup hanging up, for our children, too
    more |= {"preexec_fn": hear_all, "start_new_session": True}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    for line in program.stdout:
        if said in line:
            return program
    raise AssertionError(f"{command} ended with {program.wait()}")


def end(program: subprocess.Popen, number: signal.Signals) -> tuple[int, float, list, str]:
    """A program alone is signalled: its exit code, how long its descendants stayed, those that stay for ten seconds, and what was said."""
    descendants = psutil.Process(program.pid).children(recursive=True)
    assert len(descendants) > 1
    began = time.monotonic()
    program.send_signal(number)
    code = program.wait(20)
    while (left := [one for one in descendants if lives(one)]) and time.monotonic() < began + 10:
        time.sleep(0.05)
    taken = time.monotonic() - began
    for one in left:
        one.kill()
    with program.stdout:
        return code, taken, left, program.stdout.read()


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGKILL", -9)])
def test_what_ends_a_program_alone_ends_all_that_it_started(name, expected):
    code, _, left, _ = end(starter(TIDY), getattr(signal, name))
    assert code == expected and not left


def test_what_does_not_listen_is_killed_in_time():
    code, taken, left, _ = end(starter(DEAF, patience=1), signal.SIGTERM)
    assert code == 143 and not left and 1 <= taken < 5


def test_the_signal_that_comes_is_the_one_handed_on(tmp_path):
    said = tmp_path / "said"
    source = (
        f"import signal, sys, time\nsignal.signal(signal.SIGHUP, lambda n, _: (open({str(said)!r}, 'a').write(f'{{n}} '), sys.exit(7)))\n"
    )
    program = starter(source + f"import subprocess; subprocess.Popen({SLEEP}); print('ready', flush=True); time.sleep(60)")
    code, _, left, _ = end(program, signal.SIGHUP)
    assert code == 128 + signal.SIGHUP and not left and said.read_text() == f"{int(signal.SIGHUP)} ", "once"


def test_the_exit_code_is_the_commands():
    endings = ["sys.exit(5)", "os.kill(os.getpid(), 9)", "pass"]
    code = WITH_TOOLS + f"print(*[run([sys.executable, '-c', 'import os, sys; ' + ending]) for ending in {endings}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["5", "137", "0"]


def test_what_is_ignored_stays_ignored():
    """`nohup dev.py train-demo` outlives its terminal."""
    code = WITH_TOOLS + "signal.signal(signal.SIGHUP, signal.SIG_IGN); leave_on_signals()\n"
    code += "sys.exit(run([sys.executable, '-c', 'import os, signal, time; os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.5)']))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_command_that_reads_the_terminal_stays_in_our_session():
    code = (
        WITH_TOOLS + "command = [sys.executable, '-c', 'import os, sys; sys.exit(os.getsid(0) == int(sys.argv[1]))', str(os.getsid(0))]\n"
    )
    code += "print(run(command, own_session=False), run(command))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["1", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_serve_leaves_nothing_behind(name, tmp_path):
    """The command, its environment's Python, the worker, ComfyUI: four programs deep."""
    words = [sys.executable, str(ROOT / "dev.py"), "serve", "--port", str(free_port()), "--health-port", str(free_port())]
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    program = until_said(words, "To see the GUI go to", env=variables)
    code, _, left, _ = end(program, getattr(signal, name))
    assert not left and code == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[name]
    assert not list(tmp_path.glob("multitalk-serve-*")), "nor its folder"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_demo_says_that_it_was_stopped(name, tmp_path):
    voice, out = ROOT / "demo" / "samples" / "voice_1.wav", tmp_path / "a.mp4"
    words = [sys.executable, str(ROOT / "dev.py"), "demo", "--image", str(voice.with_name("face.png")), "--audio", str(voice)]
    program = until_said([*words, "--out", str(out)], "clip 1/", env=os.environ | {"TMPDIR": str(tmp_path)})
    code, _, left, said = end(program, getattr(signal, name))
    assert code == {"SIGINT": 130, "SIGTERM": 143}[name] and not left and not out.exists() and not list(tmp_path.glob("comfyui-base-*"))
    assert said.splitlines()[-1] == "demo: stopped, and ComfyUI with it; written: nothing." and "Traceback" not in said
