"""A job on the disk: it goes on from wherever it ended, to the same bits, and trusts nothing that was changed."""

import errno
import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multitalk_nodes.multitalk_core.generate import Made
from multitalk_nodes.multitalk_core.video import job as jobs
from multitalk_nodes.multitalk_core.video.disk import Exactly, JobError
from multitalk_nodes.multitalk_core.video.job import ANCHOR, MANIFEST, Job, JobBusyError, as_stored, motion_bytes
from multitalk_nodes.multitalk_core.video.segments import CODECS, read_frames
from multitalk_nodes.multitalk_core.windows import plan_clips

ROOT = Path(__file__).resolve().parents[2]
CODEC = CODECS["h264"]
OVERLAP = 5
SIDE = 128  # of smaller pictures x264 makes other bits now and then: multitalk_core/video/segments.py


class Off(BaseException):
    """The machine goes off."""


def the_job(folder, frames=45, key="a"):
    return Job(folder / "job", key, plan_clips(frames, 13, OVERLAP), CODEC, 18)


def made(clip, motion):
    """A clip that depends on all clips before: [F, H, W, 3]."""
    generator = torch.Generator().manual_seed(clip.index)
    frames = torch.rand(clip.stop - clip.start, SIDE, SIDE, 3, generator=generator)
    return frames if motion is None else 0.5 * frames + 0.5 * motion.mean(dim=0)


def in_turn(make_clip):
    """What `fill` takes, from a function of a clip and its motion frames to a seed and all frames."""

    def clips(asked, motion):
        for clip in asked:
            seed, frames = make_clip(clip, None if clip.drop == 0 else motion)
            motion = as_stored(frames[-OVERLAP:])
            yield Made(clip, seed, frames[clip.drop : clip.drop + clip.keep], motion)

    return clips


def make(job, out, clips=None):
    """Fills and joins a job; returns the numbers of the clips that were made. `clips`: the machine goes off after so many."""
    numbers = []

    def make_clip(clip, motion):
        if len(numbers) == clips:
            raise Off
        numbers.append(clip.index)
        return 7 + clip.index, made(clip, motion)

    with job.hold():
        job.fill(in_turn(make_clip), lambda made: None)
        job.join(Exactly(out), None)
    return numbers


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert make(the_job(folder), folder / "out.mp4") == [0, 1, 2, 3, 4]
    return digest(folder / "out.mp4")


def test_a_finished_job_has_nothing_left_to_make(tmp_path, whole):
    make(the_job(tmp_path), tmp_path / "out.mp4")
    assert make(the_job(tmp_path), tmp_path / "again.mp4") == []
    assert digest(tmp_path / "again.mp4") == digest(tmp_path / "out.mp4") == whole


@pytest.mark.parametrize("after", [1, 2, 4])
def test_only_what_is_missing_is_made(tmp_path, whole, after):
    with pytest.raises(Off):
        make(the_job(tmp_path), tmp_path / "out.mp4", clips=after)
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == list(range(after, 5))
    assert digest(tmp_path / "out.mp4") == whole


def test_wherever_the_machine_goes_off_the_job_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch):
    """Before every single call that makes something last: fsync and rename."""
    calls = {"left": -1}
    real = {"fsync": os.fsync, "replace": os.replace}

    def counted(name):
        def call(*arguments):
            if calls["left"] == 0:
                raise Off
            calls["left"] -= 1
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(jobs.os, name, counted(name))
    moments = 0
    while True:
        folder = tmp_path / str(moments)
        folder.mkdir()
        calls["left"] = moments
        try:
            make(the_job(folder), folder / "out.mp4")
        except Off:
            calls["left"] = -1
            make(the_job(folder), folder / "out.mp4")
            assert digest(folder / "out.mp4") == whole, moments
            moments += 1
        else:
            break
    assert moments > 30


@pytest.mark.parametrize("kept", range(0, 300, 23))
def test_a_line_that_was_half_written_is_as_if_it_were_not(tmp_path, whole, kept):
    make(the_job(tmp_path), tmp_path / "out.mp4")
    manifest = tmp_path / "job" / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:kept])
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == [1, 2, 3, 4], "from the first clip's motion frames, which stay"
    assert digest(tmp_path / "out.mp4") == whole
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == []


def damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("change", [damage, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("clip", [0, 2, 4])
def test_a_segment_that_was_changed_is_named_and_made_again(tmp_path, whole, caplog, change, clip):
    make(the_job(tmp_path), tmp_path / "out.mp4")
    change(tmp_path / "job" / f"clip_{clip:05}.mp4")
    with caplog.at_level(logging.WARNING):
        again = make(the_job(tmp_path), tmp_path / "out.mp4")
    assert again == list(range(0 if clip == 0 else 1, clip + 1))
    assert f"clip_{clip:05}.mp4 is missing or was changed" in caplog.text
    assert digest(tmp_path / "out.mp4") == whole


def test_changed_motion_frames_are_not_trusted(tmp_path, whole, caplog):
    with pytest.raises(Off):
        make(the_job(tmp_path), tmp_path / "out.mp4", clips=3)
    damage(tmp_path / "job" / "clip_00002_motion.npy")
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == [1, 2, 3, 4]
    assert "clip_00002_motion.npy is missing or was changed" in caplog.text
    assert digest(tmp_path / "out.mp4") == whole


def test_a_foreign_manifest_is_not_trusted(tmp_path, whole, caplog):
    make(the_job(tmp_path, key="b"), tmp_path / "out.mp4")
    assert make(the_job(tmp_path, key="a"), tmp_path / "out.mp4") == [0, 1, 2, 3, 4]
    assert "is not this video's" in caplog.text
    (tmp_path / "job" / MANIFEST).write_bytes(b"\x00\xff garbage")
    assert make(the_job(tmp_path, key="a"), tmp_path / "out.mp4") == [0, 1, 2, 3, 4]
    assert digest(tmp_path / "out.mp4") == whole


def test_a_line_that_was_changed_is_named_and_the_others_count(tmp_path, whole, caplog):
    make(the_job(tmp_path), tmp_path / "out.mp4")
    manifest = tmp_path / "job" / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    lines[2] = b"\xff" + lines[2][1:]
    manifest.write_bytes(b"".join(lines))
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == [1]
    assert "was changed; its clip is made again" in caplog.text and digest(tmp_path / "out.mp4") == whole


def test_a_join_that_fails_leaves_nothing_behind(tmp_path, whole, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as changed:
        changed.setattr(jobs, "join_segments", full)
        with pytest.raises(JobError, match="is full"):
            make(the_job(tmp_path), tmp_path / "out.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["job"]
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == [] and digest(tmp_path / "out.mp4") == whole


@pytest.mark.parametrize(("code", "advice"), [(errno.EMFILE, "Mend that"), (errno.EROFS, "Make it writable"), (errno.EACCES, "Make it")])
def test_what_the_disk_refuses_is_told_with_what_to_do(tmp_path, monkeypatch, code, advice):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(jobs, "write_segment", refused)
    with pytest.raises(JobError, match=rf"\({os.strerror(code)}\)\. {advice}"):
        make(the_job(tmp_path), tmp_path / "out.mp4")


def test_motion_frames_are_kept_of_the_last_clip_and_of_anchors(tmp_path):
    job = the_job(tmp_path, frames=13 + 8 * (2 * ANCHOR + 2))
    make(job, tmp_path / "out.mp4")
    kept = sorted(int(file.name[5:10]) for file in (tmp_path / "job").glob("*_motion.npy"))
    assert kept == [0, ANCHOR, 2 * ANCHOR, 2 * ANCHOR + 2]
    before = digest(tmp_path / "out.mp4")
    damage(tmp_path / "job" / f"clip_{ANCHOR + 3:05}.mp4")
    assert make(job, tmp_path / "out.mp4") == [ANCHOR + 1, ANCHOR + 2, ANCHOR + 3]
    assert digest(tmp_path / "out.mp4") == before


def test_a_new_shot_begins_without_motion_frames(tmp_path):
    shots = [plan_clips(21, 13, OVERLAP), plan_clips(30, 13, OVERLAP)]
    plan = [replace(clip, index=i) for i, clip in enumerate(clip for shot in shots for clip in shot)]
    job = Job(tmp_path / "job", "a", plan, CODEC, 18)
    make(job, tmp_path / "out.mp4")
    before = digest(tmp_path / "out.mp4")
    assert len([*read_frames(tmp_path / "out.mp4")]) == 51
    damage(tmp_path / "job" / "clip_00003.mp4")
    assert make(job, tmp_path / "out.mp4") == [2, 3], "from the beginning of its shot"
    assert digest(tmp_path / "out.mp4") == before


def test_motion_frames_come_back_as_they_were_handed_on(tmp_path):
    job, handed, frames = the_job(tmp_path), {}, {}

    def make_clip(clip, motion):
        handed[clip.index], frames[clip.index] = motion, made(clip, motion)
        if clip.index == 2:
            raise Off
        return 7, frames[clip.index]

    with pytest.raises(Off), job.hold():
        job.fill(in_turn(make_clip), lambda made: None)
    assert (handed[2] - frames[1][-OVERLAP:]).abs().max() <= 0.5 / 65535 + 1e-7
    with job.hold():
        assert torch.equal(job.beginning_for(2)[1], handed[2])
    assert (tmp_path / "job" / "clip_00001_motion.npy").stat().st_size - 128 == motion_bytes(OVERLAP, SIDE, SIDE)


def test_a_clip_is_stored_while_the_next_one_is_made(tmp_path, whole, monkeypatch):
    """Storing waits until the next clip is being made."""
    begun, written = [threading.Event() for _ in range(6)], jobs.write_segment
    begun[5].set()  # after the last clip there is none

    def write(path, *given):
        assert begun[int(path.name[13:18]) + 1].wait(60)
        written(path, *given)

    def make_clip(clip, motion):
        begun[clip.index].set()
        return 7 + clip.index, made(clip, motion)

    monkeypatch.setattr(jobs, "write_segment", write)
    job = the_job(tmp_path)
    with job.hold():
        job.fill(in_turn(make_clip), lambda made: None)
        job.join(Exactly(tmp_path / "out.mp4"), None)
    assert digest(tmp_path / "out.mp4") == whole


def test_a_clip_that_cannot_be_stored_stops_the_next_one_when_it_asks(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def make_clip(clip, motion):
        for _ in range(1000 if clip.index else 0):
            job.check_storing()
            time.sleep(0.01)
        return 7, made(clip, motion)

    monkeypatch.setattr(jobs, "write_segment", full)
    job = the_job(tmp_path)
    with pytest.raises(JobError, match="is full"), job.hold():
        job.fill(in_turn(make_clip), lambda made: pytest.fail("made") if made.clip.index else None)


def test_who_interrupts_is_told_of_a_clip_that_could_not_be_stored(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "write_segment", full)
    with caplog.at_level(logging.WARNING), pytest.raises(Off):
        make(the_job(tmp_path), tmp_path / "out.mp4", clips=1)
    assert "the clip before is not stored" in caplog.text and "is full" in caplog.text


def test_a_clip_that_was_made_is_stored_though_the_next_is_interrupted(tmp_path, monkeypatch):
    written = jobs.write_segment
    monkeypatch.setattr(jobs, "write_segment", lambda *given: (time.sleep(0.3), written(*given)))
    with pytest.raises(Off):
        make(the_job(tmp_path), tmp_path / "out.mp4", clips=2)
    with the_job(tmp_path).hold() as job:
        assert job.first_missing() == 2


HOLDER = """
import runpy, sys
runpy.run_path(sys.argv[1])["register_pack"]()
from pathlib import Path
from multitalk_nodes.multitalk_core.video.job import Job
from multitalk_nodes.multitalk_core.video.segments import CODECS, read_frames
with Job(Path(sys.argv[2]), "a", [], CODECS["h264"], 18).hold():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_told_and_a_killed_one_holds_nothing(tmp_path):
    program = [sys.executable, "-c", HOLDER, str(ROOT / "tools" / "launch.py"), str(tmp_path / "job")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(JobBusyError, match="Another ComfyUI is making this video"), the_job(tmp_path).hold():
            pass
        holder.kill()
        holder.wait()
        with the_job(tmp_path).hold() as job:
            assert job.first_missing() == 0


def test_a_disk_without_space_is_told_before(tmp_path):
    with the_job(tmp_path).hold() as job:
        job.check_space(0)
        with pytest.raises(JobError, match=r"has \d+ MB left, and this video needs about \d+ MB more"):
            job.check_space(2**60)


def test_a_disk_that_is_full_is_told_and_what_is_finished_stays(tmp_path, whole, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Off):
        make(the_job(tmp_path), tmp_path / "out.mp4", clips=2)
    with monkeypatch.context() as changed:
        changed.setattr(jobs, "write_segment", full)
        with pytest.raises(JobError, match=r"is full\. Free some space and queue again"):
            make(the_job(tmp_path), tmp_path / "out.mp4")
    assert make(the_job(tmp_path), tmp_path / "out.mp4") == [2, 3, 4]
    assert digest(tmp_path / "out.mp4") == whole


def test_a_place_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "job").write_text("a file")
    with pytest.raises(JobError, match=r"job cannot be used \(.*\)\. Make it writable"), the_job(tmp_path).hold():
        pass


def test_a_removed_job_leaves_nothing(tmp_path):
    job = the_job(tmp_path)
    make(job, tmp_path / "out.mp4")
    with job.hold():
        job.remove()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_motion_frames_lie_the_same_way_whether_they_were_made_or_read(tmp_path):
    """In planes, as a VAE decodes them, they would make a GPU choose other kernels than those that are read from the disk."""

    def in_planes(clip, motion):
        given.append(motion)
        frames = made(clip, motion).movedim(-1, 1).contiguous().movedim(1, -1)
        if len(given) == 3:
            raise Off
        return 0, frames

    given = []
    with the_job(tmp_path).hold() as job, pytest.raises(Off):
        job.fill(in_turn(in_planes), lambda made: None)
    first, stored = given[1], given[2]
    with the_job(tmp_path).hold() as job, pytest.raises(Off):
        given[:] = [None, None]
        job.fill(in_turn(in_planes), lambda made: None)
    read = given[2]
    assert torch.equal(read, stored)
    assert read.stride() == stored.stride() == first.stride() and read.is_contiguous()
