"""What the fake server knows of orders: their fields, their checks, and clips that are drawn in place of made ones."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request

FPS, GROUP, STEPS, FRAMES, SIZE = 8, 4, 10, 17, (64, 64)
MODEL = {
    "id": "tiny",
    "object": "model",
    "created": 0,
    "owned_by": "pusa",
    "defaults": {
        "num_frames": FRAMES,
        "size": SIZE,
        "fps": FPS,
        "num_inference_steps": STEPS,
        "guidance_scale": 2.0,
        "flow_shift": 3.0,
    },
    "frames_per_latent": GROUP,
    "size_multiple": 16,
    "longest": 65,
    "loras": [],
    "examples": [
        "a red circle moves left on a black background",
        "a green circle moves right on a white background",
        "the camera zooms in over a photograph",
    ],
}


Files = dict[str, tuple[bytes, str, str]]
"""the files of a form by name: (bytes, media type, file name)"""


class Refused(Exception):
    """A request that the server does not take. param: the field."""

    def __init__(self, message: str, param: str | None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass
class Job:
    """A clip, and what it was made from: {name: (bytes, media type)}."""

    video: dict[str, Any]
    sources: dict[str, tuple[bytes, str]]
    sigma: list[list[float]]
    folder: Path
    cancelled: bool = False

    @property
    def path(self) -> Path:
        return self.folder / f"{self.video['id']}.mp4"


async def read_body(request: Request) -> tuple[dict[str, Any], Files]:
    """The fields of a request, and the files of its form: {name: (bytes, media type, file name)}."""
    if request.headers.get("content-type", "").startswith("application/json"):
        return await request.json(), {}
    fields: dict[str, Any] = {}
    files: Files = {}
    async with request.form() as form:
        for name, value in form.items():
            if isinstance(value, UploadFile):
                files[name] = (await value.read(), value.content_type or "", value.filename or name)
            elif name in ("prompt", "negative_prompt", "model", "task", "size", "fit", "direction"):
                fields[name] = value
            else:
                fields[name] = json.loads(value)
    return fields, files


def checked(order: dict[str, Any], files: Files) -> tuple[dict[str, Any], list[list[float]]]:
    """What is said of a clip, and its matrix. Raises Refused, as for a picture that starts with "spoilt"."""
    spoilt = [name for name, (content, _, _) in files.items() if content.startswith(b"spoilt")]
    task, frames, steps = order.get("task", "generate"), order.get("frames"), order.get("steps", STEPS)
    width, height = map(int, order.get("size", "64x64").split("x"))
    if width % 16 or height % 16:
        raise Refused(f"The size {width}x{height} cannot be made: both sides must be multiples of 16.", "size")
    if not 1 <= steps <= 1000:
        raise Refused(f"steps is {steps}: give a whole number from 1 to 1000.", "num_inference_steps")
    frames = frames or (FRAMES if task == "generate" else 12)
    if task == "generate" and frames % GROUP != 1:
        raise Refused(f"{frames} frames cannot be made, a clip has 4n+1 of them.", "frames")
    total = frames if task == "generate" else frames + FRAMES * (1 if task == "extend" else 2)
    column = [1 - step / steps for step in range(steps + 1)]
    levels = [1.0] * ((total - 1) // GROUP + 1)
    for one in order.get("conditions", []):
        if one["src"].get("part") in spoilt:
            raise Refused("conditions[0]: the file cannot be read: give another picture or video.", "conditions[0]")
        first = one.get("frame", one.get("at", 0))
        slot = (first + GROUP - 1) // GROUP
        if slot >= len(levels):
            raise Refused(f"Frame {first} is outside the clip of {total} frames: use a longer clip.", "conditions")
        noise = one.get("noise", 0)
        for i, level in enumerate(noise if isinstance(noise, list) else [noise]):
            levels[slot + i] = level
    sigma = [[level * x for level in levels] for x in column]
    notes = ["The size is far from the model's own, so the result may be poor."] if width * height > 16384 else []
    shown = {
        "num_frames": total,
        "size": f"{width}x{height}",
        "fps": float(FPS),
        "seconds": f"{total / FPS:.4g}",
        "num_inference_steps": steps,
        "notes": notes,
    }
    return shown, sigma


def stored(order: dict[str, Any], files: Files, jobs: dict[str, Job]) -> tuple[Any, Any, Any]:
    """The order with its sources by name, their bytes, and what they are."""
    sources: dict[str, tuple[bytes, str]] = {}
    about: dict[str, Any] = {}

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        if not isinstance(value, dict):
            return value
        if not ({"part", "video", "of"} & set(value)):
            return {key: named(one) for key, one in value.items()}
        name = f"source_{len(sources)}"
        if "part" in value:
            content, kind, filename = files[value["part"]]
            about[name] = {"filename": filename, "kind": kind.partition("/")[0]}
        elif "of" in value:
            content, kind = jobs[value["of"]].sources[value["source"]]
            about[name] = jobs[value["of"]].video["sources"][value["source"]]
        else:
            job = jobs[value["video"]]
            content, kind = job.path.read_bytes(), "video/mp4"
            frames = job.video["num_frames"]
            made = {"filename": value["video"], "video": value["video"], "frames": frames, "fps": FPS}
            about[name] = {"kind": "video", **made}
            if "frame" in value:
                content, kind = thumbnail(job.video), "image/webp"
        sources[name] = (content, kind)
        return {"source": name}

    stored = {key: named(value) for key, value in order.items() if key != "model"}
    return stored, sources, about


def drawn(video: dict[str, Any], count: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A disc that moves over a colour of the seed: uint8 [N, H, W, 3]."""
    width, height = map(int, video["size"].split("x"))
    number = count or video["num_frames"]
    colour = np.random.default_rng(video["seed"]).integers(60, 200, 3)
    y, x = np.mgrid[:height, :width]
    frames = np.empty((number, height, width, 3), np.uint8)
    for i in range(number):
        centre = width * (0.2 + 0.6 * i / max(1, number - 1))
        disc = (x - centre) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
        frames[i] = np.where(disc[..., None], 245, colour)
    return frames


def thumbnail(video: dict[str, Any], noise: float = 0) -> bytes:
    frame = drawn(video, 3)[1].astype(float)
    noisy = (1 - noise) * frame + noise * np.random.default_rng(0).uniform(0, 255, frame.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.astype(np.uint8)).save(file, "webp")
    return file.getvalue()
