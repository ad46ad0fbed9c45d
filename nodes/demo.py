"""The embedded demo model: everything a graph needs, with no download."""

from pathlib import Path

from comfy_api.latest import io

from ..comfy_bridge.demo import load_demo
from ..multitalk_core.families import FAMILIES
from .base import Node
from .types import CATEGORY

WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"


class MultiTalkDemoModel(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkDemoModel",
            display_name="MultiTalk Demo Model",
            category=CATEGORY,
            description="A tiny trained WAN, MultiTalk, VAE and Wav2Vec2 (21 MB, in the pack): drawn faces talk on a bare CPU. "
            "Photographs it can only do crudely. It ignores prompts and needs no text encoder and no CLIP.",
            search_aliases=["tiny model", "example model", "test model"],
            inputs=[
                io.Combo.Input(
                    "family",
                    options=list(FAMILIES),
                    default="multitalk",
                    tooltip="Whose rules the clip follows; the weights serve both.",
                )
            ],
            outputs=[
                io.Model.Output(),
                io.ModelPatch.Output(display_name="weights"),
                io.Vae.Output(),
                io.AudioEncoder.Output(),
                io.Conditioning.Output(display_name="prompt", tooltip="An empty prompt, for positive and negative."),
            ],
        )

    @classmethod
    def execute(cls, family):
        demo = load_demo(WEIGHTS, FAMILIES[family])
        return io.NodeOutput(demo.model, demo.weights.patcher, demo.vae, demo.audio_encoder, demo.prompt)


NODES = [MultiTalkDemoModel]
