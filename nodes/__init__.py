"""The ComfyUI nodes, one module per topic. Every module ends with a NODES list."""

from . import audio, demo, interop, long_video, model, model_check, preset, preview, sampling, speakers, sync_check

NODES = [
    *audio.NODES,
    *speakers.NODES,
    *sync_check.NODES,
    *preview.NODES,
    *model.NODES,
    *model_check.NODES,
    *preset.NODES,
    *sampling.NODES,
    *long_video.NODES,
    *demo.NODES,
    *interop.NODES,
]
