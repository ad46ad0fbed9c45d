"""What a user sees, one theme a file; each ends in its list of nodes."""

from . import audio, check, demo, interop, long_video, model, models, preset, sampling, seeing, speakers

NODES = [
    *audio.NODES,
    *speakers.NODES,
    *check.NODES,
    *seeing.NODES,
    *model.NODES,
    *models.NODES,
    *preset.NODES,
    *sampling.NODES,
    *long_video.NODES,
    *demo.NODES,
    *interop.NODES,
]
