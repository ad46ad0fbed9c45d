"""Items through ComfyUI's WAN: single forwards, trajectories, and whole videos by the product's loop, backend and guider."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...comfy_bridge.clip import decode_clip, prepare_clip
from ...comfy_bridge.conditioning import with_clip
from ...comfy_bridge.guider import MultiTalkGuider
from ...comfy_bridge.long_video import LongVideo, Output, Sound
from ...comfy_bridge.patches import patch_model
from ...comfy_bridge.sampling import Sampling, sample_clip
from ...comfy_bridge.scene import Models, Scene
from ...comfy_bridge.weights import MultiTalkWeights
from ...multitalk_core.colour import match_colours
from ...multitalk_core.families import FAMILIES
from ...multitalk_core.generate import Condition, Motion, Video, clip_seed, generate
from ...multitalk_core.guidance import Projection
from ...multitalk_core.model import reference_attention_map
from ...multitalk_core.people.speakers import check_places, ref_target_masks, source_masks, token_masks
from ...multitalk_core.people.voices import Voices
from ...multitalk_core.schedule import sigmas
from ...multitalk_core.sizes import fit_picture
from ...multitalk_core.video.disk import Exactly
from ...multitalk_core.video.job import Job
from ...multitalk_core.video.segments import CODECS, read_frames
from ...multitalk_core.windows import plan_shots
from .cache_items import cached_clip, with_step_cache
from .core_items import speakers_at, weights_of
from .goldens import Check, Goldens, compare
from .recorded import Latents, Recorded, RecordedBackend, RecordingGuider, StubVAE, clip_output, evaluate, known_frames, prompt, wan_of

EXACT = {"exact": True}
SCHEDULE_BOUND = 2e-3  # of 1000; MANIFEST.md, item 06
EIGHT_BITS = 1.01 / 255  # half a step of 8 bits, in −1…1
Y_BOUND = 1e-5  # MANIFEST.md, item 06: y from the source picture


def item_05(g: Goldens) -> Iterator[Check]:
    item = g.item("05")
    bound = item["tolerance"]
    model, weights = wan_of(g), weights_of(g)
    latents = Latents(model)
    some_windows = next(g[c["tensors"]["audio"]] for c in item["cases"].values() if c["tensors"]["audio"])
    for name, case in item["cases"].items():
        tensors = case["tensors"]
        y = g[tensors["y"]]
        tokens, null = weights.tokens(g[tensors["audio"]] if tensors["audio"] else some_windows)
        heard = null if case["audio_mode"] == "null" else tokens
        text = prompt(g, tensors["context"])
        conditioning = with_clip(text, latents.to_vae(y[:, 4:]), known_frames(y), clip_output(g[tensors["clip_fea"]]), heard, null)
        masks = token_masks(g[tensors["masks"]])
        listens = case["audio_mode"] != "audio_cross_attn_output_zeroed"
        patched = patch_model(model, weights, masks if heard.shape[-2] > null.shape[-2] else None) if listens else model.clone()
        seen = _Watch(patched, masks)
        guider = RecordingGuider(patched, conditioning, conditioning, 1.0, 1.0)
        with seen:
            evaluate(guider, [g[tensors["latent"]]], g[tensors["timestep"]] / g.params["model"]["sampling"]["num_timesteps"])
        yield compare("05", f"{name}.out", guider.guided[0], g[tensors["out"]], bound["out"])
        for block, reference in enumerate(tensors.get("x_ref_attn_maps") or []):
            yield compare("05", f"{name}.x_ref_attn_map_block{block}", seen.maps[block], g[reference], bound["x_ref_attn_map"])
        if tensors.get("x_after_block0"):
            yield compare("05", f"{name}.x_after_block0", seen.block0, g[tensors["x_after_block0"]], bound["x_after_block0"])


class _Watch:
    """Keeps what passes by: each block's reference maps (the product's function on the block's q and k), and block 0's output."""

    def __init__(self, model: Any, masks: Tensor) -> None:
        self.masks, self.maps = masks, []
        self.first_block = model.model.diffusion_model.blocks[0]
        model.set_model_patch(self._map_of, "attn1_patch")

    def __enter__(self) -> None:
        self.hook = self.first_block.register_forward_hook(self._keep)

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    def _map_of(self, args: dict[str, Any]) -> Tensor:
        self.maps.append(reference_attention_map(args["q"], args["k"], self.masks)[0])
        return args["x"]

    def _keep(self, _block: Any, _inputs: Any, output: Tensor) -> None:
        self.block0 = output[0].clone()


def item_06(g: Goldens) -> Iterator[Check]:
    item = g.item("06")
    for name, row in item["schedules"].items():
        bound = {"max_abs": item["tolerance"]["schedules"]["max_abs"]}
        yield compare("06", f"schedule {name}", sigmas(row["steps"], row["shift"]) * 1000, g[row["tensor"]], bound)
    yield from _trajectories(g, "06")


def item_12(g: Goldens) -> Iterator[Check]:
    yield from _trajectories(g, "12")


def _trajectories(g: Goldens, number: str) -> Iterator[Check]:
    model = wan_of(g)
    weights = {family: weights_of(g, family) for family in FAMILIES}
    for name, case in g.item(number)["cases"].items():
        network = with_step_cache(wan_of(g, case["weights_override"]), case) if case["teacache"] else model
        run = _Run(g, number, name, case, network, weights[case["family"]])
        yield from run.inputs()
        if case["teacache"]:
            yield from cached_clip(run)
        yield from run.forced()
        yield from run.whole_video()
        yield from run.long_video()
        yield from run.short_path()


class _Run:
    """One recorded run: its inputs made by the product, its steps from the stored latents, and the whole video free-running."""

    def __init__(self, g: Goldens, number: str, name: str, case: dict[str, Any], model: Any, weights: MultiTalkWeights) -> None:
        self.g, self.number, self.name, self.case = g, number, name, case
        self.model, self.weights, self.latents = model, weights, Latents(model)
        self.bound = case["tolerance"]
        self.first = case["clips"][0]["tensors"]
        self.sigmas = sigmas(case["steps"], case["shift"])
        self.height, self.width = case["size_bucket"]
        source = case["source"]
        self.frames = (g[source] if source["kind"] == "video" else g[source][None]) / 255
        self.classes = self._classes()
        apg = case["apg"]
        self.projection = Projection(apg["momentum"], apg["norm_threshold"], apg["eta"]) if apg else None
        self.sampling = Sampling(case["steps"], case["shift"], case["text_scale"], case["audio_scale"], projection=self.projection)

    def inputs(self) -> Iterator[Check]:
        if "timesteps" in self.case["tensors"]:
            bound = {"max_abs": SCHEDULE_BOUND}
            yield self._compare("timesteps", self.sigmas * 1000, self.g[self.case["tensors"]["timesteps"]], bound)
        if self.case["persons"] > 1:
            yield self._compare("masks", self.classes, self.g[self.first["masks"]], EXACT)

    def forced(self) -> Iterator[Check]:
        """Every step's velocities from the stored latent of that step."""
        for index, clip in enumerate(self.case["clips"]):
            tensors = clip["tensors"]
            if not tensors["latents_after_step"] or not tensors["guided"]:
                continue
            backend = self._backend()
            y = self.g[tensors["y"]]
            backend.recorded.seen = index  # so that this clip's CLIP features are taken
            condition = Condition(
                self.g[tensors["audio_windows"]], self.latents.to_vae(y[:, 4:]), known_frames(y), torch.zeros(1), self._motion(tensors)
            )
            scales = (self.case["text_scale"], self.case["audio_scale"])
            model, prompts = backend.scene.listening_model(condition), backend.scene.conditionings(condition)
            guider = RecordingGuider(model, *prompts, *scales, self.projection)
            steps = [self.g[tensors["noise"]], *self.g[tensors["latents_after_step"]][:-1]]
            evaluate(guider, steps, self.sigmas[:-1], clip_seed(self.case["seed"], index))
            label = f"clip {index}, " if len(self.case["clips"]) > 1 else ""
            for branch, reference in (tensors["preds"] or {}).items():
                ours = torch.stack([v[branch] for v in guider.velocities])
                yield self._compare(f"{label}{branch} of each step", ours, self.g[reference], self.bound["pred"])
            yield self._compare(f"{label}guided of each step", torch.stack(guider.guided), self.g[tensors["guided"]], self.bound["guided"])
            if "apg_diff_norms" in self.case["tensors"]:
                golden = self.g[self.case["tensors"]["apg_diff_norms"]]
                part = golden[len(golden) // len(self.case["clips"]) * index :][: len(guider.momentum_norms)]
                yield self._compare(f"{label}apg_diff_norms", guider.momentum_norms, part, {"relative": 1e-4}, "bound ours; relative")

    def whole_video(self) -> Iterator[Check]:
        """The product's loop from the source picture to the last frame, on its own intermediate results."""
        backend, video = self._backend(), self._video(self.case["color_correction"]["strength"])
        kept = [made.frames for made in generate(backend, video)]
        plan = video.clips
        yield self._compare("noise of the seed", backend.own_noise[0][0], self.g[self.first["noise"]], EXACT)
        for clip, recorded in zip(plan, self.case["clips"], strict=True):
            yield from self._clip(backend, clip, recorded, plan, kept)
        yield from self._length(plan, torch.cat(kept))

    def sampled(self) -> tuple[list[Tensor], Tensor]:
        """The first clip by the product's loop: its latent before every step, and at its end."""
        before: list[Tensor] = []
        backend = replace(self._backend(), callback=lambda step, denoised, x, total: before.append(x[0].clone()))
        video = self._video(colour=0.0)
        list(generate(backend, video, video.clips[:1]))
        return before, self.latents.to_model(backend.denoised[0])[0]

    def long_video(self) -> Iterator[Check]:
        """Several clips as MultiTalk Long Video makes them: motion frames go through the job's files, pictures through a video file."""
        if len(self.case["clips"]) < 2:
            return
        case, backend, lossless = self.case, self._backend(), CODECS["lossless"]
        video = LongVideo(backend, self._video(case["color_correction"]["strength"]), Sound(torch.zeros(1, 0), 16_000))
        frames = video.video.shots[-1].stop
        with tempfile.TemporaryDirectory(prefix="multitalk-parity-") as folder:
            job, out = Job(Path(folder) / "job", "parity", video.video.clips, lossless, 0), Path(folder) / "out.mkv"
            video.make(job, Output(Exactly(out)), lambda line: None)
            made = torch.stack([*read_frames(out)])
        for index, clip in enumerate(case["clips"]):
            latent = self.latents.to_model(backend.denoised[index])[0]
            golden = self.g[clip["tensors"]["latent_final"]]
            yield self._compare(f"long video, clip {index} latent_final", latent, golden, self.bound["latent_final"])
        yield self._compare("long video, frames", [len(made)], [frames], EXACT)
        if "video_lowres" not in case["tensors"]:
            return
        golden = self.g[case["tensors"]["video_lowres"]]
        bound = {"max_abs": self.bound["video_lowres"]["max_abs"] + EIGHT_BITS}
        yield self._compare("long video, file", self._low(made)[:, : golden.shape[1]], golden, bound, "bound ours; difference: 8 bits")

    def _clip(self, backend: RecordedBackend, clip: Any, recorded: dict[str, Any], plan: Any, kept: list[Tensor]) -> Iterator[Check]:
        g, tensors, index = self.g, recorded["tensors"], clip.index
        label = f"clip {index} " if len(plan) > 1 else ""
        condition = backend.conditions[index]
        y = g[tensors["y"]]
        y_bound = {"max_abs": Y_BOUND} if index == 0 else self.bound["latent_final"]
        yield self._compare(f"{label}y", self.latents.to_model(condition.known_latent), y[:, 4:], y_bound)
        yield self._compare(f"{label}y mask", [condition.known_latent_frames], [known_frames(y)], EXACT)
        windows = g[tensors["audio_windows"]]
        yield self._compare(f"{label}audio windows", condition.windows, windows, EXACT)
        if tensors["clip_input_px"]:
            picture = condition.clip_picture[0].movedim(-1, 0)[None, :, None] * 2 - 1
            yield self._compare(f"{label}picture for CLIP", picture, g[tensors["clip_input_px"]], {"max_abs": 1e-6})
        if tensors["motion_latent"] and condition.motion is None:
            yield Check(self.number, f"{self.name}: {label}motion latent", math.inf, 0.0, "none is held")
        elif tensors["motion_latent"]:
            motion = self.latents.to_model(condition.motion.latent)[0]
            yield self._compare(
                f"{label}motion latent", motion, g[tensors["motion_latent"]], {"max_abs": self.bound["latent_final"]["max_abs"]}
            )
        if tensors["motion_frames_lowres"]:
            count = g[tensors["motion_frames_lowres"]].shape[2]
            bound = self.bound.get("corrected_lowres", self.bound.get("decoded_lowres", {"max_abs": 1e-3}))
            before = self._corrected(backend, index - 1)[-count:]
            yield self._compare(f"{label}motion frames", self._low(before), g[tensors["motion_frames_lowres"]][0], bound)
        latent = self.latents.to_model(backend.denoised[index])[0]
        yield self._compare(f"{label}latent_final", latent, g[tensors["latent_final"]], self.bound["latent_final"])
        if tensors["decoded_lowres"]:
            yield self._compare(
                f"{label}decoded", self._low(backend.decoded[index]), g[tensors["decoded_lowres"]][0], self.bound["decoded_lowres"]
            )
        if tensors["corrected_lowres"]:
            ours = self._low(self._corrected(backend, index))
            yield self._compare(f"{label}colour-corrected", ours, g[tensors["corrected_lowres"]][0], self.bound["corrected_lowres"])
        if tensors["plan"]:
            start, stop, source, dropped, keep = g[tensors["plan"]].tolist()
            ours = [clip.start, clip.stop, clip.drop, clip.stop - clip.start - clip.drop]
            yield self._compare(f"{label}plan", ours, [start, stop, dropped, keep], EXACT)
            if source >= 0:
                yield self._compare(f"{label}source frame", [self._source_index(clip.start)], [source], EXACT)
        if tensors["audio_start_end"]:
            yield self._compare(f"{label}audio_start_end", [clip.start, clip.stop], g[tensors["audio_start_end"]], EXACT)

    def _corrected(self, backend: RecordedBackend, index: int) -> Tensor:
        return match_colours(backend.decoded[index], self._source(0), self.case["color_correction"]["strength"])

    def _length(self, plan: Any, video: Tensor) -> Iterator[Check]:
        result, tensors = self.case["result"], self.case["tensors"]
        whole = sum(c.stop - c.start - c.drop for c in plan)
        yield self._compare("frames before the cut", [whole], [result["frames_before_trim"]], EXACT)
        official = result["returned_frames"]
        wanted = min(self.case["max_frames_num"], self.case["audio_frames"][0])
        note = "" if official == wanted else f"ends with the audio; difference: official ends at {official}"
        yield self._compare("frames returned", [len(video)], [wanted], EXACT, note)
        if "lengths" in tensors:
            before, _, audio, returned = self.g[tensors["lengths"]].tolist()
            ours = [whole, self.case["audio_frames"][-1], len(video)]
            yield self._compare("lengths", ours, [before, audio, returned], EXACT)
        if "video_lowres" in tensors:
            golden = self.g[tensors["video_lowres"]]
            yield self._compare("video", self._low(video)[:, : golden.shape[1]], golden, self.bound["video_lowres"])

    def short_path(self) -> Iterator[Check]:
        """The first clip as the nodes make it: conditioning, guider, sampler and decoder."""
        case, clip = self.case, self.case["clips"][0]
        speakers = tuple(speakers_at(case["bbox"], case["persons"]))
        tracks = tuple(self.g[reference] for reference in case["full_embeddings"])
        voices = Voices(speakers, tracks, min(tracks[0].shape[0], case["max_frames_num"]), torch.zeros(1, 64_000), 16_000)
        vae = StubVAE.of(self.g, self.latents)
        models = Models(self.model, self.weights, vae, *self._prompts(), clip_vision_output=clip_output(self.g[self.first["clip_fea"]]))
        made = prepare_clip(models, voices, self.frames[:1], (self.width, self.height), case["frame_num"])
        guider = MultiTalkGuider(made.model, made.positive, made.negative, case["text_scale"], case["audio_scale"], self.projection)
        latent = sample_clip(guider, made.latent, self.sampling, case["seed"])
        ours = self.latents.to_model(latent["samples"])[0]
        yield self._compare("short path latent_final", ours, self.g[self.first["latent_final"]], self.bound["latent_final"])
        strength = case["color_correction"]["strength"]
        frames, _ = decode_clip(latent, vae, voices, strength)
        key = "corrected_lowres" if strength else "decoded_lowres"
        if clip["tensors"][key]:
            golden = self.g[clip["tensors"][key]][0][:, : voices.frames]
            yield self._compare("short path frames", self._low(frames), golden, self.bound[key])

    def _backend(self) -> RecordedBackend:
        masks = token_masks(self.classes) if self.case["persons"] > 1 else None
        if masks is not None:
            check_places(masks)
        recorded = Recorded(self.g, self.case["clips"], self.case["seed"], self.sigmas)
        models = Models(self.model, self.weights, StubVAE.of(self.g, self.latents), *self._prompts(), clip_vision="recorded")
        scene = Scene(models, masks, recorded.motion_noise, look_at=recorded.look_at)
        return RecordedBackend(scene, self.sampling, lambda *_: None, recorded=recorded)

    def _prompts(self) -> list[Any]:
        return [prompt(self.g, self.first[key]) for key in ("context", "context_null")]

    def _video(self, colour: float) -> Video:
        """What the recorded run made, as the product plans it."""
        tracks = [self.g[reference] for reference in self.case["full_embeddings"]]
        frames = min(self.case["max_frames_num"], tracks[0].shape[0])
        shots = plan_shots(frames, (), self.case["frame_num"], self.case["motion_frame"])
        return Video(FAMILIES[self.case["family"]], shots, self._source, tracks, self.case["seed"], colour)

    def _classes(self) -> Tensor:
        speakers = speakers_at(self.case["bbox"], self.case["persons"])
        return ref_target_masks(source_masks(speakers, *self.frames.shape[1:3]), self.height, self.width)

    def _motion(self, tensors: dict[str, Any]) -> Motion | None:
        if not tensors["motion_latent"]:
            return None
        noised = FAMILIES[self.case["family"]].motion_latents == "noised"
        return Motion(self.latents.to_vae(self.g[tensors["motion_latent"]][None]), noised)

    def _source_index(self, frame: int) -> int:
        return min(frame, len(self.frames) - 1)

    def _source(self, frame: int) -> Tensor:
        index = self._source_index(frame)
        return fit_picture(self.frames[index : index + 1], self.height, self.width)

    def _low(self, frames: Tensor) -> Tensor:
        """[F, H, W, 3] in 0…1 → [3, F, h, w] in −1…1; the stub's frames are constant over its blocks of pixels."""
        side = self.g.params["model"]["stub_vae"]["decode"]["upsample_nearest"]
        return frames[:, ::side, ::side].movedim(-1, 0) * 2 - 1

    def _compare(self, what: str, ours: Any, golden: Any, bound: dict[str, Any], note: str = "") -> Check:
        return compare(self.number, f"{self.name}: {what}", ours, golden, bound, note)
