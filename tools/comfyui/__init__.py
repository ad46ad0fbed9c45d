"""A ComfyUI process with the pack in it, and what runs on one: the demo and the local worker."""
