"""The pack in the graph editor itself: a headless Chromium loads, draws, runs and plays, in both of the editor's renderers.

Chromium is not part of the development environment (.ci/run installs it): `apt-get install chromium`, or name one in CHROMIUM_PATH.
MULTITALK_SCREENSHOTS=FOLDER keeps the pictures that the tests take.
"""

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from multitalk_nodes.tests.support import costs
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES

READY_LIMIT, RUN_LIMIT, LIMIT = 120_000, 300_000, 30_000  # ms
QUIET = 700  # ms without a change of the graph, its place or the canvases: the editor has finished moving things about
SETTLED = """quiet => {
    const places = [...document.querySelectorAll("canvas")].map(canvas => canvas.getBoundingClientRect().toJSON())
    const now = JSON.stringify([app.graph.serialize(), app.canvas.ds.offset, app.canvas.ds.scale, places])
    const seen = window.multitalkSeen ?? {}
    if (seen.now !== now) window.multitalkSeen = { now, since: performance.now() }
    return seen.now === now && performance.now() - seen.since > quiet
}"""
RENDERERS = {"classic": False, "nodes2": True}  # what local installs have, and Nodes 2.0
SETTINGS = {  # nothing that covers the graph
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False,
}
PICTURE, SIZE = "two_faces.png", (192, 128)
FACES = [[x0 / 192, y0 / 128, x1 / 192, y1 / 128] for x0, y0, x1, y1 in json.loads((SAMPLES / "two_faces.json").read_text())["boxes"]]
MARGIN = 7  # as in web/speaker_boxes.js
NOT_OURS = ("graph accessed before initialization", "Failed to load resource", "Content Security Policy")
LISTEN = """() => {
    for (const name of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(name, event => { window.ended = [name, event.detail] })
    app.api.addEventListener("b_preview", () => { window.previews += 1 })
}"""
DROP = """([data, name]) => {
    const dataTransfer = new DataTransfer()
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0))
    const type = name.endsWith(".json") ? "application/json" : ""
    dataTransfer.items.add(new File([bytes], name, { type }))
    const where = { clientX: 900, clientY: 500, bubbles: true, cancelable: true }
    document.getElementById("graph-canvas").dispatchEvent(new DragEvent("drop", { dataTransfer, ...where }))
}"""
MISSING = "() => app.graph.nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type]).map(node => node.type)"
SHORTEN = """seconds => {
    for (const node of app.graph.nodes.filter(node => node.type === "MultiTalkLoadAudio"))
        node.widgets.find(widget => widget.name === "duration").value = seconds
}"""
WATCH = """() => {
    if (window.staysShown) return
    const large = element => element.checkVisibility() && element.getBoundingClientRect().height > 50
    const wait = ms => new Promise(done => setTimeout(done, ms))
    app.api.addEventListener("executed", event => { window.made = event.detail.output?.images?.[0]?.filename ?? window.made })
    setInterval(() => {
        const clip = document.querySelector("img.multitalk-clip")
        if (!window.ended && clip?.naturalWidth && large(clip)) window.seen = true
    }, 10)
    const isShown = () => {
        const videos = [...document.querySelectorAll("video")].filter(large)
        const pictures = app.graph.nodes.find(node => node.type === "MultiTalkLongVideo").imgs ?? []
        const alone = !document.querySelector("img.multitalk-clip") && !pictures.length && videos.length === 1
        return alone && videos[0].readyState >= 2 && videos[0].src.includes(window.made)
    }
    window.staysShown = async quiet => {
        for (let tries = 0; tries < 100 && !isShown(); tries++) await wait(100)
        await wait(quiet)
        return isShown()
    }
}"""
VIDEO = "() => [...document.querySelectorAll('video')].find(video => video.readyState >= 2)"
BOXES = "app.graph.nodes.find(node => node.type === 'MultiTalkSpeakerBoxes')"
BUILD = """picture => {
    const add = (type, x, y, values = {}) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        app.graph.add(node)
        for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name]
        return node
    }
    const load = add("LoadImage", 0, 0, { image: picture })
    const boxes = add("MultiTalkSpeakerBoxes", 360, 0)
    const preview = add("MultiTalkPreviewSpeakers", 860, 0)
    load.connect(0, boxes, "image")
    load.connect(0, preview, "image")
    boxes.connect(0, preview, "speakers")
    for (const number of [0, 1])
        add("MultiTalkSpeaker", 0, 420 + 220 * number, { role: "silent" }).connect(0, boxes, `speakers.speaker_${number}`)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [120, 110]
    app.canvas.setDirty(true, true)
}"""
SET = """([type, values]) => {
    for (const widget of app.graph.nodes.find(node => node.type === type).widgets)
        if (widget.name in values) widget.value = values[widget.name]
}"""
SELECT_NEW = """type => {
    const node = LiteGraph.createNode(type)
    node.pos = [300, 300]
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [120, 110]
    app.canvas.selectNode(node)
}"""
HELP_PICTURE = "path => [...document.querySelectorAll('.node-help-content img')].some(img => img.src.endsWith(path) && img.naturalWidth)"
RELOAD = """async () => {
    const saved = JSON.parse(JSON.stringify(app.graph.serialize()))
    app.graph.clear()
    await app.loadGraphData(saved)
}"""


def chromium() -> str | None:
    """The browser itself: Debian's wrapper in /usr/bin adds options of its own."""
    debian = Path("/usr/lib/chromium/chromium")
    found = os.environ.get("CHROMIUM_PATH") or (str(debian) if debian.is_file() else None)
    return found or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def lacks(what):
    """A failure in CI, a skip for a developer."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacks("playwright is not installed: pip install playwright")
    if (path := chromium()) is None:
        lacks("no Chromium: install one, or name it in CHROMIUM_PATH")
    with sync_playwright() as driver:
        # the sandbox needs rights that containers do not give
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=RENDERERS)
def editor(request, browser, server):
    """The editor in one renderer: it takes seconds to open, so that tests share it."""
    for sample in [*SAMPLES.glob("*.png"), *SAMPLES.glob("*.wav")]:
        server.upload(sample)
    page = browser.new_page(viewport={"width": 1900, "height": 1100})
    costs.counts[costs.PAGES] += 1
    page.set_default_timeout(LIMIT)
    page.request.post(f"{server.url}/settings", data={**SETTINGS, "Comfy.VueNodes.Enabled": RENDERERS[request.param]})
    page.renderer, page.complaints = request.param, []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    page.wait_for_function("() => window.app && window.app.vueAppReady", timeout=READY_LIMIT)
    settle(page)
    page.evaluate(LISTEN)
    yield page
    page.close()


@pytest.fixture
def page(editor, tmp_path):
    """The editor with an empty graph; what its console complains about is in page.complaints, and page.keep(name) keeps a picture."""

    def keep(name):
        file = tmp_path / f"{editor.renderer}-{name}.png"
        editor.screenshot(path=file)
        if folder := os.environ.get("MULTITALK_SCREENSHOTS"):
            shutil.copy(file, folder)

    editor.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
    editor.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    editor.wait_for_function("() => app.graph.nodes.length === 0")
    editor.complaints.clear()
    editor.keep = keep
    return editor


@pytest.fixture
def boxes(page):
    """A small graph with the box editor in it: picture, boxes, two silent speakers, a preview."""
    page.evaluate(BUILD, PICTURE)
    settle(page)
    return Boxes(page)


class Boxes:
    """The box editor as a user has it: a mouse, a name field, a menu."""

    def __init__(self, page):
        self.page = page
        self.canvas = page.locator(".multitalk-boxes canvas:visible")
        self.name = page.get_by_placeholder("name", exact=True)
        self.who = page.locator(".multitalk-boxes select:visible")
        self.note = page.locator(".multitalk-boxes .note")

    def spot(self, x, y):
        """Where a point of the picture, in shares of it, is on the screen."""
        area = self.canvas.bounding_box()
        width, height = area["width"] - 2 * MARGIN, area["height"] - 2 * MARGIN
        scale = min(width / SIZE[0], height / SIZE[1])
        left, top = area["x"] + (area["width"] - SIZE[0] * scale) / 2, area["y"] + (area["height"] - SIZE[1] * scale) / 2
        return left + x * SIZE[0] * scale, top + y * SIZE[1] * scale

    def drag(self, start, end):
        self.page.mouse.move(*self.spot(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.spot(*end), steps=5)
        self.page.mouse.up()

    def draw(self, box):
        self.drag(box[:2], box[2:])

    def select(self, box):
        self.page.mouse.click(*self.spot((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))

    @property
    def text(self):
        return self.page.evaluate(f"() => {BOXES}.widgets.find(widget => widget.name === 'boxes').value")

    @text.setter
    def text(self, text):
        set_widgets(self.page, "MultiTalkSpeakerBoxes", boxes=text)

    @property
    def places(self):
        return json.loads(self.text or "[]")


def settle(page):
    page.evaluate("() => { delete window.multitalkSeen }")
    page.wait_for_function(SETTLED, arg=QUIET, polling=50)


def load(page, name):
    """Drops a workflow's file on the editor; returns the workflow."""
    file = ROOT / "workflows" / f"{name}.json"
    workflow = json.loads(file.read_text(encoding="utf-8"))
    drop(page, file)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
    settle(page)
    return workflow


def drop(page, file):
    """A file, as if it were dropped on the graph."""
    page.evaluate(DROP, [base64.b64encode(file.read_bytes()).decode(), file.name])


def set_widgets(page, node, **values):
    """Of the first node of a type."""
    page.evaluate(SET, [node, values])


def start(page):
    page.evaluate("() => { window.ended = null; window.previews = 0 }")
    page.get_by_test_id("queue-button").click()


def end(page):
    """Waits for the run's end; returns how it ended, and what ComfyUI said about it."""
    page.wait_for_function("() => window.ended", timeout=RUN_LIMIT)
    return page.evaluate("() => window.ended")


def succeed(page):
    how, detail = end(page)
    assert how == "execution_success", detail


def assert_fails(page, why):
    """The editor marks the node, and its details say why."""
    start(page)
    assert end(page)[0] == "execution_error"
    page.get_by_test_id("error-overlay-see-errors").click()
    page.get_by_text(why).first.wait_for()


def assert_no_complaints(page):
    assert [text for text in page.complaints if not any(known in text for known in NOT_OURS)] == []


def near(place, box, tolerance=0.01):
    return place["box"] == pytest.approx(box, abs=tolerance)


@pytest.mark.parametrize("seconds", [0.8, pytest.param(4.03, marks=pytest.mark.slow)])
def test_an_example_loads_runs_and_plays(page, seconds):
    name = "demo_one_speaker"
    load(page, name)
    assert page.evaluate(MISSING) == []
    queued = page.evaluate("async () => (await app.graphToPrompt()).output")
    asked = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for key, node in asked.items():  # the editor also writes out what the file leaves to the nodes' defaults
        assert queued[key]["class_type"] == node["class_type"]
        assert queued[key]["inputs"].items() >= node["inputs"].items()

    if seconds < 1:
        set_widgets(page, "LoadImage", image="face_small.png")
        set_widgets(page, "MultiTalkLoadAudio", duration=seconds)
        set_widgets(page, "MultiTalkConditioning", frames=21)
    start(page)
    succeed(page)
    page.wait_for_function(VIDEO)
    size = page.evaluate(f"() => {{ const video = ({VIDEO})(); return [video.videoWidth, video.videoHeight, video.duration] }}")
    assert size[:2] == ([64, 64] if seconds < 1 else [128, 128])
    assert abs(size[2] - seconds) < 0.1
    page.evaluate(f"() => {{ const video = ({VIDEO})(); video.muted = true; video.play() }}")
    page.wait_for_function(f"() => ({VIDEO})().currentTime > 0.5")
    page.keep("playing")
    assert_no_complaints(page)


@pytest.mark.slow
def test_a_long_video_tells_where_it_is(page):
    """Text on the node, the bar in the queue, a picture of every finished clip; then it plays."""
    load(page, "demo_long_talk")
    set_widgets(page, "LoadImage", image="face_small.png")
    seed = list(RENDERERS).index(page.renderer)  # nothing of the other renderer's run is to be found in the cache
    set_widgets(page, "MultiTalkLongVideo", steps=4, seed=seed)
    start(page)
    said = "() => [...document.querySelectorAll('*')].some(part => "
    said += "/clip 3\\/\\d+, step \\d\\/4/.test(part.textContent + (part.value ?? '')))"
    page.wait_for_function(said, timeout=RUN_LIMIT)
    page.locator("img.multitalk-clip").wait_for()
    page.keep("running")
    assert page.evaluate("() => window.previews") >= 2
    succeed(page)
    page.wait_for_function(VIDEO)
    settle(page)
    page.keep("long-done")
    assert abs(page.evaluate(f"() => ({VIDEO})().duration") - 197 / 25) < 0.1


@pytest.mark.parametrize("codec", ["h264", pytest.param("lossless", marks=pytest.mark.slow)])
def test_a_long_videos_file_brings_its_graph_back(page, server, codec):
    began, seed = time.time(), 77 + list(RENDERERS).index(page.renderer)
    workflow = load(page, "demo_long_talk")
    set_widgets(page, "LoadImage", image="face_small.png")
    set_widgets(page, "MultiTalkLoadAudio", duration=0.2)
    set_widgets(page, "MultiTalkLongVideo", steps=1, codec=codec, seed=seed)
    start(page)
    succeed(page)
    (file,) = {path for path in (server.base / "output").rglob("*.m[pk][4v]") if path.stat().st_mtime >= began}
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("() => app.graph.nodes.length === 0")
    drop(page, file)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
    found = "() => app.graph.nodes.find(node => node.type === 'MultiTalkLongVideo').widgets.find(widget => widget.name === 'seed').value"
    assert page.evaluate(found) == seed
    settle(page)
    page.locator(".p-blockui-mask").wait_for(state="detached")
    assert_no_complaints(page)


def load_long_video(page):
    """The example at its shortest: four clips."""
    load(page, "demo_long_talk")
    set_widgets(page, "LoadImage", image="face_small.png")
    page.evaluate(SHORTEN, 0.4)
    page.evaluate(WATCH)


def long_video(page, seed):
    """Runs the example; returns whether its video is shown and stays so, whether a clip was seen before, and the video's name."""
    set_widgets(page, "MultiTalkLongVideo", steps=2, seed=seed, clip_frames=9, motion_frames=5)
    page.evaluate("() => { window.seen = false }")
    start(page)
    succeed(page)
    shown = page.evaluate("quiet => window.staysShown(quiet)", QUIET)
    return shown, *page.evaluate("() => [window.seen, window.made]")


def test_a_long_video_shows_its_clips_and_then_itself(page):
    """Also where the node shows another one; and from ComfyUI's cache, where nothing runs."""
    load_long_video(page)
    seed = 10 * list(RENDERERS).index(page.renderer)
    *new, name = long_video(page, seed)
    *other, other_name = long_video(page, seed + 1)
    page.keep("long-shown")
    assert new == other == [True, True] and name != other_name
    queued = page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    asked = next(node for node in queued if node["class_type"] == "MultiTalkLongVideo")["inputs"]
    assert not {"video-preview", "clip_preview"} & asked.keys()  # another graph would be made anew
    shown, seen, cached_name = long_video(page, seed + 1)
    assert shown and seen is (cached_name != other_name)  # a ComfyUI that is short of memory makes it again


@pytest.mark.by_hand
def test_a_long_video_is_shown_every_time(page):
    """As often as MULTITALK_RUNS says, in a new node, from the cache, and in the node that shows another one.

    Another frontend, or core's previews: MULTITALK_COMFYUI_FLAGS="--front-end-root FOLDER --preview-method auto".
    """
    runs, seed, last, wrong = int(os.environ.get("MULTITALK_RUNS", "20")), 1000 * list(RENDERERS).index(page.renderer), "", []
    for number in range(runs):
        page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        page.wait_for_function("() => app.graph.nodes.length === 0")
        load_long_video(page)
        for turn in ("new", "cached", "other"):
            seed += turn != "cached"
            shown, seen, name = long_video(page, seed)
            anew, last = name != last, name
            if not shown or seen is not anew or (turn != "cached" and not anew):
                wrong.append({"run": number, "turn": turn, "video shown": shown, "clips seen": seen, "file": name})
    print(f"{page.renderer}: {3 * runs} runs, wrong: {wrong}")
    assert wrong == []


def test_help_opens_with_its_picture(page):
    """Nothing is looked for in vain: the editor's console would call every miss an error."""
    asked = []
    page.on("response", lambda response: asked.append((response.status, response.url)))
    page.evaluate(SELECT_NEW, "MultiTalkSpeaker")
    page.get_by_test_id("info-button").click()
    page.wait_for_function(HELP_PICTURE, arg="/docs/MultiTalkSpeaker.jpg")
    page.keep("help")
    of_help = [(status, url) for status, url in asked if "/docs/" in url]
    assert len(of_help) == 2 and all(status == 200 for status, _ in of_help), of_help


def test_boxes_are_drawn_named_assigned_and_kept(page, boxes):
    for face in FACES:
        boxes.draw(face)
    assert all(near(place, face) for place, face in zip(boxes.places, FACES, strict=True))
    boxes.name.fill("Ben")  # the one that was drawn last is selected
    boxes.who.select_option("speaker 1")
    boxes.select(FACES[0])
    boxes.name.fill("Anna")
    boxes.who.select_option("silent")
    page.keep("boxes")
    first, second = boxes.places
    assert first == {"box": first["box"], "name": "Anna", "silent": True}
    assert second == {"box": second["box"], "name": "Ben", "speaker": 1}

    kept = boxes.text
    queued = page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    asked = next(node for node in queued if node["class_type"] == "MultiTalkSpeakerBoxes")["inputs"]
    assert asked["boxes"] == kept and "speaker_boxes" not in asked
    page.evaluate(RELOAD)
    settle(page)
    assert boxes.text == kept
    page.evaluate(f"() => app.canvas.selectNode({BOXES})")
    page.keyboard.press("Control+C")
    page.keyboard.press("Control+V")
    page.wait_for_function("() => app.graph.nodes.filter(node => node.type === 'MultiTalkSpeakerBoxes').length === 2")
    copies = "app.graph.nodes.filter(node => node.type === 'MultiTalkSpeakerBoxes')"
    texts = page.evaluate(f"() => {copies}.map(node => node.widgets.find(widget => widget.name === 'boxes').value)")
    assert texts == [kept, kept]
    assert_no_complaints(page)


def test_boxes_are_moved_resized_deleted_and_brought_back(page, boxes):
    x0, y0, x1, y1 = FACES[0]
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    boxes.draw(FACES[0])
    boxes.drag(middle, (middle[0] + 0.3, middle[1] + 0.1))
    assert near(boxes.places[0], [x0 + 0.3, y0 + 0.1, x1 + 0.3, y1 + 0.1])
    boxes.drag((x1 + 0.3, y1 + 0.1), (0.9, 0.995))
    assert near(boxes.places[0], [x0 + 0.3, y0 + 0.1, 0.9, 1])
    assert boxes.places[0]["box"][3] == 1  # close to the picture's edge is at it
    drawn = boxes.text
    page.keyboard.press("Delete")
    assert boxes.text == "" and page.evaluate("() => app.graph.nodes.length") == 5
    page.keyboard.press("Control+Z")
    page.wait_for_function(f"text => {BOXES}?.widgets.find(widget => widget.name === 'boxes').value === text", arg=drawn)
    settle(page)
    boxes.select(boxes.places[0]["box"])  # in a new node, which the editor has made from what it kept
    boxes.name.fill("Anna")
    assert boxes.places[0]["name"] == "Anna"
    assert_no_complaints(page)


def test_what_a_run_used_is_shown_and_can_be_taken_over(page, boxes):
    start(page)
    succeed(page)
    take = page.get_by_role("button", name="Take over")
    take.wait_for()
    page.locator(".multitalk-notes:visible", has_text="of 96 cells").first.wait_for()
    page.keep("used")
    assert not page.evaluate(f"() => {BOXES}.imgs?.length")  # the picture is drawn once
    take.click()
    assert [place["speaker"] for place in boxes.places] == [1, 2]
    assert boxes.places[0]["box"][2] < 0.5 < boxes.places[1]["box"][0]
    assert_no_complaints(page)


def test_boxes_written_by_hand_are_shown_or_left_alone(page, boxes):
    boxes.text = '[{"box": [13, 13, 83, 96], "note": "mine"}]'
    settle(page)
    boxes.select(FACES[0])
    boxes.name.fill("Anna")
    assert boxes.places == [{"box": [13, 13, 83, 96], "note": "mine", "name": "Anna"}]
    boxes.text = "[{"
    boxes.note.filter(has_text="no JSON").wait_for()
    boxes.canvas.click()
    assert boxes.text == "[{"
    boxes.draw(FACES[1])
    assert len(boxes.places) == 1 and near(boxes.places[0], FACES[1])


def test_wrong_inputs_say_what_to_do(page, boxes):
    boxes.text = '[{"box": [0.5, 0.1, 0.4, 0.9]}]'
    assert_fails(page, "SpeakerError: The box 1 has no area: right must be greater than left")
    page.keep("no-area")
    boxes.text = ""
    set_widgets(page, "MultiTalkSpeaker", role="speaks")
    assert_fails(page, "A speaker has no audio. Connect some")
    page.keep("no-audio")
