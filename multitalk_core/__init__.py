"""What MultiTalk and InfiniteTalk compute, in torch alone: no ComfyUI, no files of models, no global state."""
