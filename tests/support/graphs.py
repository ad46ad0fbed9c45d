"""API-format graphs for tests over a real server: the demo workflow at its smallest, with parts exchanged."""

import copy
import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "demo" / "samples"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


class Graph(dict):
    """A prompt by titles: `graph["clip"]["inputs"]["frames"] = 9`. Links are [title, output]."""

    def __init__(self, speakers=1, frames=5, steps=1):
        two = speakers == 2
        super().__init__(
            demo=node("MultiTalkDemoModel", family="multitalk"),
            image=node("LoadImage", image="two_faces_small.png" if two else "face_small.png"),
            audio_1=audio("voice_1.wav"),
            speaker_1=node("MultiTalkSpeaker", audio=["audio_1", 0], box="", start=-1.0, role="speaks"),
            voices=node(
                "MultiTalkWav2VecEmbeds",
                audio_encoder=["demo", 3],
                layout="sequential",
                level=True,
                **{"speakers.speaker_0": ["speaker_1", 0]},
            ),
            clip=node(
                "MultiTalkConditioning",
                model=["demo", 0],
                weights=["demo", 1],
                voices=["voices", 0],
                image=["image", 0],
                vae=["demo", 2],
                positive=["demo", 4],
                negative=["demo", 4],
                width=0,
                height=0,
                frames=frames,
            ),
            sample=node(
                "MultiTalkSampler",
                model=["clip", 0],
                positive=["clip", 1],
                negative=["clip", 2],
                latent=["clip", 3],
                seed=1,
                steps=steps,
                shift=3.0,
                text_scale=1.0,
                audio_scale=1.0,
                sampler_name="euler",
                apg=False,
                apg_momentum=-0.75,
                apg_threshold=55.0,
            ),
            decode=node("MultiTalkDecode", samples=["sample", 0], vae=["demo", 2], voices=["voices", 0], colour=1.0),
            video=node("CreateVideo", images=["decode", 0], audio=["decode", 1], fps=["decode", 2]),
            save=node("SaveVideo", video=["video", 0], filename_prefix="test", format="mp4", codec="h264"),
        )
        if two:
            self.add_speaker(2, "voice_2.wav")

    def add_speaker(self, number, file=None, **changes):
        inputs = {"box": "", "start": -1.0, "role": "speaks", **changes}
        if file:
            self[f"audio_{number}"] = audio(file)
            inputs["audio"] = [f"audio_{number}", 0]
        self[f"speaker_{number}"] = node("MultiTalkSpeaker", **inputs)
        self["voices"]["inputs"][f"speakers.speaker_{number - 1}"] = [f"speaker_{number}", 0]
        return self

    def set(self, title, **inputs):
        self[title]["inputs"].update(inputs)
        return self

    def prompt(self):
        return copy.deepcopy(dict(self))


def audio(file):
    return node("MultiTalkLoadAudio", audio=file, start=0.0, duration=0.0, channel="all")


def workflow(name):
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def video_of(server, graph):
    """Run a graph to its end and open the saved file."""
    files = server.files(server.run(graph.prompt() if isinstance(graph, Graph) else graph))
    return Probe(next(file for file in files if file.suffix == ".mp4"))


def content(file):
    """Checksum of what is seen and heard: a file also holds the graph that made it, with all its names."""
    import av

    with av.open(str(file)) as container:
        return hashlib.sha256(b"".join(bytes(packet) for packet in container.demux())).hexdigest()


class Probe:
    """A finished file, decoded: what a player would see and hear."""

    def __init__(self, path):
        import av
        import numpy as np

        self.path = path
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.fps = float(stream.average_rate)
            self.frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        with av.open(str(path)) as container:
            self.audio = container.streams.audio[0] if container.streams.audio else None
            decoded = [frame.to_ndarray() for frame in container.decode(self.audio)] if self.audio else []
            self.channels = self.audio.codec_context.channels if self.audio else 0
            self.rate = self.audio.codec_context.sample_rate if self.audio else 0
            self.seconds = sum(part.shape[-1] for part in decoded) / self.rate if decoded else 0.0

    @property
    def count(self):
        return len(self.frames)

    def shows_something(self):
        """Not one constant picture: a frame has detail."""
        return self.count > 0 and self.frames[0].std() > 5
