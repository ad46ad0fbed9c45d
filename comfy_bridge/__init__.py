"""Where ComfyUI meets the core: weights as ModelPatchers, patches on its WAN model, the guider, and the loop's backend."""
