"""docs/measured/performance.md, from the files that `python dev.py bench` and `bench --gpu` leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
NOTES = Path(__file__).with_name("performance_notes.md")
WHO = {"ours": "ours", "core": "ComfyUI's own InfiniteTalk", "bare": "bare against itself"}

INTRODUCTION = """\
Written by `python dev.py bench` (CPU) and `python dev.py bench --gpu` (a CUDA card) from the files in `lab/benchmarks/results`. Random
weights and data, warmed up, the same precision and attention on both sides of a comparison; both are timed in turn in one process, and a
ratio is the median of the rounds' ratios, with the quartiles. Nothing was timed with the published weights.
"""
ABOUT_STEPS = """
All are ratios to WAN without audio. Operations and memory are counted on shapes (`lab/benchmarks/counted.py`), so at the true size without
a card: multiplications and additions of matrices and attention; the most bytes of tensors at a time that one evaluation makes, weights not
among them, where RMS norm and the video's RoPE are fused as on CUDA. *Modelled* is no measurement: every kernel takes what its operations
or its memory traffic take, whichever is more, at 790 TFLOP/s and 4.3 TB/s: assumed, 80 and 90 % of an H200's datasheet. The two ends are
attention at half of that pace, as flash-attention 2 is assumed to have, and at all of it; of an aim between them the model decides nothing.
The audio weights themselves are 4.8 GB in 16 bits. ComfyUI's own
patches know two speakers, have no background, and run one branch at a time here, as they fail on several. *Bare against itself* is what the
machine's other work makes of two times the same.
"""
ABOUT_GUIDANCE = """
The time of a step over that of one evaluation, two speakers. All branches of a step have one shape, null audio too, so ComfyUI asks for
them in one forward where it finds the memory, and one by one where it does not; both give the same but for rounding. Weights that are
streamed or unpacked are then handled once a step, not twice or three times.
"""
STEPS = 4  # of lab/benchmarks/clips.py
ONCE = "VAE encode, picture"
CPU_WORK = ("colour", "to_8_bits", "encode")
H200_OPERATIONS = 989e12  # a second
SECONDS_A_CLIP = 72 / 25  # of new video, behind 9 motion frames

Found = dict[str, Any]


def page(results: Path) -> str:
    """The whole page."""
    cpu, gpu = (_read(results / f"performance_{name}.json") for name in ("cpu", "gpu"))
    parts = [
        "# How fast\n",
        INTRODUCTION,
        _measured_when(cpu, gpu),
        "## A step beside bare WAN\n",
        _reach(cpu, gpu),
        _steps(cpu, gpu),
        "## Guidance\n",
        _guidance(cpu, gpu),
        "## A clip of a long video\n",
        _clips(cpu, gpu),
        "## Around the model\n",
        _around(cpu),
        NOTES.read_text(encoding="utf-8"),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _read(file: Path) -> Found:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _measured_when(cpu: Found, gpu: Found) -> str:
    lines = ["| part | measured | on | with |", "|---|---|---|---|"]
    for kind, found in (("CPU", cpu), ("GPU", gpu)):
        for name, part in found.items():
            versions = ", ".join(f"{package} {version}" for package, version in part["versions"].items())
            lines.append(f"| {name} ({kind}) | {part['date'][:10]}, {part['took']} s | {part['device']} | {versions} |")
        if not found:
            lines.append(f"| all ({kind}) | {NOT_MEASURED} | | |")
    return "\n".join(lines) + "\n"


def _reach(cpu: Found, gpu: Found) -> str:
    """The aims, what there is to show for each, and whether it is met."""
    large = next(iter(_part(gpu, "steps", {}).values()), [])
    small = next(iter(_part(cpu, "steps", {}).values()), [])
    counted = next(iter(_part(cpu, "counted", {}).values()), [])
    clip = _part(gpu, "clips", {}).get("overlapped", {})
    hour, imported, graph = (_part(cpu, name, {}) for name in ("hour", "importing", "graph"))
    aims: list[tuple[str, str, str, bool | None]] = []
    for speakers, most in ((1, 1.10), (2, 1.12), (4, 1.16)):
        by_operations, timed = _row(counted, "ours", speakers), _row(large, "ours", speakers)
        text = _ratio(timed)
        if by_operations:
            text += f"; {by_operations['operations']:.3f} by operations, {_modelled(by_operations)} modelled"
        met = timed["ratio"] <= most if timed else None
        aims.append((f"a step over the bare one at 480p, {_speakers(speakers)}, on a GPU", f"≤ {most:.2f}", text, met))
    row = _row(small, "ours", 2)
    size = "on a CPU at dim 1024, 8 heads, 6×15×26 tokens"
    aims.append((f"the same, 2 speakers, {size}", "≤ 1.18", _ratio(row), row["ratio"] <= 1.18 if row else None))
    memory = [(_row(rows, "ours", 2) or {}).get("peak_memory") for rows in (counted, large)]
    counted_memory = f"{_more(memory[0])} counted" if memory[0] else NOT_MEASURED
    text = f"{counted_memory}; on a GPU {_more(memory[1])}"
    known = [ratio for ratio in memory if ratio]
    met = max(known) <= 1.05 if known else None
    aims.append(("extra peak memory of a step beside the weights, 2 speakers, 480p", "≤ 5 %", text, met))
    text = _evaluations(cpu)
    met = text == "1 · 2 · 3" if cpu else None
    aims.append(("evaluations a step: text 1 and audio 1 · text 1, audio above · both above", "1 · 2 · 3", text, met))
    text = f"{clip['a_second_of_video']:.1f} ({gpu['clips']['device']})" if clip else NOT_MEASURED
    met = clip["a_second_of_video"] <= 6 if clip else None
    aims.append(("480p, two speakers, InfiniteTalk with 9 motion frames, 4 steps, H200: seconds a second of video", "≤ 6", text, met))
    listened = _part(cpu, "listening", [])
    for entry in listened:
        text = f"{entry['times_real_time']:.1f}; {entry['mb']:.0f} MB beside the voice (at most {entry['mb_most']:.0f})"
        met = entry["times_real_time"] >= 5
        aims.append((f"embeddings of {_minutes(entry['seconds'])} on 2 cores: times real time", "≥ 5, the same memory", text, met))
    text = f"{hour['together']:.2f} s" if hour else NOT_MEASURED
    aims.append(("masks, plan, windows and tokens of an hour", "≤ 1 s", text, hour["together"] <= 1 if hour else None))
    text = f"{imported['seconds']:.2f} s" if imported else NOT_MEASURED
    met = imported["seconds"] <= 0.3 and not imported["lazy"] if imported else None
    aims.append(("importing the pack into ComfyUI, without transformers and av", "≤ 0.3 s", text, met))
    text = f"{graph['median']['left']:.2f} s ({graph['least']:.2f}–{graph['most']:.2f})" if graph else NOT_MEASURED
    met = graph["median"]["left"] <= 0.2 if graph else None
    aims.append(("the demo's graph without encoding, denoising and decoding", "≤ 0.2 s", text, met))
    words = {True: "yes", False: "**no**", None: ""}
    rows = (f"| {what} | {aim} | {item} | {words[met]} |" for what, aim, item, met in aims)
    return "\n".join(["| what | aim | found | met |", "|---|---|---|---|", *rows]) + "\n"


def _steps(cpu: Found, gpu: Found) -> str:
    lines = ["| model and clip | whose | speakers | operations | modelled, H200 | peak memory | time |", "|---|---|---|---|---|---|---|"]
    timed = {**_part(cpu, "steps", {}), **_part(gpu, "steps", {})}
    for size, rows in _part(cpu, "counted", {}).items():
        for row in rows:
            found = _row(timed.get(size, []), row["who"], row["speakers"])
            memory = f"{row['peak_memory']:.3f} counted" + (f", {found['peak_memory']:.3f}" if found and "peak_memory" in found else "")
            modelled = "" if size in _part(cpu, "steps", {}) else _modelled(row)
            cells = (size, WHO[row["who"]], row["speakers"], f"{row['operations']:.3f}", modelled, memory, _ratio(found))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        if chance := _row(timed.get(size, []), "bare", 0):
            lines.append(f"| {size} | {WHO['bare']} | | 1 | 1 | 1 | {_ratio(chance)} |")
    return "\n".join(lines) + "\n" + ABOUT_STEPS


def _guidance(cpu: Found, gpu: Found) -> str:
    lines = ["| text | audio | evaluations | forwards | batched | one by one |", "|---|---|---|---|---|---|"]
    for found in (cpu, gpu):
        for size, rows in _part(found, "guidance", {}).items():
            for row in rows:
                cells = (f"{row['text_scale']:g}", f"{row['audio_scale']:g}", row["evaluations"], row["forwards"])
                times = (_ratio(row[how]) if how in row else "" for how in ("batched", "one_by_one"))
                lines.append("| " + " | ".join(map(str, (*cells, *times))) + " |")
            lines.append(f"| | | | | {size} | |")
    return "\n".join(lines) + "\n" + ABOUT_GUIDANCE


def _clips(cpu: Found, gpu: Found) -> str:
    found: list[tuple[str, Found]] = []
    on_cpu, on_card = _part(cpu, "clips", {}), _part(gpu, "clips", {})
    for family, one in on_cpu.get("phases", {}).items():
        found.append((f"demo model, {family}, CPU", one))
    if on_card:
        found.append((f"{on_card['size']}, infinitetalk, GPU", on_card["one after the other"]))
    if not found:
        return f"{NOT_MEASURED}.\n"
    phases = list(dict.fromkeys(phase for _, one in found for phase in one["phases"]))
    lines = ["| | " + " | ".join(name for name, _ in found) + " |", "|---" * (len(found) + 1) + "|"]
    for phase in phases:
        shares = (_percent(one["phases"][phase] / sum(one["phases"].values())) if phase in one["phases"] else "" for _, one in found)
        lines.append(f"| {phase} | " + " | ".join(shares) + " |")
    lines.append("| seconds a clip | " + " | ".join(f"{one['a_clip']:.2f}" for _, one in found) + " |")
    text = (
        "\nOf the clips after the first, one phase after the other. Encoding and storing runs beside the next clip and costs no time where "
        "a card denoises: "
    )
    saved = on_card["overlapped"]["a_clip"] / on_card["one after the other"]["a_clip"] if on_card else None
    text += f"a clip then takes {saved:.3f} of the time.\n" if saved else f"on a card {NOT_MEASURED}.\n"
    if on_cpu:
        text += (
            "\nAn image is every clip's source with InfiniteTalk. The VAE encodes it, and CLIP looks at it, with the first clip that is "
            f"made; a later clip takes {_ratio(on_cpu['source_once'])} of the time that it takes when the VAE encodes it again, at the "
            "demo's size. The columns above were measured one after the other; what others do on the machine is in them.\n"
        )
        text += (
            "\n| new frames of a clip of 81, on the CPU | colours (a card's, if there is one) | to 8 bits | encoding |\n|---|---|---|---|\n"
        )
        for row in on_cpu["encoding"]:
            cells = (f"{row['frames']} of {row['size'][0]}×{row['size'][1]}", *(f"{row[part]:.1f} s" for part in CPU_WORK))
            text += "| " + " | ".join(cells) + " |\n"
        counted = _part(cpu, "counted", {})
        text += _operations_of_a_clip(counted, {size: row for size, row in on_cpu["operations"].items() if size in counted})
    return "\n".join(lines) + "\n" + text


def _operations_of_a_clip(steps: Found, vae: Found) -> str:
    if not vae:
        return ""
    lines = [f"\n| TFLOP of a clip of 81 frames, two speakers, {STEPS} steps | " + " | ".join(vae) + " |", "|---" * (len(vae) + 1) + "|"]
    denoise = {}
    for size in vae:
        row = _row(steps[size], "ours", 2)
        denoise[size] = STEPS * row["operations"] * row["bare"]["operations"]
    rows = {"denoise": denoise, **{part: {size: vae[size][part] for size in vae} for part in next(iter(vae.values()))}}
    for part, row in rows.items():
        lines.append(f"| {part} | " + " | ".join(f"{row[size] / 1e12:,.0f}" for size in vae) + " |")
    later = {size: sum(row[size] for part, row in rows.items() if part != ONCE) for size in vae}
    floors = " | ".join(f"{later[size] / H200_OPERATIONS / SECONDS_A_CLIP:.1f}" for size in vae)
    lines.append(f"| a later clip's at the H200's datasheet rate (bf16, 989 TFLOP/s): seconds a second of video | {floors} |")
    return "\n".join(lines) + "\n" + f"\nThe last line is a floor, not a measurement. {ONCE}: with the first clip only.\n"


def _around(cpu: Found) -> str:
    lines = []
    if hour := _part(cpu, "hour", {}):
        parts = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in hour["seconds"].items())
        lines.append(f"* An hour ({hour['clips']} clips), two speakers, the demo's audio weights: {parts}.")
        lines.append(
            f"* Tokens with an encoder of the published size: {hour['published_size_seconds_a_clip']:.2f} s a clip on the CPU, nearly all "
            "of it the first layer's multiplications; they are made clip by clip, on the card where there is one."
        )
    if graph := _part(cpu, "graph", {}):
        run = graph["median"]
        spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in sorted(run["spent"].items()))
        lines.append(
            f"* The demo's graph of two speakers, all nodes run again, models loaded from their files: {run['whole']:.2f} s; {spent}; "
            f"the rest is {run['left']:.2f} s."
        )
    if imported := _part(cpu, "importing", {}):
        lines.append(f"* The import adds {imported['modules']} modules to ComfyUI's.")
    return "\n".join(lines) + "\n"


def _evaluations(cpu: Found) -> str:
    rows = next(iter(_part(cpu, "guidance", {}).values()), [])
    made = {(row["text_scale"], row["audio_scale"]): str(row["evaluations"]) for row in rows}
    return " · ".join(made.get(form, NOT_MEASURED) for form in ((1.0, 1.0), (1.0, 2.0), (5.0, 4.0)))


def _part(found: Found, name: str, otherwise: Any) -> Any:
    return found[name]["found"] if name in found else otherwise


def _row(rows: list[Found], who: str, speakers: int) -> Found | None:
    return next((row for row in rows if (row["who"], row["speakers"]) == (who, speakers)), None)


def _ratio(row: Found | None) -> str:
    return f"{row['ratio']:.3f} ({row['lower']:.3f}–{row['upper']:.3f}, {row['rounds']} rounds)" if row else NOT_MEASURED


def _modelled(row: Found) -> str:
    return f"{min(row['modelled']):.3f}–{max(row['modelled']):.3f}"


def _more(ratio: float | None) -> str:
    return _percent(ratio - 1) if ratio else NOT_MEASURED


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _minutes(seconds: int) -> str:
    return "1 minute" if seconds == 60 else f"{seconds // 60} minutes"


def _speakers(count: int) -> str:
    return "1 speaker" if count == 1 else f"{count} speakers"
