"""Whether everything is there to begin with."""

import json
import time

from comfy_api.latest import io, ui

from ..comfy_bridge.diagnosis import diagnose, model_places
from ..comfy_bridge.progress import interruptible_bar
from ..multitalk_core.sizes import BUCKETS
from ..multitalk_core.upkeep.check import check_models
from ..multitalk_core.upkeep.machine import as_text
from .base import Node
from .types import CATEGORY


class MultiTalkModelCheck(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkModelCheck",
            display_name="MultiTalk Model Check",
            category=CATEGORY,
            description="Which model files are there, wrong, incomplete or missing, and which to get; and whether this ComfyUI and this "
            "machine are up to it.",
            search_aliases=["doctor", "diagnosis", "missing models", "checksum", "system info"],
            inputs=[
                io.Boolean.Input(
                    "deep",
                    default=False,
                    tooltip="Compare the contents with the published files' SHA-256. Reads every byte: minutes for large files.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(BUCKETS),
                    default="multitalk-480",
                    advanced=True,
                    tooltip="Of the video that memory is computed for.",
                ),
                io.Float.Input("seconds", default=10.0, min=0.1, max=36000.0, step=0.1, advanced=True, tooltip="And its length."),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="A line a file, and what to do."),
                io.String.Output(display_name="json", tooltip="The same in the field names of the worker's answers."),
                io.String.Output(display_name="diagnostics", tooltip="Versions, device, attention, memory, and what to change."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return time.time()  # files come and go

    @classmethod
    def execute(cls, deep, size, seconds):
        checked = check_models(model_places(), deep, interruptible_bar() if deep else None, from_comfy=True)
        facts = as_text(diagnose(checked, size, seconds))
        text = json.dumps(checked.as_json())
        return io.NodeOutput(checked.table(), text, facts, ui=ui.PreviewText(f"{checked.table()}\n\n{facts}"))


NODES = [MultiTalkModelCheck]
