"""A client for ComfyUI's API queue: a picture and voices in, a talking video out, made by any ComfyUI that has the MultiTalk nodes.

    with Client("http://127.0.0.1:8188") as client:
        client.generate(Request(image="face.png", audio=["voice.wav"]), "talk.mp4")

Needs aiohttp, pydantic and tenacity; neither torch nor ComfyUI itself.
"""

from .client import AsyncClient, Made
from .errors import (
    BadRequest,
    ClientError,
    DeadlineExceeded,
    Forgotten,
    Interrupted,
    NodeFailed,
    NoVideo,
    Refused,
    Unreachable,
)
from .queue import Output, Progress, id_of
from .request import Request, Voice
from .sync import Client
from .templates import Template, templates

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Forgotten",
    "Interrupted",
    "Made",
    "NoVideo",
    "NodeFailed",
    "Output",
    "Progress",
    "Refused",
    "Request",
    "Template",
    "Unreachable",
    "Voice",
    "id_of",
    "templates",
]
