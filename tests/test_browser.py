"""An example workflow in the graph editor itself: a headless Chromium loads it, presses Run and plays the video.

Playwright and Chromium are not part of the development environment. By hand, with COMFYUI_PATH set and beside that environment:

    apt-get install chromium && python -m pip install --target FOLDER playwright
    PYTHONPATH=FOLDER python -m pytest tests/test_browser.py
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from multitalk_nodes.tests.graphs import ROOT, SAMPLES

pytestmark = pytest.mark.slow

NAME = "demo_one_speaker"
READY_LIMIT, RUN_LIMIT, VIDEO_LIMIT = 120_000, 300_000, 30_000  # ms
SETTLE = 2500  # ms until the editor has finished moving things about
SETTINGS = {  # the classic renderer, which local installs have; nothing that covers the graph
    "Comfy.VueNodes.Enabled": False,
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False,
}
NOT_OURS = ("graph accessed before initialization", "Failed to load resource", "Content Security Policy")
LISTEN = """() => {
    window.ended = null
    for (const name of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(name, event => { window.ended = [name, event.detail] })
}"""
MISSING = "() => app.graph.nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type]).map(node => node.type)"
VIDEO = "() => [...document.querySelectorAll('video')].find(video => video.readyState >= 2)"


def chromium() -> str | None:
    """The browser itself: Debian's wrapper in /usr/bin adds options of its own."""
    debian = Path("/usr/lib/chromium/chromium")
    found = os.environ.get("CHROMIUM_PATH") or (str(debian) if debian.is_file() else None)
    return found or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(server):
    """The editor, ready, with what its console complained about in page.complaints."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if (path := chromium()) is None:
        pytest.skip("no Chromium: install one, or name it in CHROMIUM_PATH")
    for sample in [*SAMPLES.glob("*.png"), *SAMPLES.glob("*.wav")]:
        server.upload(sample)
    with playwright.sync_playwright() as driver:
        # the sandbox needs rights that containers do not give
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1900, "height": 1100})
        page.request.post(f"{server.url}/settings", data=SETTINGS)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.goto(server.url)
        page.wait_for_function("() => window.app && window.app.vueAppReady", timeout=READY_LIMIT)
        page.wait_for_timeout(SETTLE)
        yield page
        browser.close()


def test_an_example_loads_runs_and_plays(server, page, tmp_path):
    workflow = json.loads((ROOT / "workflows" / f"{NAME}.json").read_text(encoding="utf-8"))
    page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, NAME])
    page.wait_for_timeout(SETTLE)
    assert page.evaluate("() => app.graph.nodes.length") == len(workflow["nodes"])
    assert page.evaluate(MISSING) == []

    queued = page.evaluate("async () => (await app.graphToPrompt()).output")
    asked = json.loads((ROOT / "workflows" / "api" / f"{NAME}.json").read_text(encoding="utf-8"))
    for key, node in asked.items():  # the editor also writes out what the file leaves to the nodes' defaults
        assert queued[key]["class_type"] == node["class_type"]
        assert queued[key]["inputs"].items() >= node["inputs"].items()

    page.evaluate(LISTEN)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("() => window.ended", timeout=RUN_LIMIT)
    assert page.evaluate("() => window.ended[0]") == "execution_success", page.evaluate("() => window.ended[1]")
    page.wait_for_function(VIDEO, timeout=VIDEO_LIMIT)
    page.screenshot(path=tmp_path / "done.png")
    size = page.evaluate(f"() => {{ const video = ({VIDEO})(); return [video.videoWidth, video.videoHeight, video.duration] }}")
    assert size[:2] == [128, 128]
    assert abs(size[2] - 101 / 25) < 0.1
    page.evaluate(f"() => {{ const video = ({VIDEO})(); video.muted = true; video.play() }}")
    page.wait_for_function(f"() => ({VIDEO})().currentTime > 0.5", timeout=VIDEO_LIMIT)
    assert [text for text in page.complaints if not any(known in text for known in NOT_OURS)] == []


def test_a_long_video_tells_where_it_is(server, page, tmp_path):
    """Text on the node, the bar in the queue, a picture of every finished clip; then it plays."""
    workflow = json.loads((ROOT / "workflows" / "demo_long_talk.json").read_text(encoding="utf-8"))
    page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, "demo_long_talk"])
    page.wait_for_timeout(SETTLE)
    small = "() => { app.graph.nodes.find(node => node.type === 'LoadImage').widgets[0].value = 'face_small.png' }"
    page.evaluate(small)
    page.evaluate(LISTEN)
    page.evaluate("() => { window.pictures = 0; app.api.addEventListener('b_preview', () => { window.pictures += 1 }) }")
    page.get_by_test_id("queue-button").click()
    said = "() => [...document.querySelectorAll('*')].some(part => "
    said += "/clip 3\\/\\d+, step \\d\\/8/.test(part.textContent + (part.value ?? '')))"
    page.wait_for_function(said, timeout=RUN_LIMIT)
    page.screenshot(path=tmp_path / "running.png")
    assert page.evaluate("() => window.pictures") >= 2
    page.wait_for_function("() => window.ended", timeout=RUN_LIMIT)
    assert page.evaluate("() => window.ended[0]") == "execution_success", page.evaluate("() => window.ended[1]")
    page.wait_for_function(VIDEO, timeout=VIDEO_LIMIT)
    page.wait_for_timeout(SETTLE)
    page.screenshot(path=tmp_path / "done.png")
    assert abs(page.evaluate(f"() => ({VIDEO})().duration") - 197 / 25) < 0.1
