"""What a user sees, one theme a file; each ends in its list of nodes."""

from . import audio, check, demo, interop, long_video, model, preset, sampling, seeing, speakers

NODES = [
    *audio.NODES,
    *speakers.NODES,
    *check.NODES,
    *seeing.NODES,
    *model.NODES,
    *preset.NODES,
    *sampling.NODES,
    *long_video.NODES,
    *demo.NODES,
    *interop.NODES,
]
