"""Items through ComfyUI's WAN: single forwards, trajectories, and whole videos by the product's loop, backend and guider."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

from ...comfy_bridge.backend import ComfyBackend
from ...comfy_bridge.clip import decode_clip, prepare_clip
from ...comfy_bridge.conditioning import Conditioning, with_clip
from ...comfy_bridge.guider import MultiTalkGuider
from ...comfy_bridge.patches import patch_model
from ...comfy_bridge.sampling import sample_clip
from ...comfy_bridge.weights import MultiTalkWeights
from ...multitalk_core.colour import match_colours
from ...multitalk_core.families import FAMILIES
from ...multitalk_core.generate import Condition, Motion, clip_seed, generate
from ...multitalk_core.guidance import Projection
from ...multitalk_core.model import reference_attention_map
from ...multitalk_core.schedule import sigmas
from ...multitalk_core.sizes import fit_picture
from ...multitalk_core.speakers import check_places, ref_target_masks, source_masks, token_masks
from ...multitalk_core.voices import Voices
from ...multitalk_core.windows import plan_clips
from .core_items import speakers_at, weights_of
from .goldens import Check, Goldens, compare

EXACT = {"exact": True}
SCHEDULE_BOUND = 2e-3  # of 1000; MANIFEST.md, item 06
Y_BOUND = 1e-5  # MANIFEST.md, item 06: y from the source picture


def wan_of(g: Goldens) -> Any:
    """The set's WAN model through ComfyUI's own loader, in float32."""
    model = g.params["model"]
    tensors = {key: value for name in model["weights"]["base"] for key, value in g.file(name).items()}
    told = ("num_heads", "text_dim", "freq_dim", "eps", "qk_norm", "cross_attn_norm")  # what tensors do not tell
    shape = {key: model["wan"][key] for key in told}
    metadata = {"config": json.dumps({"transformer": shape})}
    return comfy.sd.load_diffusion_model_state_dict(tensors, model_options={"dtype": torch.float32}, metadata=metadata)


@dataclass(frozen=True)
class Latents:
    """The set's latents are in the model's space; ComfyUI's nodes hand over what the VAE gives."""

    model: Any

    def to_vae(self, latent: Tensor) -> Tensor:
        return self.model.model.process_latent_out(latent.float())

    def to_model(self, latent: Tensor) -> Tensor:
        return self.model.model.process_latent_in(latent.float())


class RecordingGuider(MultiTalkGuider):
    """The product's guider that also keeps every step's velocities and their sum."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.velocities: list[dict[str, Tensor]] = []
        self.guided: list[Tensor] = []
        self.momentum_norms: list[float] = []

    def guided_velocity(self, velocities: dict[Any, Tensor]) -> Tensor:
        guided = super().guided_velocity(velocities)
        self.velocities.append({name: v[0].clone() for name, v in velocities.items()})
        self.guided.append(guided[0].clone())
        if self._projected is not None:
            self.momentum_norms += [float(running.double().norm()) for running in self._projected._running.values()]
        return guided


def evaluate(guider: MultiTalkGuider, latents: list[Tensor], levels: Tensor, seed: int = 0) -> None:
    """Ask the guider for each latent [16, T, H, W] at its noise level, within one run."""

    def visit(model: Callable[..., Tensor], noise: Tensor, run_sigmas: Tensor, extra_args: Any, **_: Any) -> Tensor:
        for latent, level in zip(latents, levels, strict=True):
            model(latent[None].float(), level[None].float(), **extra_args)
        return noise

    empty = torch.zeros_like(latents[0][None])
    guider.sample(
        torch.zeros_like(empty), empty, comfy.samplers.KSAMPLER(visit), torch.cat([levels, levels[:1] * 0]), disable_pbar=True, seed=seed
    )


def prompt(g: Goldens, reference: dict[str, Any]) -> Conditioning:
    """A text embedding padded with zeros to the model's length, as the text encoder of WAN gives it."""
    text = g[reference].float()
    return [[F.pad(text, (0, 0, 0, g.params["model"]["wan"]["text_len"] - text.shape[0]))[None], {}]]


def clip_output(features: Tensor) -> SimpleNamespace:
    return SimpleNamespace(penultimate_hidden_states=features.float())


def known_frames(y: Tensor) -> int:
    """Known latent frames by the mask channels of y."""
    return int(y[0, 0, :, 0, 0].sum())


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


@dataclass(frozen=True)
class StubVAE:
    """The linear VAE of the recorded runs behind the interface of ComfyUI's VAE."""

    parameters: dict[str, Any]
    enc_w: Tensor
    enc_b: Tensor
    dec_w: Tensor
    latents: Latents

    @classmethod
    def of(cls, g: Goldens, latents: Latents) -> StubVAE:
        parameters = g.params["model"]["stub_vae"]
        return cls(parameters, *(g[parameters[key]] for key in ("enc_w", "enc_b", "dec_w")), latents)

    def encode(self, frames: Tensor) -> Tensor:
        """[F, H, W, 3] in 0…1 → [1, C, T, h, w]."""
        rule = self.parameters["encode"]
        small = F.avg_pool2d((frames * 2 - 1).movedim(-1, 1), rule["spatial_mean"])
        first, later = small[: rule["first_group"]], small[rule["first_group"] :]
        groups = [first.mean(dim=0), *(group.mean(dim=0) for group in later.split(rule["later_groups"]) if len(later))]
        rgb = torch.stack(groups, dim=1)
        latent = torch.einsum("cr,rthw->cthw", self.enc_w, rgb) + self.enc_b[:, None, None, None]
        return self.latents.to_vae(latent[None])

    def decode(self, latent: Tensor) -> Tensor:
        """[1, C, T, h, w] → [1, F, H, W, 3] in 0…1."""
        rule = self.parameters["decode"]
        rgb = torch.einsum("rc,cthw->trhw", self.dec_w, self.latents.to_model(latent)[0])
        frames = [rgb[0] * s for s in rule["first_frame_scales"]] + [r * s for r in rgb[1:] for s in rule["later_frame_scales"]]
        side = rule["upsample_nearest"]
        large = torch.stack(frames).repeat_interleave(side, dim=-1).repeat_interleave(side, dim=-2)
        return ((large.clamp(*rule["clamp"]).movedim(1, -1) + 1) / 2)[None]


@dataclass(frozen=True, kw_only=True)
class RecordedBackend(ComfyBackend):
    """The product's backend with the recorded run's noise and CLIP features; keeps what passes through."""

    goldens: Any = None
    clips: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    conditions: list[Condition] = field(default_factory=list)
    denoised: list[Tensor] = field(default_factory=list)
    decoded: list[Tensor] = field(default_factory=list)
    own_noise: list[Tensor] = field(default_factory=list)

    def see(self, condition: Condition) -> Any:
        return clip_output(self.goldens[self.clips[len(self.conditions)]["tensors"]["clip_fea"]])

    def noise(self, empty: Tensor, seed: int) -> Tensor:
        self.own_noise.append(super().noise(empty, seed))
        return self.goldens[self.clips[self._index(seed)]["tensors"]["noise"]][None]

    def denoise(self, condition: Condition, seed: int) -> Tensor:
        latent = super().denoise(condition, seed)
        self.conditions.append(condition)
        self.denoised.append(latent)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        frames = super().decode(latent)
        self.decoded.append(frames)
        return frames

    def _index(self, seed: int) -> int:
        return next(i for i in range(len(self.clips)) if clip_seed(self.seed, i) == seed)

    def recorded_motion_noise(self, shape: torch.Size, sigma: float, seed: int) -> Tensor:
        """motion_noise_initial at the first level, then the noise that was drawn after the step that led to this level."""
        tensors = self.clips[self._index(seed)]["tensors"]
        if not tensors["motion_noise_initial"]:
            return torch.zeros(shape)  # the recorded run drew none, so asking for some must show
        step = int((self.sigmas - sigma).abs().argmin())
        noise = self.goldens[tensors["motion_noise_initial"]] if step == 0 else self.goldens[tensors["motion_noise_step"]][step - 1]
        return noise.reshape(shape)


def item_06(g: Goldens) -> Iterator[Check]:
    item = g.item("06")
    for name, row in item["schedules"].items():
        bound = {"max_abs": item["tolerance"]["schedules"]["max_abs"]}
        yield compare("06", f"schedule {name}", sigmas(row["steps"], row["shift"]) * 1000, g[row["tensor"]], bound)
    yield from _trajectories(g, "06")


def item_12(g: Goldens) -> Iterator[Check]:
    yield from _trajectories(g, "12")


def item_11(g: Goldens) -> Iterator[Check]:
    yield Check("11", "teacache decisions", 0.0, 0.0, "until the step cache exists", pending=True)


def _trajectories(g: Goldens, number: str) -> Iterator[Check]:
    model = wan_of(g)
    weights = {family: weights_of(g, family) for family in FAMILIES}
    for name, case in g.item(number)["cases"].items():
        if case["teacache"]:
            yield Check(number, name, 0.0, 0.0, "until the step cache exists", pending=True)
            continue
        run = _Run(g, number, name, case, model, weights[case["family"]])
        yield from run.inputs()
        yield from run.forced()
        yield from run.whole_video()
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
            backend.conditions.extend([None] * index)  # so that this clip's CLIP features are taken
            condition = Condition(
                self.g[tensors["audio_windows"]], self.latents.to_vae(y[:, 4:]), known_frames(y), torch.zeros(1), self._motion(tensors)
            )
            scales = (self.case["text_scale"], self.case["audio_scale"])
            guider = RecordingGuider(backend.listening_model(condition), *backend.conditionings(condition), *scales, self.projection)
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
        backend = self._backend()
        tracks = [self.g[reference] for reference in self.case["full_embeddings"]]
        frames = min(self.case["max_frames_num"], tracks[0].shape[0])
        plan = plan_clips(frames, self.case["frame_num"], self.case["motion_frame"])
        strength = self.case["color_correction"]["strength"]
        family = FAMILIES[self.case["family"]]
        kept = list(generate(backend, family, plan, self._source, tracks, self.case["seed"], strength))
        yield self._compare("noise of the seed", backend.own_noise[0][0], self.g[self.first["noise"]], EXACT)
        for clip, recorded in zip(plan, self.case["clips"], strict=True):
            yield from self._clip(backend, clip, recorded, plan, kept)
        yield from self._length(plan, torch.cat(kept))

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
        prompts = [prompt(self.g, self.first[key]) for key in ("context", "context_null")]
        seen = clip_output(self.g[self.first["clip_fea"]])
        size = (self.width, self.height, case["frame_num"])
        made = prepare_clip(self.model, self.weights, voices, self.frames[:1], vae, *prompts, *size, clip_vision_output=seen)
        guider = MultiTalkGuider(made.model, made.positive, made.negative, case["text_scale"], case["audio_scale"], self.projection)
        latent = sample_clip(guider, made.latent, self.sigmas, "euler", case["seed"])
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
        backend = RecordedBackend(
            model=self.model,
            weights=self.weights,
            vae=StubVAE.of(self.g, self.latents),
            positive=prompt(self.g, self.first["context"]),
            negative=prompt(self.g, self.first["context_null"]),
            masks=masks,
            sigmas=self.sigmas,
            text_scale=self.case["text_scale"],
            audio_scale=self.case["audio_scale"],
            projection=self.projection,
            callback=lambda *_: None,
            goldens=self.g,
            clips=self.case["clips"],
            seed=self.case["seed"],
        )
        return replace(backend, motion_noise=backend.recorded_motion_noise)

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
