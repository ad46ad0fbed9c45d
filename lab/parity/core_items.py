"""Items that need no diffusion model: audio, embeddings, windows, attention layers, pictures, masks, colour, plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...comfy_bridge.weights import MultiTalkWeights, load_weights
from ...multitalk_core.audio.loudness import integrated_loudness, normalise_loudness
from ...multitalk_core.audio.sound import lay_out, mono_16k
from ...multitalk_core.audio.wav2vec import Wav2Vec2, at_video_rate, normalise_samples
from ...multitalk_core.audio.wav2vec_files import EncoderFiles, build_encoder
from ...multitalk_core.clock import SAMPLE_RATE, embed_frames
from ...multitalk_core.colour import match_colours
from ...multitalk_core.model import audio_positions, dominant_class, reference_attention_map, sdpa, speaker_positions, split_windows
from ...multitalk_core.people.places import Box
from ...multitalk_core.people.speakers import Speaker, ref_target_masks, source_masks, token_masks
from ...multitalk_core.people.voices import encode_voices
from ...multitalk_core.sizes import BUCKETS, bucket, clip_input, fit_mask, fit_picture, fitted
from ...multitalk_core.windows import audio_windows, plan_clips, reflect, window_indices
from .goldens import Check, Goldens, compare


def weights_of(g: Goldens, family: str = "multitalk") -> MultiTalkWeights:
    """The set's MultiTalk weights through the product's loader."""
    name = g.params["model"]["weights"]["audio"]
    return load_weights(str(g.folder / name), name, family)


def item_01(g: Goldens) -> Iterator[Check]:
    item = g.item("01")
    tolerance, cases = item["tolerance"], item["cases"]
    pcm16 = g.params["audio"]["pcm16_scale"]

    def voice(reference: dict[str, Any], rate: int) -> Tensor:
        return mono_16k(g[reference].T * pcm16, rate)

    def named(label: str) -> Tensor:
        """A voice by its label: a case of its own ("B"), or a source of another case ("para.source2")."""
        if label in cases:
            return g[cases[label]["tensors"]["loudnorm"]]
        case, source = label.split(".")
        return normalise_loudness(voice(cases[case]["tensors"][f"{source}_pcm16"], cases[case]["source_rate"]))

    for name, case in cases.items():
        tensors = case["tensors"]
        if case["kind"] == "single":
            stored = g[tensors["wave16k"]]
            ours = voice(tensors["source_pcm16"], int(g[tensors["source_rate"]]))
            yield compare("01", f"{name}.wave16k", ours, stored, tolerance["wave16k"])
            yield compare("01", f"{name}.lufs", [integrated_loudness(stored)], g[tensors["lufs"]], tolerance["lufs"])
            yield compare("01", f"{name}.loudnorm", normalise_loudness(stored), g[tensors["loudnorm"]], tolerance["loudnorm"])
            loud = g[tensors["loudnorm"]]
            values = normalise_samples(loud) if case["do_normalize"] else loud
            yield compare("01", f"{name}.input_values", values, g[tensors["input_values"]], tolerance["input_values"])
        elif case["kind"] == "para":
            voices = [normalise_loudness(voice(tensors[f"source{i}_pcm16"], case["source_rate"])) for i in (1, 2)]
            for i, track in enumerate(lay_out(voices, "parallel"), start=1):
                yield compare("01", f"{name}.speech{i}", track, g[tensors[f"speech{i}"]], tolerance[f"speech{i}"])
        else:
            yield from _sequential(g, name, case, named, tolerance)


def _sequential(g: Goldens, name: str, case: dict[str, Any], named: Any, tolerance: dict[str, Any]) -> Iterator[Check]:
    labels = [case["speech1"], case["speech2"]]  # null is a speaker without audio
    present = {label: named(label) for label in labels if label is not None}
    longest = max(present.values(), key=len)
    missing = len(present) < len(labels)
    note = (
        "difference: the missing speaker is given explicitly as the other's length of zeros; by default ours takes no time"
        if missing
        else ""
    )
    voices = [present.get(label, torch.zeros_like(longest)) for label in labels]
    speakers = [Speaker.of({"waveform": v[None, None], "sample_rate": SAMPLE_RATE}, None, None, None) for v in voices]
    tracks = encode_voices(speakers, _Hears(), "sequential", level=False).tracks
    tensors = case["tensors"]
    if "lengths" in tensors:
        lengths = [*map(len, tracks), len(voices[0])]  # and where the second speaker begins
        yield compare("01", f"{name}.lengths", lengths, g[tensors["lengths"]], tolerance["lengths"], note)
    for i, track in enumerate(tracks, start=1):
        if f"input_values{i}" in tensors:
            values = normalise_samples(track) if case["do_normalize"] else track
            yield compare("01", f"{name}.input_values{i}", values, g[tensors[f"input_values{i}"]], tolerance["input_values"], note)
        if f"len{i}" in tensors:
            yield compare("01", f"{name}.len{i}", [len(track)], g[tensors[f"len{i}"]], tolerance[f"len{i}"], note)


class _Hears:
    """An encoder whose embeddings are the samples: what the product's layout hands to an encoder."""

    layers = dim = 1

    def encode(self, voice: Tensor, folder: Any = None, progress: Any = None) -> Tensor:
        return voice


def encoder_of(g: Goldens, variant: str, do_normalize: bool) -> Wav2Vec2:
    parameters = g.params["wav2vec"][variant]
    files = EncoderFiles(g.file(parameters["weights_file"]), _transformers_config(parameters), None, variant)
    return build_encoder(files, do_normalize)


def _transformers_config(parameters: dict[str, Any]) -> dict[str, Any]:
    """The keys of params.json that transformers' configuration has, too."""
    from transformers import Wav2Vec2Config

    return {key: value for key, value in parameters.items() if key in Wav2Vec2Config().to_dict() and key != "architectures"}


def embeddings(g: Goldens, number: str) -> Iterator[Check]:
    """Items 02 and 14. Item 02 stores the normalised samples, 14 the voice itself; 02 also goes from the voice."""
    item = g.item(number)
    tolerance = item["tolerance"]
    for name, case in item["cases"].items():
        samples, tensors = g[case["input"]], case["tensors"]
        if case["do_normalize"]:
            encoder = encoder_of(g, case["variant"], True)
            voice = g[g.item("01")["cases"][case["label"]]["tensors"]["loudnorm"]]
            yield compare(number, f"{name}.embedding", encoder.encode(voice), g[tensors["embedding"]], tolerance["embedding"])
        else:
            encoder = encoder_of(g, case["variant"], False)
            yield compare(number, f"{name}.embedding", encoder.encode(samples), g[tensors["embedding"]], tolerance["embedding"])
        features = encoder.conv_features(samples)
        frames = embed_frames(samples.shape[0])
        golden, bound = g[tensors["conv_features_interp"]], tolerance["conv_features_interp"]
        yield compare(number, f"{name}.conv_features_interp", at_video_rate(features, frames), golden, bound)
        for key, ours in (("conv_len_50fps", features.shape[1]), ("seq_len", frames)):
            if key in tensors:
                yield compare(number, f"{name}.{key}", [ours], g[tensors[key]], tolerance[key])


def item_03(g: Goldens) -> Iterator[Check]:
    item = g.item("03")
    tolerance = item["tolerance"]
    project = weights_of(g).adapter.audio_proj
    for name, case in item["cases"].items():
        tensors = case["tensors"]
        if "indices" in tensors:
            yield compare("03", name, window_indices(case["audio_start"], case["audio_end"]), g[tensors["indices"]], tolerance["indices"])
            continue
        tracks = [g[reference] for reference in case["embeddings"]]
        frames = tracks[0].shape[0]
        clip = next(c for c in plan_clips(frames, case["frame_num"], case["motion_frame"]) if c.start == case["audio_start"])
        windows = audio_windows(tracks, clip.start, clip.stop)
        first, later = split_windows(windows)
        tokens = rearrange(project(windows), "1 t (s m) c -> s t m c", s=len(tracks))
        ours = {
            "start_end": [clip.start, clip.stop],
            "windows": windows,
            "first_frame_in": first,
            "latter_frames_in": later,
            "audio_proj_out": tokens,
        }
        for key, value in ours.items():
            yield compare("03", f"{name}.{key}", value, g[tensors[key]], tolerance[key])
        for persons in range(1, len(tracks) + 1):
            if golden := tensors.get(f"audio_embedding_{persons}p"):
                ours = project(windows[:persons])
                yield compare("03", f"{name}.audio_embedding_{persons}p", ours, g[golden], tolerance["audio_embedding"])


def item_04(g: Goldens) -> Iterator[Check]:
    item = g.item("04")
    tolerance = item["tolerance"]
    weights = weights_of(g)
    heads = g.params["model"]["wan"]["num_heads"]
    for name, case in item["cases"].items():
        tensors = case["tensors"]
        if "q" in tensors:
            maps = reference_attention_map(g[tensors["q"]], g[tensors["k"]], g[tensors["token_masks"]])[0]
            yield compare("04", name, maps, g[tensors["out"]], tolerance["attnmap"])
            continue
        layer = weights.adapter.blocks[case["block"]].audio_cross_attn
        x, audio = g[tensors["x"]], g[tensors["audio"]]
        frames, *grid = case["grid"]
        labels = audio_labels = None
        if case["persons"] > 1:
            maps = g[tensors["x_ref_attn_map"]][None]
            labels = speaker_positions(maps)
            audio_labels = audio_positions(case["persons"], weights.shape.context_tokens)
            yield compare("04", f"{name}.max_indices", dominant_class(maps)[0], g[tensors["max_indices"]], tolerance["max_indices"])
            yield compare("04", f"{name}.normalized_pos", labels[0], g[tensors["normalized_pos"]], tolerance["normalized_pos"])
            yield compare("04", f"{name}.encoder_pos", audio_labels.repeat(frames), g[tensors["encoder_pos"]], tolerance["encoder_pos"])
        seen = _Recorder(sdpa)
        out = layer(x, audio, heads, labels, audio_labels, seen)
        yield compare("04", f"{name}.out", out, g[tensors["out"]], tolerance["out"])
        for key, tensor in (("q_rot_frame0", seen.q), ("k_rot_frame0", seen.k)):
            if key in tensors:
                yield compare("04", f"{name}.{key}", tensor[:1], g[tensors[key]], tolerance[key])


class _Recorder:
    """An attention function that keeps what it was called with."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.q, self.k = q, k
        return self.attention(q, k, v)


def item_07(g: Goldens) -> Iterator[Check]:
    item = g.item("07")
    tolerance = item["tolerance"]
    for name, case in item["cases"].items():
        if name == "size_buckets":
            continue
        tensors = case["tensors"]
        picture, (height, width) = g[tensors["image"]], g[tensors["target"]].tolist()
        yield compare("07", f"{name}.resized", fitted(*picture.shape[:2], height, width), g[tensors["resized"]], tolerance["resized"])
        fit = fit_picture(picture[None] / 255, height, width)[0].movedim(-1, 0)[None, :, None]
        yield compare("07", f"{name}.out_pil", fit * 255, g[tensors["out_pil"]], {"max_abs": 1e-4}, "grey levels")
        yield compare("07", f"{name}.normalized", fit * 2 - 1, g[tensors["normalized"]], tolerance["normalized"])
        yield compare(
            "07", f"{name}.out_tensor", fit_mask(g[tensors["tensor"]], height, width), g[tensors["out_tensor"]], tolerance["out_tensor"]
        )
    if "size_buckets" not in item["cases"]:
        return
    table = g.json("07_size_buckets.json")
    for key, size in (("ASPECT_RATIO_627", "multitalk-480"), ("ASPECT_RATIO_960", "multitalk-720")):
        rows = [[float(ratio), *sides] for ratio, sides in table[key].items()]
        yield compare("07", f"table {size}", [list(row) for row in BUCKETS[size]], rows, tolerance["size_buckets"])
        chosen = [bucket(s["src_h"], s["src_w"], size) for s in table["selections"]]
        golden = [[s[size]["height"], s[size]["width"]] for s in table["selections"]]
        yield compare("07", f"selections {size}", chosen, golden, tolerance["size_buckets"])


def speakers_at(boxes: dict[str, Sequence[float]] | None, persons: int) -> list[Speaker]:
    """Speakers from the official lists, which are [row0, column0, row1, column1]."""
    if boxes is None:
        return [Speaker() for _ in range(persons)]
    return [Speaker(box=_from_rows_and_columns(boxes[f"person{i}"])) for i in range(1, persons + 1)]


def _from_rows_and_columns(box: Sequence[float]) -> Box:
    top, left, bottom, right = box
    return left, top, right, bottom


def item_08(g: Goldens) -> Iterator[Check]:
    item = g.item("08")
    tolerance = item["tolerance"]
    for name, case in item["cases"].items():
        persons = case["persons"]
        if persons == 1:
            size = (g.params["model"]["latent"]["height"], g.params["model"]["latent"]["width"])
            speaker = ref_target_masks(source_masks(speakers_at(None, 1), *size), *size)[:1]
            note = "all ones; difference: ours has an empty background row, and never uses one speaker's map"
            yield compare("08", f"{name}.speaker row", speaker, torch.ones_like(speaker), {"exact": True}, note)
            continue
        size = (case["source_height"], case["source_width"])
        target = (case["target_height"], case["target_width"])
        yield compare("08", f"{name}.size", bucket(*size, case["size"]), target, tolerance["rects"])
        masks = source_masks(speakers_at(case["bbox"], persons), *size)
        latent = ref_target_masks(masks, *target)
        tokens = token_masks(latent)
        fit = fit_mask(masks, *target)
        for i in range(persons):
            yield compare("08", f"{name}.human{i + 1}_rect_px", _rectangle(fit[i]), case[f"human{i + 1}_rect_px"], tolerance["rects"])
        golden_tokens = g[case["tensors"]["token_mask"]]
        yield compare("08", f"{name}.latent_mask", latent, g[case["tensors"]["latent_mask"]], tolerance["latent_mask"])
        yield compare("08", f"{name}.token_mask", tokens.reshape(golden_tokens.shape), golden_tokens, tolerance["token_mask"])
        yield compare("08", f"{name}.token_counts", tokens.sum(dim=1), case["token_counts"], tolerance["rects"])


def _rectangle(mask: Tensor) -> list[int]:
    """[row0, row1, column0, column1) of what is set."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return [int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1]


def item_09(g: Goldens) -> Iterator[Check]:
    item = g.item("09")
    bound = item["tolerance"]["out"]
    for name, case in item["cases"].items():
        video, reference, golden = (g[case["tensors"][key]] for key in ("video", "reference", "out"))
        ours = match_colours(_image(video), _image(reference), case["strength"])
        ours = ours.movedim(-1, 0)[None] * 2 - 1
        skipped = set(bound.get("except_frames", []))
        frames = [i for i in range(golden.shape[2]) if i not in skipped]
        yield compare("09", name, ours[:, :, frames], golden[:, :, frames], bound)
        for i in sorted(skipped):
            yield compare(
                "09", f"{name}, constant frame {i}", ours[:, :, i], golden[:, :, i], {"reported": True}, "ill-conditioned: reported only"
            )


def _image(video: Tensor) -> Tensor:
    """(1, 3, T, h, w) in −1…1 → [T, h, w, 3] in 0…1."""
    return (video[0].movedim(0, -1) + 1) / 2


def item_13(g: Goldens) -> Iterator[Check]:
    item = g.item("13")
    for name, case in item["cases"].items():
        picture = (g[case["tensors"]["input"]].movedim(0, -1)[None] + 1) / 2
        yield compare("13", name, clip_input(picture)[0], g[case["tensors"]["output"]], item["tolerance"]["output"])


def plans(g: Goldens, number: str) -> Iterator[Check]:
    """Items 10 and 15: our clips against the official ones, and where we differ on purpose."""
    for name, case in g.item(number)["cases"].items():
        recorded = g.json(case["file"])["cases"][case["index"]]
        tracks = case["audio_frames"]
        # The official loop counts clips by the first speaker; our tracks are equally long, the longest deciding.
        frames = min(case["max_frames_num"], tracks[0])
        plan = plan_clips(frames, case["frame_num"], case["motion_frame"])
        label = f"{name} {tracks} frames, {case['mode']}"
        if case["raises"]:
            note = "difference: official refuses audio this short"
            yield compare(number, f"{label}, length", sum(c.keep for c in plan), frames, {"exact": True}, note)
            continue
        chunks = recorded["chunks"]
        ours = [[c.start, c.stop, c.drop, c.stop - c.start - c.drop] for c in plan]
        golden = [[c["audio_start_idx"], c["audio_end_idx"], c["dropped_leading_frames"], c["kept_frames"]] for c in chunks]
        final = sum(c.keep for c in plan)
        note = "" if final == case["final_frames"] else f"difference: ours has {final} frames, official {case['final_frames']}"
        if len(set(tracks)) > 1:
            note = f"difference: unequal tracks; ours continues to {max(tracks)} frames, official has {case['final_frames']}"
        yield compare(number, label, ours, golden, {"exact": True})
        # InfiniteTalk ends with the audio, too; MultiTalk's official loop ends earlier
        exact = case["family"] == "infinitetalk" and len(set(tracks)) == 1
        yield compare(number, f"{label}, length", final, case["final_frames"] if exact else frames, {"exact": True}, note)
        yield from _centres(number, label, plan, chunks, tracks)
        if "source_frames" in case and case["source"] == "video":
            used = [min(c.start, case["source_frames"] - 1) for c in plan]
            yield compare(number, f"{label}, source frames", used, [c["source_frame_used"] for c in chunks], {"exact": True})


def _centres(number: str, label: str, plan: Any, chunks: Any, tracks: Sequence[int]) -> Iterator[Check]:
    """The embedding that is the centre of each frame's window, where the set stores it."""
    for clip, chunk in zip(plan, chunks, strict=False):
        for person, golden in enumerate(chunk.get("centre_embedding_index", [])):
            length = tracks[person]
            centres = reflect(window_indices(clip.start, clip.stop), length)[:, 2]
            note = ""
            if length != tracks[0] or len(set(tracks)) > 1:
                shared = min(clip.stop, length) - clip.start
                if shared <= 0:
                    continue
                centres, golden = centres[:shared], golden[:shared]
                note = "the shared part; behind a shorter track ours hears encoded silence"
            yield compare(number, f"{label}, clip {clip.index} centres", centres, golden, {"exact": True}, note)
