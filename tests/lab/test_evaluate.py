"""The evaluation of the demo model: its cases, its statistics, and that it tells a model that works from one that does not."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from multitalk_nodes.lab.evaluation import main as eval_main
from multitalk_nodes.lab.evaluation import report
from multitalk_nodes.lab.evaluation import workers as eval_workers
from multitalk_nodes.lab.evaluation.cases import (
    LAYOUTS,
    LEAST_SPEECH,
    MOST_ALIKE,
    ROWS,
    SEED,
    Group,
    Scope,
    cost,
    draw_case,
    groups,
    plan_of,
    recorded_voice,
)
from multitalk_nodes.lab.evaluation.files import read_video, truth_file, video_file, video_parts, write_video
from multitalk_nodes.lab.evaluation.metadata import METRICS, add_metrics, tensors_hash
from multitalk_nodes.lab.scenes.faces import Acting
from multitalk_nodes.multitalk_core.audio.loudness import voice_energy
from multitalk_nodes.multitalk_core.lipsync.curves import pearson
from multitalk_nodes.tools.launch import launched

pytest.importorskip("espeakng_loader", reason="needs espeak-ng: pip install espeakng-loader")

QUICK_MINUTES = 3
ROOT = Path(__file__).resolve().parents[2]
SMALL = Scope(quick=True)  # whose first and third cases are small


@pytest.fixture(scope="module")
def evaluate(comfy):
    from multitalk_nodes.lab.evaluation import evaluate

    return evaluate


class Puppeteer:
    """Makes perfect videos of a case from what the product is given, or with a fault."""

    def __init__(self, case, fault=""):
        self.case, self.fault = case, fault

    def make(self, take):
        frames = take.plan[-1].stop
        voices = torch.stack([self.voice_of(i, take.speakers) for i in range(len(take.speakers))])
        energies = torch.stack([voice_energy(voice, frames) for voice in voices])
        energies *= {"mouths stand still": 0.0, "mouths hardly open": 0.4}.get(self.fault, 1.0)
        acting = Acting(energies, self.case.acting.nods, self.case.acting.blinks)
        for clip in take.plan:
            frames = replace(self.case, acting=acting).truth(clip.start + clip.drop, clip.start + clip.drop + clip.keep)
            if self.fault == "only mouths are drawn":
                frames = self.only_mouths(frames)
            if self.fault == "pictures fade":
                frames = frames.lerp(torch.full_like(frames, 0.5), 0.05 * clip.index)
            yield frames

    def only_mouths(self, frames):
        grey = torch.full_like(frames, 0.6)
        for face in self.case.scene.faces:
            left, top, right, bottom = face.mouth_box
            grey[:, top:bottom, left:right] = frames[:, top:bottom, left:right]
        return grey

    def voice_of(self, face, speakers):
        heard = [torch.zeros_like(self.case.voices[0]) if s.waveform is None else s.waveform[0] for s in speakers]
        if self.fault == "everybody hears everything":
            return torch.stack(heard).sum(dim=0)
        if self.fault == "boxes mean nothing":
            return heard[face]
        if self.fault == "nobody is silent" and not heard[face].any():
            return 0.1 * heard[1 - face]
        return heard[[s.box for s in speakers].index(self.case.boxes[face])]

    def reconstruct(self, frames):
        return frames + (0.1 if self.fault == "a bad VAE" else 0.01)


def records(evaluate, folder, rows, number=0, fault="", scope=SMALL):
    group = Group(ROWS[rows[0]].cases, number, rows)
    return list(evaluate.run(group, scope, Puppeteer(draw_case(group.cases, number, scope), fault), folder))


def figure(found, row, name):
    return next(f for f in found if (f.row, f.name) == (row, name))


# cases


@pytest.mark.parametrize("cases", ["one", "two", "silent", "three", "four"])
def test_a_case_is_the_same_every_time_and_unlike_the_next(cases):
    first, again, other = (draw_case(cases, number, Scope()) for number in (3, 3, 4))
    assert first.scene == again.scene and first.seed == again.seed
    assert torch.equal(first.voices, again.voices) and torch.equal(first.truth(), again.truth())
    assert first.scene != other.scene and first.seed != other.seed
    assert not torch.equal(first.voices, other.voices)


def test_cases_draw_from_numbers_that_training_does_not_use():
    """numpy fills seeds up with zeros: (3, 5) of training would be (3, 5, 0) here."""
    trained = {np.random.default_rng((seed, step)).random() for seed in range(12) for step in range(200)}
    assert not trained & {np.random.default_rng((SEED, stream, number)).random() for stream in range(9) for number in range(64)}


@pytest.mark.parametrize("cases", ["one", "two", "three"])
def test_voices_say_something_and_none_is_like_another(cases):
    for number in range(6):
        case = draw_case(cases, number, Scope())
        energies = [voice_energy(voice, case.frames) for voice in case.voices]
        assert case.voices.shape == (LAYOUTS[case.layout].speakers, round(3.24 * 16000))
        assert all(energy.std() >= LEAST_SPEECH for energy in energies)
        assert all(abs(pearson(a, b)) <= MOST_ALIKE for i, a in enumerate(energies) for b in energies[:i])


def test_either_speaker_is_silent_in_turn():
    assert [[bool(voice.any()) for voice in draw_case("silent", number, SMALL).voices] for number in (0, 1)] == [
        [False, True],
        [True, False],
    ]


def test_ground_truth_begins_with_the_picture_and_can_be_had_in_parts():
    case = draw_case("one", 0, Scope())
    whole = case.truth()
    assert whole.shape == (81, 64, 64, 3)
    assert torch.equal(whole[:1], case.picture)
    assert torch.equal(whole[20:50], case.truth(20, 50))


def test_long_videos_have_twelve_clips_with_their_familys_overlap():
    for family, frames in (("multitalk", 81 + 11 * 56), ("infinitetalk", 81 + 11 * 72)):
        plan = plan_of(f"drift-{family}", Scope())
        assert len(plan) == 12 and plan[-1].stop == frames
        assert sum(clip.keep for clip in plan) == frames


def test_a_recording_is_used_from_where_somebody_speaks(tmp_path):
    import soundfile

    speech = draw_case("one", 0, Scope()).voices[0]
    soundfile.write(tmp_path / "late.wav", torch.cat([torch.zeros_like(speech), speech]).numpy(), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", speech[:16000].numpy(), 16000, subtype="FLOAT")
    assert torch.equal(recorded_voice(tmp_path / "late.wav", 81), speech)
    short = recorded_voice(tmp_path / "short.wav", 81)
    assert short.shape == speech.shape and torch.equal(short[:16000], speech[:16000]) and not short[16000:].any()


def test_one_case_is_made_once_for_all_its_rows_and_early_cases_come_first():
    found = groups([(ROWS["one"], 2), (ROWS["two"], 1), (ROWS["steps-4"], 1)])
    assert found == [Group("one", 0, ("one", "steps-4")), Group("two", 0, ("two",)), Group("one", 1, ("one",))]


def test_larger_and_longer_videos_are_expected_to_cost_more():
    small, large = (cost(ROWS["one"], number, Scope()) for number in (0, 1))
    assert large == 4 * small
    assert cost(ROWS["audio-2"], 0, Scope()) > small
    assert cost(ROWS["drift-multitalk"], 0, Scope()) == 12 * large


# measuring


def test_an_mp4_gives_back_what_was_written(tmp_path):
    frames = draw_case("two", 0, Scope()).truth()
    write_video(tmp_path / "whole.mp4", [frames[:30], frames[30:]])
    again = read_video(tmp_path / "whole.mp4")
    assert again.shape == frames.shape
    assert (again - frames).abs().mean() < 0.02
    assert torch.equal(torch.cat([*video_parts(tmp_path / "whole.mp4", [50, 31])]), again)


@pytest.mark.parametrize("cases", ["one", "two"])
def test_ground_truth_follows_its_own_voices(evaluate, tmp_path, cases):
    for number in range(4):
        case = draw_case(cases, number, Scope())
        write_video(tmp_path / "truth.mp4", [case.truth()])
        measured = evaluate.measure(tmp_path / "truth.mp4", case.boxes, case.voices)
        assert all(measured.correlations[i][i] > 0.92 for i in range(len(case.voices)))


def test_exchanged_voices_are_told(evaluate, tmp_path):
    case = draw_case("two", 0, Scope())
    write_video(tmp_path / "truth.mp4", [case.truth()])
    right = evaluate.measure(tmp_path / "truth.mp4", case.boxes, case.voices)
    wrong = evaluate.measure(tmp_path / "truth.mp4", case.boxes, case.voices.flip(0))
    assert max(wrong.correlations[0][0], wrong.correlations[1][1]) < MOST_ALIKE + 0.1
    assert [row[::-1] for row in wrong.correlations] == right.correlations


def test_psnr_by_hand(evaluate):
    assert evaluate.psnr(torch.full((2, 4, 4, 3), 0.6), torch.full((2, 4, 4, 3), 0.5)) == pytest.approx(20, abs=1e-4)


# rows


def test_perfect_videos_reach_every_bound(evaluate, tmp_path):
    made = [record for n in range(2) for record in records(evaluate, tmp_path, ("two", "swapped"), n)]
    made += [record for n in range(2) for rows in (("one",), ("silent",), ("vae",)) for record in records(evaluate, tmp_path, rows, n)]
    found = report.figures(made)
    for bounds in (report.BOUNDS, report.QUICK_BOUNDS):
        assert report.missed(found, bounds) == []
    assert figure(found, "one", "own voice, mean").value > figure(found, "truth-one", "own voice, mean").value  # lips are not smoothed
    assert figure(found, "swapped", "voice of the other place").value < MOST_ALIKE


@pytest.mark.parametrize(
    ("fault", "rows", "missed"),
    [
        ("mouths stand still", ("one",), {"one"}),
        ("mouths stand still", ("two", "swapped"), {"two", "swapped"}),
        ("mouths hardly open", ("one",), {"one"}),
        ("mouths hardly open", ("two",), {"two"}),
        ("only mouths are drawn", ("one",), {"one"}),
        ("only mouths are drawn", ("two",), {"two"}),
        ("everybody hears everything", ("two", "swapped"), {"two", "swapped"}),
        ("boxes mean nothing", ("two", "swapped"), {"swapped"}),
        ("nobody is silent", ("silent",), {"silent"}),
        ("a bad VAE", ("vae",), {"vae"}),
    ],
)
def test_a_fault_is_told(evaluate, tmp_path, fault, rows, missed):
    found = report.figures(records(evaluate, tmp_path, rows, fault=fault))
    for bounds in (report.BOUNDS, report.QUICK_BOUNDS):
        sentences = report.missed(found, bounds)
        names = {name for name in rows if any(sentence.startswith(f"{report.title(name)}:") for sentence in sentences)}
        assert names == missed & {bound.row for bound in bounds}


@pytest.mark.parametrize(("fault", "missed"), [("", False), ("pictures fade", True)])
def test_a_long_video_that_gets_worse_is_told(evaluate, tmp_path, fault, missed):
    made = records(evaluate, tmp_path, ("drift-multitalk",), number=1, fault=fault)  # the small one
    found = report.figures(made)
    assert len(made[0]["psnr"]) == 12
    assert bool(report.missed(found, report.BOUNDS)) is missed
    assert (figure(found, "drift-multitalk", "own voice").value > 0.9) is not missed  # faded mouths are not dark enough


def test_rows_that_are_alike_are_made_once(evaluate, tmp_path):
    one, steps_8, audio_1 = records(evaluate, tmp_path, ("one", "steps-8", "audio-1"))
    assert {**one, "row": ""} == {**steps_8, "row": ""} == {**audio_1, "row": ""}
    assert len(list(tmp_path.glob("*.mp4"))) == 2  # and the ground truth


# the product


@pytest.fixture(scope="module")
def product(evaluate):
    return evaluate.Product(ROOT / "demo" / "weights")


@pytest.fixture(scope="module")
def take(evaluate):
    job = evaluate._Job(ROWS["two"], Group("two", 0, ("two",)), draw_case("two", 0, Scope(frames=9)), Scope(frames=9), None, None)
    return job.take(0.0)


def test_a_take_holds_nothing_but_what_a_user_gives(take):
    assert take.picture.shape == (1, 64, 128, 3)
    assert [speaker.rate for speaker in take.speakers] == [16000, 16000]
    assert all(speaker.waveform.shape == (1, 5760) for speaker in take.speakers)


def test_the_product_makes_the_same_video_with_a_remembered_picture(product, take, monkeypatch):
    vae, encoded = product.demo("multitalk").vae, []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda frames: encoded.append(len(frames)) or encode(frames))
    with torch.inference_mode():
        first, again = (torch.cat([*product.make(take)]) for _ in range(2))
    assert first.shape == (9, 64, 128, 3)
    assert torch.equal(first, again)
    assert encoded == [9]


def test_a_swap_gives_each_face_the_other_voice(evaluate):
    jobs = [
        evaluate._Job(ROWS[row], Group("two", 0, (row,)), draw_case("two", 0, Scope(frames=9)), Scope(frames=9), None, None)
        for row in ("two", "swapped")
    ]
    straight, swapped = (job.take(0.0).speakers for job in jobs)
    assert [speaker.box for speaker in swapped] == [speaker.box for speaker in straight[::-1]]
    assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(straight, swapped, strict=True))


def test_shuffled_projections_are_the_same_numbers_elsewhere(evaluate, product):
    shuffled = evaluate.Product(ROOT / "demo" / "weights", shuffled=True)
    before, after = (p.demo("multitalk").weights.adapter.audio_proj.proj1.weight for p in (product, shuffled))
    assert before.shape == after.shape and not torch.equal(before, after)
    assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


# statistics


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(0.9, 0.05, (400, 1))
    low, high = report.interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert report.interval(values) == (low, high)


def test_mouths_of_one_clip_do_not_count_as_two_clips():
    one = np.random.default_rng(0).normal(0.9, 0.05, (100, 1))
    twice = np.concatenate([one, one], axis=1)
    assert report.interval(twice) == pytest.approx(report.interval(one))


def test_the_worst_decile_by_hand():
    values = np.arange(21.0)[None]
    assert report._statistic(report.DECILE, values) == pytest.approx(2.0)
    assert report._statistic(report.WORST, values) == pytest.approx((0 + 1 + 2) / 3)


def test_three_figures_of_two_speakers_by_hand():
    record = {
        "row": "two",
        "number": 0,
        "hears": [0, 1],
        "made": {"correlations": [[0.9, 0.3], [0.1, 0.7]], "means": [0.1, 0.1], "deviations": [0.05, 0.08]},
        "truth": {"correlations": [[1.0, 0.2], [0.1, 1.0]], "means": [0.1, 0.1], "deviations": [0.1, 0.1]},
        "psnr": 25.0,
    }
    found = report.figures([record, record])
    assert figure(found, "two", "own voice, mean").value == pytest.approx(0.8)
    assert figure(found, "two", report.OTHER).value == pytest.approx(0.05)
    assert figure(found, "two", "opening").value == pytest.approx(0.65)
    swapped = report.figures([{**record, "row": "swapped", "hears": [1, 0]}])
    assert figure(swapped, "swapped", "voice of its place").value == pytest.approx(0.2)
    assert figure(swapped, "swapped", "voice of the other place").value == pytest.approx(0.8)


def test_a_silent_mouth_is_compared_with_talking_ones():
    record = {
        "row": "silent",
        "number": 0,
        "hears": [None, 1],
        "made": {"correlations": [[0.0, 0.1], [0.0, 0.9]], "means": [0.03, 0.2], "deviations": [0.01, 0.1]},
        "truth": {"correlations": [[0.0, 0.1], [0.0, 0.9]], "means": [0.01, 0.2], "deviations": [0.0, 0.1]},
        "psnr": 25.0,
    }
    found = report.figures([record])
    assert figure(found, "silent", "silent mouth's mean opening, off by").value == pytest.approx(0.1)
    assert figure(found, "silent", "silent mouth's deviation").value == pytest.approx(0.05)


def test_a_missed_bound_is_named_with_both_numbers():
    found = [report.Figure("one", "own voice, mean", 0.93, 0.9, 0.95, 64)]
    assert report.missed(found, report.BOUNDS) == ["one speaker: own voice, mean is 0.930, expected ≥ 0.940"]
    assert report.missed([], report.BOUNDS) == []


def test_every_bound_is_of_a_figure_that_exists():
    kinds = {row: report.QUANTITIES.get(row.split("-")[0], report.CLIP) for row in ROWS}
    for bound in (*report.BOUNDS, *report.QUICK_BOUNDS):
        names = {q.name if q.statistics == (report.MEAN,) else f"{q.name}, {s}" for q in kinds[bound.row] for s in q.statistics}
        assert bound.name in names


def test_tables_have_a_line_for_every_row(evaluate, tmp_path):
    found = report.figures(records(evaluate, tmp_path, ("one", "steps-8")))
    bounded, reported = report.bounded_table(found, report.BOUNDS), report.reported_table(found)
    assert [line[0] for line in reported[1:]] == ["one speaker", "8 steps"]
    assert [line[5:] for line in bounded if line[:2] == ["one speaker", "own voice, mean"]] == [["≥ 0.940", "reached"]]
    assert len({len(line) for line in bounded}) == len({len(line) for line in reported}) == 1
    assert report.as_markdown(reported).splitlines()[1] == "|" + "---|" * len(reported[0])
    assert len(report.as_text(reported).splitlines()) == 3
    line = next(line for line in report.as_json(found, report.BOUNDS) if (line["row"], line["figure"]) == ("one", "own voice, mean"))
    assert line["reached"] and line["bound"] == "≥ 0.94" and line["interval"][0] <= line["value"] <= line["interval"][1]


def test_a_contact_sheet_shows_what_was_made(evaluate, tmp_path):
    from multitalk_nodes.lab.evaluation.sheet import sheet_of

    records(evaluate, tmp_path, ("one",))
    records(evaluate, tmp_path, ("two", "swapped"))
    assert truth_file(tmp_path, Group("two", 0, ())).exists() and video_file(tmp_path, "swapped", 0).exists()
    sheet_of(tmp_path, SMALL, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1200 and sheet.height > 3 * 256
    with pytest.raises(FileNotFoundError, match="one, two, silent, swapped"):
        sheet_of(tmp_path / "nothing", SMALL, tmp_path / "sheet.png")


# the command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--frames", "80"], "give 4n"),
        (["--jobs", "0"], "at least 1"),
        (["--weights", "gone"], "'gone' is not a folder"),
        (["--seed", "3"], "cases that the model was trained on"),
        (["--record", "--rows", "one"], "leave out --rows"),
        (["--record", "--clips", "8"], "leave out --clips"),
    ],
)
def test_a_wrong_call_is_told(arguments, expected, capsys):
    with pytest.raises(SystemExit):
        eval_main.parse(arguments)
    assert expected in capsys.readouterr().err


def test_rows_are_chosen_by_name_or_by_kind():
    def names(*arguments):
        return [row.name for row in eval_main.chosen_rows(eval_main.parse(arguments))]

    assert names("--rows", "steps,one") == ["one", "steps-1", "steps-2", "steps-4", "steps-8", "steps-20"]
    assert names("--rows", "drift-multitalk") == ["drift-multitalk"]
    assert names() == list(ROWS)
    assert names("--quick") == ["one", "two", "swapped", "silent"]
    with pytest.raises(eval_main.EvaluationError, match="no row 'three'. Rows are one, two, swapped, silent"):
        names("--quick", "--rows", "three")


def test_an_interrupted_file_is_gone_on_with(tmp_path):
    file, about = tmp_path / "out.jsonl", {"seed": 1}
    assert eval_main.stored(file, about) == []
    eval_main.append(file, {"row": "one", "number": 0})
    with file.open("a") as stream:
        stream.write('{"row": "one", "nu')
    found = eval_main.stored(file, about)
    assert found == [{"row": "one", "number": 0}]
    eval_main.append(file, {"row": "one", "number": 1})
    assert len(eval_main.stored(file, about)) == 2
    with pytest.raises(eval_main.EvaluationError, match="other weights or other options"):
        eval_main.stored(file, {"seed": 2})


@pytest.mark.parametrize("text", ["a note\nwithout a last newline", "not ours", '{"figures": []}', ""])
def test_somebody_elses_file_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "notes.txt"
    file.write_text(text)
    with pytest.raises(eval_main.EvaluationError, match="other weights or other options"):
        eval_main.stored(file, {"seed": 1})
    assert file.read_text() == text


def test_a_recording_without_speech_is_told_before_anything_is_made(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "hum.wav", 1e-5 * np.sin(np.arange(64000) / 20), 16000, subtype="FLOAT")
    with pytest.raises(eval_main.EvaluationError, match=r"hum\.wav.*Nobody speaks"):
        eval_main.check_recordings(eval_main.scope_of(eval_main.parse(["--recordings", str(tmp_path)])))


def test_what_is_measured_is_not_made_again():
    wanted = [Group("one", 0, ("one", "steps-4")), Group("one", 1, ("one",))]
    assert eval_main.without(wanted, {("one", 0), ("one", 1)}) == [Group("one", 0, ("steps-4",))]


WORKER = """
import json, sys
for line in sys.stdin:
    group = json.loads(line)
    if group["number"] == {fatal}:
        sys.exit(3)
    for row in group["rows"]:
        print(json.dumps({{"row": row, "number": group["number"]}}), flush=True)
    print("done", flush=True)
"""


def test_workers_share_the_groups():
    wanted = [Group("one", number, ("one", "steps-4")) for number in range(7)]
    found = list(eval_workers.measured(wanted, [sys.executable, "-c", WORKER.format(fatal=-1)], jobs=3))
    assert sorted((r["row"], r["number"]) for r in found) == sorted((row, n) for row in ("one", "steps-4") for n in range(7))


def test_a_worker_that_says_something_else_is_told():
    chatty = "import sys\nfor line in sys.stdin: print('loading…', flush=True)"
    with pytest.raises(eval_workers.WorkerError, match="no record: 'loading…'"):
        list(eval_workers.measured([Group("one", 0, ("one",))], [sys.executable, "-c", chatty], jobs=1))


def test_a_worker_that_ends_is_told():
    wanted = [Group("one", number, ("one",)) for number in range(4)]
    with pytest.raises(eval_workers.WorkerError, match="ended with 3 at case 2 of one"):
        list(eval_workers.measured(wanted, [sys.executable, "-c", WORKER.format(fatal=2)], jobs=1))


def command(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    program = launched("lab.evaluation.main", "--quick", *arguments)
    return subprocess.run(program, capture_output=True, text=True, env=environment, timeout=60 * 2 * QUICK_MINUTES)


def test_metrics_are_added_to_what_a_file_says_and_its_tensors_stay(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3).half(), "b": torch.ones(2, 2)}, file, {"license": "Apache-2.0"})
    before = tensors_hash(file)
    add_metrics(tmp_path, {"one speaker: own voice, mean": "0.950 (0.940 … 0.960, 64 clips)"})
    add_metrics(tmp_path, {"one speaker: own voice, mean": "0.951 (0.941 … 0.961, 64 clips)"})
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["license"] == "Apache-2.0" and "0.951 (0.941" in json.loads(metadata[METRICS])["one speaker: own voice, mean"]
    assert tensors_hash(file) == before and [*tmp_path.iterdir()] == [file]


@pytest.mark.slow
def test_the_demo_model_keeps_its_quick_bounds():
    ended = command()
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_weights_with_shuffled_audio_projections_fail(tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(ROOT / "demo" / "weights", weights)
    file = weights / "multitalk-demo-audio.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    for name in ("audio_proj.proj1.weight", "audio_proj.proj1_vf.weight"):
        order = torch.randperm(tensors[name].numel(), generator=torch.Generator().manual_seed(1))
        tensors[name] = tensors[name].flatten()[order].view_as(tensors[name])
    save_file(tensors, file, metadata)
    figures = tmp_path / "figures.json"
    ended = command("--rows", "one", "--clips", "2", "--weights", str(weights), "--json", str(figures))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "MISSED one speaker: own voice, mean" in ended.stdout
    found = json.loads(figures.read_text(encoding="utf-8"))["figures"]
    assert next(f["value"] for f in found if (f["row"], f["figure"]) == ("one", "own voice, mean")) < 0.6
