"""Socket types of our own, where ComfyUI has none."""

from comfy_api.latest import io

SPEAKER = io.Custom("MULTITALK_SPEAKER")  # multitalk_core.people.speakers.Speaker
VOICES = io.Custom("MULTITALK_VOICES")  # multitalk_core.people.voices.Voices

CATEGORY = "MultiTalk"
