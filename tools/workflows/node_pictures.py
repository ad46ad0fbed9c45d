"""Pictures of the nodes for their help pages: web/docs/<NodeId>.jpg, as the editor draws each of them.

    python tools/launch.py tools.workflows.node_pictures

Run it in the development environment, with COMFYUI_PATH set and a Chromium in CHROMIUM_PATH (Debian's is found).
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from ..comfyui.server import PACK_NAME, ComfyServer

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = "/usr/lib/chromium/chromium"
PLACE, TITLE, EDGE = (200, 150), 30, 12  # pixels
SETTLE = 2500  # ms until the editor has finished moving things about
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.RightSidePanel.IsOpen": False}
# Empty files, so that the loaders have something to choose
FILES = ("model_patches/wan2.1_infiniteTalk_single_fp16.safetensors", "audio_encoders/wav2vec2-chinese-base_fp16.safetensors")
SHOW = """([type, x, y]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    node.pos = [x, y]
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
    return [...node.size]
}"""


def main() -> int:
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT) as server, sync_playwright() as driver:
        for file in FILES:
            (server.base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
            (server.base / "models" / file).touch()
        server.upload(ROOT / "demo" / "samples" / "voice_1.wav")
        ours = [name for name, info in server.object_info().items() if info["python_module"] == f"custom_nodes.{PACK_NAME}"]
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM_PATH", CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        page.request.post(f"{server.url}/settings", data={**SETTINGS, "Comfy.VueNodes.Enabled": False})
        page.goto(server.url)
        page.wait_for_function("() => window.app && window.app.vueAppReady", timeout=120_000)
        page.wait_for_timeout(SETTLE)
        for name in ours:
            width, height = page.evaluate(SHOW, [name, *PLACE])
            page.wait_for_timeout(SETTLE // 5)
            x, y = PLACE
            clip = {"x": x - EDGE, "y": y - TITLE - EDGE, "width": width + 2 * EDGE, "height": height + TITLE + 2 * EDGE}
            shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
            shot.save(ROOT / "web" / "docs" / f"{name}.jpg", quality=80)
            print(f"web/docs/{name}.jpg: {shot.width}×{shot.height}")
        browser.close()
    return 0
