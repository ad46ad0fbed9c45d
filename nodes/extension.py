"""What ComfyUI asks for the nodes."""

from comfy_api.latest import ComfyExtension, io

from . import NODES


class MultiTalkExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> MultiTalkExtension:
    return MultiTalkExtension()
