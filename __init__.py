"""MultiTalk for ComfyUI: an image and voices become a talking video.

ComfyUI finds `comfy_entrypoint` and WEB_DIRECTORY here; everything else is in nodes/, comfy_bridge/ and multitalk_core/.
NODE_CLASS_MAPPINGS must not be defined, not even empty: ComfyUI would then ignore the entry point.
"""

from comfy_api.latest import ComfyExtension, io

from .comfy_bridge.host import check_host
from .nodes import NODES

WEB_DIRECTORY = "./web"


class MultiTalkExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> MultiTalkExtension:
    check_host()
    return MultiTalkExtension()
