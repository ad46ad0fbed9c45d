"""Weights, the picture's size, and the clip's conditioning."""

import torch
from comfy_api.latest import io

from ..comfy_bridge.clip import prepare_clip
from ..comfy_bridge.folders import weight_names, weight_path
from ..comfy_bridge.scene import Models, check_picture
from ..comfy_bridge.weights import MultiTalkWeights, load_weights
from ..multitalk_core.families import FAMILIES
from ..multitalk_core.sizes import BUCKETS, bucket, fit_picture, opaque
from . import inputs
from .base import Node
from .types import CATEGORY, VOICES

DTYPES = {"from file": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class MultiTalkModelLoader(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkModelLoader",
            display_name="MultiTalk Model Loader",
            category=CATEGORY,
            description="MultiTalk or InfiniteTalk audio weights, beside a WAN 2.1 image-to-video model.",
            search_aliases=["infinitetalk", "multitalk weights", "model patch"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=weight_names(),
                    tooltip="A safetensors or GGUF file in models/model_patches or models/diffusion_models.",
                ),
                io.Combo.Input(
                    "family",
                    options=["auto", *FAMILIES],
                    default="auto",
                    tooltip="Which rules the weights were trained for; both look the same. 'auto' goes by metadata, name and hash.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="from file",
                    advanced=True,
                    tooltip="Precision to keep the weights in. 'from file' keeps quantised ones packed.",
                ),
            ],
            outputs=[io.ModelPatch.Output(display_name="weights")],
        )

    @classmethod
    def execute(cls, model_name, family, dtype):
        return io.NodeOutput(load_weights(str(weight_path(model_name)), model_name, family, DTYPES[dtype]).patcher)


class MultiTalkImageSize(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkImageSize",
            display_name="MultiTalk Image Size",
            category=CATEGORY,
            description="The size among those the models were trained at that is nearest to the picture's shape.",
            search_aliases=["aspect ratio", "bucket", "resolution"],
            inputs=[
                io.Image.Input("image", tooltip="The original picture."),
                io.Combo.Input(
                    "size",
                    options=list(BUCKETS),
                    default="multitalk-480",
                    tooltip="multitalk-480: the area of 640×640. multitalk-720: of 960×960.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The picture as the model will see it; masks and boxes belong to the original."
                ),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
            ],
        )

    @classmethod
    def execute(cls, image, size):
        check_picture(image)
        height, width = bucket(image.shape[1], image.shape[2], size)
        return io.NodeOutput(fit_picture(opaque(image), height, width), width, height)


class MultiTalkConditioning(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MultiTalkConditioning",
            display_name="MultiTalk Conditioning",
            category=CATEGORY,
            description="Makes a WAN model listen: the picture, the voices, and who is where.",
            search_aliases=["multitalk", "infinitetalk to video", "talking video", "lip sync"],
            inputs=[
                io.Model.Input("model", tooltip="A WAN 2.1 image-to-video model, with whatever LoRAs."),
                io.ModelPatch.Input("weights", tooltip="From MultiTalk Model Loader."),
                VOICES.Input("voices", tooltip="From MultiTalk Wav2Vec2 Embeds."),
                io.Image.Input("image", tooltip="The original picture: masks and boxes are in its pixels. It is scaled and cropped here."),
                io.Vae.Input("vae", tooltip="wan_2.1_vae."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="clip_vision_h. The published models always have it."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output", optional=True, advanced=True, tooltip="In place of CLIP vision's own look at the picture."
                ),
                inputs.side("width"),
                inputs.side("height"),
                io.Int.Input(
                    "frames",
                    default=81,
                    min=1,
                    max=1001,
                    step=4,
                    tooltip="Length of the clip, 25 a second. The models were trained at 81; shorter voices are fine, the end is cut.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
            ],
        )

    @classmethod
    def execute(
        cls, model, weights, voices, image, vae, positive, negative, width, height, frames, clip_vision=None, clip_vision_output=None
    ):
        models = Models(model, MultiTalkWeights.of(weights), vae, positive, negative, clip_vision, clip_vision_output)
        clip = prepare_clip(models, voices, image, (width, height), frames)
        return io.NodeOutput(clip.model, clip.positive, clip.negative, clip.latent)


NODES = [MultiTalkModelLoader, MultiTalkImageSize, MultiTalkConditioning]
