"""What a user sees, one theme a file; each ends in its list of nodes."""

from . import audio, demo, long_video, model, sampling

NODES = [*audio.NODES, *model.NODES, *sampling.NODES, *long_video.NODES, *demo.NODES]
