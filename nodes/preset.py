"""Settings that go together."""

from comfy_api.latest import io

from ..multitalk_core.presets import PRESETS, SHIFTS
from .base import Node
from .types import CATEGORY


class MultiTalkPreset(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkPreset",
            display_name="MultiTalk Preset",
            category=CATEGORY,
            description="Steps, shift and scales that go together, each with its source: quality, balanced, turbo, draft.",
            search_aliases=["turbo", "settings", "lightx2v", "fusionx", "distilled"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="quality",
                    tooltip="quality: as published. balanced: with a step cache. turbo: with a distilled LoRA. draft: ten steps.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(SHIFTS),
                    default="multitalk-480",
                    tooltip="The size class of the video, as in MultiTalk Image Size.",
                ),
            ],
            outputs=[
                io.Int.Output(display_name="steps"),
                io.Float.Output(display_name="shift"),
                io.Float.Output(display_name="text_scale"),
                io.Float.Output(display_name="audio_scale"),
                io.Float.Output(display_name="cache", tooltip="Threshold for MultiTalk Step Cache; 0 is none."),
                io.String.Output(display_name="sources", tooltip="Where each number comes from, and the LoRA that they are for."),
            ],
        )

    @classmethod
    def execute(cls, preset, size):
        chosen = PRESETS[preset]
        scales = chosen.text_scale.value, chosen.audio_scale.value, chosen.cache.value
        return io.NodeOutput(int(chosen.steps.value), chosen.shift_for(size).value, *scales, chosen.explain(size))


NODES = [MultiTalkPreset]
