"""What the API says: the record of a video in OpenAI's form with more fields, and errors in OpenAI's envelope."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from pusa.serving.orders import seconds, with_sources
from pusa.serving.store import Video


class ApiError(Exception):
    """An answer that is an error.

    message: one sentence with the remedy. param: the field. code: a word for programs.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """The envelope."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param or None, "code": self.code}}


class ErrorDetail(BaseModel):
    """What is wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The envelope of an error."""

    error: ErrorDetail


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video, from its beginning in the queue to its end."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="percent")
    created_at: int = Field(description="seconds since 1970")
    completed_at: int | None
    expires_at: int | None
    seconds: str
    size: str
    prompt: str
    remixed_from_video_id: str | None
    error: VideoError | None
    task: Literal["generate", "extend", "transition"]
    num_frames: int
    fps: float
    seed: int
    num_inference_steps: int
    step: int = Field(description="the steps that are done")
    queue_position: int | None = Field(description="0 is next; null if it does not wait")
    eta_seconds: float | None = Field(description="until the last step, while it is in progress")
    attempts: int
    notes: list[str] = Field(description="what becomes of the sources, one sentence each")
    lora: list[dict[str, Any]]
    request: dict[str, Any] = Field(description="the request, its sources by name")
    sources: dict[str, Any] = Field(description="what the sources are, by name")


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Matrix(BaseModel):
    """A timestep matrix."""

    sigma: list[list[float]] = Field(description="rows: steps and the result; columns: latent frames")


class Checked(BaseModel):
    """What would be made."""

    ok: Literal[True] = True
    task: str
    size: str
    num_frames: int
    fps: float
    seconds: str
    num_inference_steps: int
    notes: list[str]
    matrix: Matrix


class ModelDefaults(BaseModel):
    """What a request gets that does not say it."""

    num_frames: int
    size: tuple[int, int]
    fps: float
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float


class ModelObject(BaseModel):
    """The model, and what it can make."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["pusa"] = "pusa"
    defaults: ModelDefaults
    frames_per_latent: int
    size_multiple: int
    longest: int
    loras: list[str]
    examples: list[str]


class ModelList(BaseModel):
    """The models of the server: one."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def video_object(row: Video, waiting: Sequence[int]) -> VideoObject:
    """The record of a video as the API says it. waiting: the numbers of all videos that wait, in order."""
    shown = row.shown
    return VideoObject(
        id=row.id,
        model=shown["model"],
        status=row.status,
        progress=row.progress,
        created_at=int(row.created_at),
        completed_at=None if row.completed_at is None else int(row.completed_at),
        expires_at=None if row.expires_at is None else int(row.expires_at),
        seconds=seconds(shown["frames"], shown["fps"]),
        size=f"{shown['width']}x{shown['height']}",
        prompt=shown["prompt"],
        remixed_from_video_id=shown.get("remixed_from"),
        error=None if row.error is None else VideoError(**row.error),
        task=shown["task"],
        num_frames=shown["frames"],
        fps=shown["fps"],
        seed=shown["seed"],
        num_inference_steps=shown["steps"],
        step=row.step,
        queue_position=bisect_left(waiting, row.number) if row.status == "queued" else None,
        eta_seconds=row.eta,
        attempts=row.attempts,
        notes=shown["notes"],
        lora=[{"name": name, "scale": scale} for name, scale in row.lora],
        request=with_sources(row.request, lambda name: {"source": name}),
        sources=row.sources,
    )
