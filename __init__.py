"""MultiTalk for ComfyUI: an image and voices become a talking video.

ComfyUI finds `comfy_entrypoint` and WEB_DIRECTORY here; everything else is in nodes/, comfy_bridge/ and multitalk_core/.
NODE_CLASS_MAPPINGS must not be defined, not even empty, where the pack can run: ComfyUI would then ignore the entry point.
"""

import logging

from .comfy_bridge.host import unsupported

if reason := unsupported():  # before anything is imported that such a ComfyUI lacks
    logging.error(reason)
    NODE_CLASS_MAPPINGS = {}  # or ComfyUI would add that the pack has neither this nor an entry point
else:
    from .nodes.extension import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
