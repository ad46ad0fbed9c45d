"""What there is to do around the denoising, on the CPU: listening, an hour's preparation, importing the pack, and a graph's nodes."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...tools.launch import launched

ROOT = Path(__file__).resolve().parents[2]
HOUR = 3600 * 25  # frames
LAZY = ("transformers", "av")  # that the pack imports only where they are used


def in_a_process_of_its_own(what: str, *arguments: str) -> dict[str, Any]:
    """The result of `performance.py --one`, whose memory and imports are its own."""
    command = launched("lab.benchmarks.performance", "--one", what, *arguments)
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def listening(seconds: int) -> dict[str, Any]:
    """Embeddings of a voice with an encoder of the published size and random weights: time, and memory beside the voice itself."""
    import psutil
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from ...multitalk_core.audio.wav2vec import Wav2Vec2

    torch.manual_seed(0)
    network = Wav2Vec2Model(Wav2Vec2Config(feat_extract_norm="group", do_stable_layer_norm=False)).eval()
    encoder = Wav2Vec2(network, stable_layer_norm=False, do_normalize=True, layers=12, dim=768)
    voice = torch.randn(seconds * 16000) * 0.1
    encoder.encode(voice[:16000])
    process = psutil.Process()
    before, seen, over = process.memory_info().rss, [], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen.append((process.memory_info().rss - before) / 2**20)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    embeds = encoder.encode(voice)
    taken = time.perf_counter() - began
    over.set()
    watching.join()
    return {
        "seconds": seconds,
        "frames": embeds.shape[0],
        "taken": taken,
        "times_real_time": seconds / taken,
        "mb": statistics.median(seen),
        "mb_most": max(seen),
        "mb_last_quarter": statistics.median(seen[-len(seen) // 4 :]),
    }


def preparing_an_hour() -> dict[str, Any]:
    """Masks, plan, windows and tokens of an hour with two speakers at 832×480, the tokens with the demo's weights; and of a clip at the
    published encoder's size, where the first layer's weights alone take that long."""
    import torch

    from ...comfy_bridge.demo import load_demo
    from ...comfy_bridge.weights import build_weights
    from ...multitalk_core.families import INFINITETALK
    from ...multitalk_core.model import AdapterShape, MultiTalkAdapter
    from ...multitalk_core.people.speakers import Speaker, ref_target_masks, source_masks, token_masks
    from ...multitalk_core.windows import audio_windows, plan_clips

    demo = load_demo(ROOT / "demo" / "weights", INFINITETALK).weights
    layers, dim = 4, demo.shape.audio_features // 4
    tracks = [torch.randn(HOUR, layers, dim) for _ in range(2)]
    demo.tokens(audio_windows(tracks, 0, 81))
    clock = Clock()
    with torch.inference_mode():
        token_masks(ref_target_masks(source_masks([Speaker(), Speaker()], 480, 832), 480, 832))
        clock.lap("masks")
        plan = plan_clips(HOUR, 81, 9)
        clock.lap("plan")
        for clip in plan:
            heard = audio_windows(tracks, clip.start, clip.stop)
            clock.lap("windows")
            demo.tokens(heard)
            clock.lap("tokens")
    made = {"clips": len(plan), "seconds": clock.laps, "together": sum(clock.laps.values())}
    shape = AdapterShape(dim=64, blocks=1, audio_features=12 * 768, intermediate=512, token_dim=768, context_tokens=32)
    published = build_weights({k: t.detach() for k, t in MultiTalkAdapter(shape).state_dict().items()}, "random", INFINITETALK)
    tracks = [torch.randn(81, 12, 768) for _ in range(2)]
    published.tokens(audio_windows(tracks, 0, 81))
    clock = Clock()
    for _ in range(5):
        published.tokens(audio_windows(tracks, 0, 81))
    clock.lap("clip")
    return {**made, "published_size_seconds_a_clip": clock.laps["clip"] / 5}


class Clock:
    """Seconds from lap to lap, those of one name together."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.perf_counter()

    def lap(self, name: str) -> None:
        self.laps[name] = self.laps.get(name, 0.0) + time.perf_counter() - self._at
        self._at = time.perf_counter()


def importing() -> dict[str, Any]:
    """The pack through ComfyUI's own loader, into a ComfyUI that has loaded its own nodes."""
    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    before = set(sys.modules)
    began = time.perf_counter()
    loaded = asyncio.run(nodes.load_custom_node(str(ROOT)))
    taken = time.perf_counter() - began
    if not loaded:
        raise RuntimeError("ComfyUI could not load the pack; its log says why.")
    added = set(sys.modules) - before
    return {"seconds": taken, "modules": len(added), "lazy": sorted(name for name in LAZY if name in added)}


TIMING_PACK = """
import functools, sys, time
import comfy.samplers, comfy.sd
from aiohttp import web
from server import PromptServer

spent, wrapped = {}, []

def timed(owner, name, as_what):
    function = getattr(owner, name)
    @functools.wraps(function)
    def call(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[as_what] = spent.get(as_what, 0.0) + time.perf_counter() - began
    setattr(owner, name, call)

@PromptServer.instance.routes.get("/timing")
async def timing(request):
    if not wrapped:
        wrapped.append(True)
        from comfy_api.latest._input_impl.video_types import VideoFromComponents
        listening = next(m for n, m in sys.modules.items() if n.endswith(".multitalk_core.wav2vec"))
        timed(comfy.sd.VAE, "encode", "VAE encode")
        timed(comfy.sd.VAE, "decode", "VAE decode")
        timed(comfy.samplers.CFGGuider, "sample", "denoise")
        timed(listening.Wav2Vec2, "encode", "listening")
        timed(VideoFromComponents, "save_to", "video encode")
    counted = dict(spent)
    spent.clear()
    return web.json_response(counted)

NODE_CLASS_MAPPINGS = {}
"""


def graph(rounds: int = 3) -> dict[str, Any]:
    """The demo's graph of two speakers in a real ComfyUI, all of it run again each time, models loaded from their files: what is left
    when the models' own work is taken away."""
    import tempfile

    from ...tools.comfyui.server import ComfyServer

    with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder:
        pack = Path(folder) / "custom_nodes" / "timing"
        pack.mkdir(parents=True)
        (pack / "__init__.py").write_text(TIMING_PACK, encoding="utf-8")
        prompt = json.loads((ROOT / "workflows" / "api" / "demo_two_speakers.json").read_text(encoding="utf-8"))
        with ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=Path(folder)) as server:
            for sample in ("two_faces.png", "voice_1.wav", "voice_2.wav"):
                server.upload(ROOT / "demo" / "samples" / sample)
            server.run(prompt)
            server.get("/timing")
            runs = [_run_again(server, prompt) for _ in range(rounds)]
    runs.sort(key=lambda run: run["left"])
    return {"rounds": rounds, "median": runs[len(runs) // 2], "least": runs[0]["left"], "most": runs[-1]["left"]}


def _run_again(server: Any, prompt: dict[str, Any]) -> dict[str, Any]:
    server._post("/free", {"free_memory": True})  # or ComfyUI would take the results of before
    time.sleep(2)
    number = server.queue(prompt)
    server.wait(number, 600)
    messages = dict(server.get(f"/history/{number}")[number]["status"]["messages"])
    whole = (messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]) / 1000
    spent = server.get("/timing")
    return {"whole": whole, "spent": spent, "left": whole - sum(spent.values())}


ONE: dict[str, Callable[..., dict[str, Any]]] = {
    "listening": lambda seconds: listening(int(seconds)),
    "hour": preparing_an_hour,
    "importing": importing,
    "graph": graph,
}
