"""A long video through the real models at their smallest: what is stopped goes on to the same bits."""

import hashlib
from dataclasses import replace

import pytest
import torch

from multitalk_nodes.multitalk_core.families import FAMILIES
from multitalk_nodes.multitalk_core.generate import Video, generate
from multitalk_nodes.multitalk_core.people.speakers import Speaker
from multitalk_nodes.multitalk_core.video.disk import Exactly
from multitalk_nodes.multitalk_core.video.job import Job
from multitalk_nodes.multitalk_core.video.segments import CODECS, read_frames
from multitalk_nodes.multitalk_core.windows import Shot, plan_shots
from multitalk_nodes.tests.support.graphs import ROOT

FRAMES, CLIP, STEPS, SEED = 22, 9, 2, 5
LOSSLESS = CODECS["lossless"]


@pytest.fixture(scope="module", params=FAMILIES)
def video(comfy, request):
    """A drawn face that says something for 22 frames, in clips of 9."""
    from multitalk_nodes.comfy_bridge.backend import ComfyBackend
    from multitalk_nodes.comfy_bridge.demo import load_demo
    from multitalk_nodes.comfy_bridge.long_video import LongVideo, Sound
    from multitalk_nodes.comfy_bridge.sampling import Sampling
    from multitalk_nodes.comfy_bridge.scene import Models, Scene
    from multitalk_nodes.lab.scenes.faces import one_face
    from multitalk_nodes.multitalk_core.people.voices import encode_voices

    family = FAMILIES[request.param]
    demo = load_demo(ROOT / "demo" / "weights", family)
    waveform = 0.2 * torch.randn(1, round(FRAMES / 25 * 16000), generator=torch.Generator().manual_seed(0))
    voices = encode_voices([Speaker(waveform, 16000)], demo.audio_encoder, "sequential")
    scene = Scene(Models(demo.model, demo.weights, demo.vae, demo.prompt, demo.prompt), None)
    picture = one_face().picture()[None]
    made = Video(family, plan_shots(FRAMES, [], CLIP, 5), lambda number: picture, voices.tracks, SEED)
    return LongVideo(ComfyBackend(scene, Sampling(STEPS, 3.0, 1.0, 1.0)), made, Sound(voices.sound, voices.rate))


def job_of(video, folder, key="a"):
    return Job(folder / "job", key, video.video.clips, LOSSLESS, 18)


def make(video, folder, tell=lambda line: None):
    from multitalk_nodes.comfy_bridge.long_video import Output

    with torch.inference_mode():  # as ComfyUI runs its nodes
        _, report = video.make(job_of(video, folder), Output(Exactly(folder / "out.mkv")), tell)
    return hashlib.sha256((folder / "out.mkv").read_bytes()).hexdigest(), report.in_words()


@pytest.fixture(scope="module")
def whole(video, tmp_path_factory):
    return make(video, tmp_path_factory.mktemp("whole"))[0]


def test_it_is_the_video_that_the_loop_makes(video, tmp_path):
    make(video, tmp_path)
    made = torch.stack([*read_frames(tmp_path / "out.mkv")])
    with torch.inference_mode():
        expected = torch.cat([made.frames for made in generate(video.backend, video.video)]).clamp(0, 1)
    assert made.shape == expected.shape == (FRAMES, 64, 64, 3)
    assert (made - expected).abs().max() < 1.5 / 255  # 8 bits; motion frames of 16


def test_an_image_is_encoded_once_and_not_for_every_clip(video, tmp_path):
    """The first clip's known frames; after that what only the clip itself knows. The video is the one of which every clip encodes all."""
    from multitalk_nodes.comfy_bridge.scene import Remembered, encode_with_grey

    def made_by(encode_known, name):
        vae = Counting(video.backend.scene.models.vae)
        (tmp_path / name).mkdir()
        scene = replace(video.backend.scene, models=replace(video.backend.scene.models, vae=vae), encode_known=encode_known)
        return vae.encoded, make(replace(video, backend=replace(video.backend, scene=scene)), tmp_path / name)[0]

    (encoded, once), (all_encoded, every) = made_by(Remembered(encode_with_grey), "once"), made_by(encode_with_grey, "every")
    later = len(video.video.clips) - 1
    assert later > 2 and once == every
    if video.video.family.name == "infinitetalk":
        assert (encoded, all_encoded) == ([CLIP, 1] + [5] * later, [CLIP, 1] + [CLIP, 5] * later)
    else:
        assert encoded == all_encoded == [CLIP] * (1 + later), "what MultiTalk goes on from is new in every clip"


class Counting:
    """A VAE, and how many frames it was given at a time."""

    def __init__(self, vae):
        self._vae, self.encoded = vae, []

    def encode(self, frames):
        self.encoded.append(len(frames))
        return self._vae.encode(frames)

    def decode(self, latent):
        return self._vae.decode(latent)


def test_the_latest_result_is_remembered_for_the_same_question_only(comfy):
    from multitalk_nodes.comfy_bridge.scene import Remembered

    asked = []

    def function(who, picture, frames):
        asked.append((who, frames))
        if frames < 0:
            raise ValueError
        return picture * frames

    latest, picture = Remembered(function), torch.ones(1, 2, 2, 3)
    assert torch.equal(latest("a", picture, 5), latest("a", picture.clone(), 5)) and len(asked) == 1
    for given in (("b", picture, 5), ("b", picture, 9), ("b", picture[:, :1], 9), ("b", picture[:, :1].half(), 9)):
        assert latest(*given).dtype == given[1].dtype
    assert len(asked) == 5
    with pytest.raises(ValueError):
        latest("b", picture, -1)
    latest("b", picture[:, :1].half(), 9)
    assert len(asked) == 6, "what failed is not kept, and what was before still is"
    latest("b", picture, 9)
    picture.zero_()
    assert not latest("b", picture, 9).any() and len(asked) == 8, "another picture in the same place"


@pytest.mark.parametrize("moment", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_video_that_was_stopped_at_any_step_goes_on_to_the_same_bits(video, whole, tmp_path, moment):
    import comfy.model_management

    lines = []

    def stop(line):
        lines.append(line)
        if sum("step" in line for line in lines) == moment:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        make(video, tmp_path, stop if moment else lambda line: comfy.model_management.interrupt_current_processing())
    steps = sum("step" in line for line in lines)
    assert moment <= steps <= moment + 1, "within one step"
    with job_of(video, tmp_path).hold() as job:
        finished = job.finished
    assert finished == steps // STEPS or finished == (steps - 1) // STEPS
    again, report = make(video, tmp_path)
    assert again == whole
    assert f"{finished} clips were finished before" in report or not finished


@pytest.mark.parametrize("name", ["ours", "EasyCacheNode"])
def test_with_a_step_cache_every_clip_begins_anew(video, tmp_path, name):
    """A video that was stopped after its first clip knows nothing of it, and goes on to the same bits."""
    import comfy.model_management
    import comfy_extras.nodes_easycache

    from multitalk_nodes.comfy_bridge.step_cache import cache_steps
    from multitalk_nodes.multitalk_core.step_cache import TABLES, Rule

    model = video.backend.scene.models.model
    if name == "ours":
        model = cache_steps(model, Rule(9.0, TABLES["none"], first_steps=1))
    else:
        model = getattr(comfy_extras.nodes_easycache, name).execute(model, 3.0, 0.0, 1.0, False)[0]
    two_clips = replace(video.video, shots=plan_shots(13, [], CLIP, 5))
    scene = replace(video.backend.scene, models=replace(video.backend.scene.models, model=model))
    sampling = replace(video.backend.sampling, steps=4)
    cached = replace(video, video=two_clips, backend=replace(video.backend, scene=scene, sampling=sampling))
    calls = []
    with model.model.diffusion_model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1)):
        whole, _ = make(cached, tmp_path)
    assert 2 <= len(calls) < 8
    lines = []

    def stop(line):
        lines.append(line)
        if sum("step" in line for line in lines) == 5:
            comfy.model_management.interrupt_current_processing()

    (tmp_path / "again").mkdir()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        make(cached, tmp_path / "again", stop)
    again, report = make(cached, tmp_path / "again")
    assert again == whole and "clips were finished before" in report


def test_shots_are_videos_of_their_own(video, tmp_path):
    from multitalk_nodes.multitalk_core.windows import plan_clips

    cut = replace(video, video=replace(video.video, shots=plan_shots(FRAMES, [0.5], CLIP, 5)))  # at frame 12
    assert "4 clips of 2 shots" in make(cut, tmp_path)[1]
    made = torch.stack([*read_frames(tmp_path / "out.mkv")])
    with torch.inference_mode():
        tracks = [track[12:] for track in video.video.tracks]
        plan = tuple(replace(clip, index=2 + clip.index) for clip in plan_clips(FRAMES - 12, CLIP, 5))
        second = replace(video.video, shots=[Shot(0, FRAMES - 12, plan)], tracks=tracks)
        alone = torch.cat([made.frames for made in generate(video.backend, second)])
    assert (made[12:] - alone.clamp(0, 1)).abs().max() < 1.5 / 255


def test_each_clip_has_the_prompt_that_holds_in_its_middle(video, tmp_path):
    from multitalk_nodes.comfy_bridge.conditioning import SECONDS
    from multitalk_nodes.comfy_bridge.scene import Scene

    heard = []

    class Heard(Scene):
        def conditionings(self, condition):
            made = super().conditionings(condition)
            heard.append(tuple(extra["said"] for prompt in made for _, extra in prompt))
            return made

    models = video.backend.scene.models

    def scheduled(*prompts):
        return [[text, {**extra, "said": said, SECONDS: seconds}] for said, *seconds in prompts for text, extra in models.positive]

    prompts = {"positive": scheduled(("a", 0, 0.3), ("b", 0.3, 9)), "negative": scheduled(("c", 0, 9))}
    backend = replace(video.backend, scene=Heard(replace(models, **prompts), None))
    make(replace(video, backend=backend), tmp_path)
    middles = [(clip.start + clip.drop + clip.keep / 2) / 25 for clip in video.video.clips]
    assert heard == [("a" if middle < 0.3 else "b", "c") for middle in middles] and len({*heard}) == 2


def test_a_stretch_of_the_file_becomes_pictures_through_core_nodes(video, tmp_path):
    from comfy_api.latest import InputImpl
    from comfy_extras.nodes_video import GetVideoComponents, VideoSlice

    make(video, tmp_path)
    whole = InputImpl.VideoFromFile(str(tmp_path / "out.mkv"))
    stretch = VideoSlice.execute(whole, start_time=0.2, duration=0.4, strict_duration=False).result[0]
    images = GetVideoComponents.execute(stretch).result[0]
    expected = torch.stack([*read_frames(tmp_path / "out.mkv", 5, 15)])
    assert images.shape == expected.shape and (images - expected).abs().max() < 1.5 / 255  # core goes by way of 8 bits, a little darker


def test_progress_counts_every_step_of_every_clip(video, tmp_path):
    import comfy.utils

    lines, bars = [], []
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, node_id=None: bars.append((done, total, preview)))
    try:
        make(video, tmp_path, lines.append)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    clips = len(video.video.clips)
    assert [line.split(",")[0] for line in lines if "step 2/2" in line] == [f"clip {n}/{clips}" for n in range(1, clips + 1)]
    assert all(line.endswith(" left") for line in lines if "step" in line) and lines[-1] == "joining"
    assert {"at least" in line for line in lines if line.startswith("clip 1/") and "step" in line} == {True}, "how long is decoding?"
    assert not any("at least" in line for line in lines if line.startswith("clip 2/"))
    assert bars[-1][:2] == (clips * STEPS, clips * STEPS)
    assert sum(preview is not None for *_, preview in bars) == clips
