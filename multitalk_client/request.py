"""What is asked for: the named fields that a template's graph gets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

MAX_SPEAKERS = 4

Side = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Voice(BaseModel):
    """Who says something, and where their face is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audio: Path
    box: tuple[Number, Number, Number, Number] | None = Field(
        None, description="the face: left, top, right, bottom in pixels of the picture"
    )
    mask: Path | None = Field(None, description="in place of a box: a picture that is white where the person is")
    start: Number | None = Field(None, ge=0, description="second at which the voice begins; else the layout says")
    duration: Number | None = Field(None, gt=0, description="seconds of it, at most; else the request's")

    @field_validator("box")
    @classmethod
    def _is_a_box(cls, box: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if box and not (box[2] > box[0] >= 0 and box[3] > box[1] >= 0):
            raise ValueError("right must be greater than left, and bottom greater than top, none of them below 0")
        return box


def _voice(given: Any) -> Any:
    return {"audio": given} if isinstance(given, (str, Path)) else given


def _voices(given: Any) -> Any:
    return [given] if isinstance(given, (str, Path, dict, Voice)) else given


class Request(BaseModel):
    """A talking video. What is not given stays as the template has it.

    Its files are read and sent to ComfyUI, so whoever can make a Request can make this program read them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Path | None = Field(None, description="a picture; or a video, whose people get new voices")
    video: Path | None = None
    audio: Annotated[
        tuple[Annotated[Voice, BeforeValidator(_voice)], ...], BeforeValidator(_voices), Field(min_length=1, max_length=MAX_SPEAKERS)
    ]
    layout: Literal["sequential", "parallel"] | None = Field(None, description="voices in turn, or at once")
    duration: Number | None = Field(None, gt=0, description="seconds of each voice, at most")
    prompt: str | None = None
    negative_prompt: str | None = None
    size: Literal["multitalk-480", "multitalk-720"] | None = Field(None, description="of a template that chooses width and height by it")
    width: Side | None = None
    height: Side | None = None
    frames: int | None = Field(None, ge=1, description="of a template that makes one clip: 4n + 1")
    seed: int | None = Field(None, ge=0, lt=2**64)
    steps: int | None = Field(None, ge=1, le=1000)
    shift: Number | None = Field(None, gt=0)
    text_scale: Number | None = Field(None, ge=0)
    audio_scale: Number | None = Field(None, ge=0)
    family: Literal["multitalk", "infinitetalk"] | None = None

    @property
    def files(self) -> list[Path]:
        """All files, each once."""
        pictures = [file for file in (self.image, self.video) if file]
        masks = [voice.mask for voice in self.audio if voice.mask]
        return list(dict.fromkeys([*pictures, *(voice.audio for voice in self.audio), *masks]))
