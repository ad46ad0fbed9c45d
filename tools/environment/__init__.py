"""The development environment: a ComfyUI, a virtual environment for it, and what `python dev.py doctor` says about both."""
