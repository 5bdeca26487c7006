"""An opened picture: its pixels, and how a sidecar names it. Opening decodes it, once for a request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.files import sha256
from pusa.media.images import read_image, to_rgb


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: uint8 [H, W, 3]. record: its entry in a sidecar. label: its name in messages."""

    pixels: NDArray[np.uint8]
    record: dict[str, Any]
    label: str


def open_picture(src: str | Path | PILImage.Image | NDArray[np.uint8] | Picture) -> Picture:
    """Decode a picture; one that is open already is returned. Raises InputError for what is not a picture."""
    if isinstance(src, Picture):
        return src
    if isinstance(src, (str, Path)):
        return Picture(read_image(src), file_record(Path(src)), str(src))
    if isinstance(src, PILImage.Image):
        try:
            pixels = to_rgb(src)
        except InputError as error:
            raise InputError(f"The given picture {error}.") from error
        return Picture(pixels, array_record(pixels), "the given picture")
    pixels = np.asarray(src)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(f"A picture must be uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}.")
    return Picture(pixels, array_record(pixels), "the given picture")


def file_record(path: Path) -> dict[str, Any]:
    """How a sidecar names a file."""
    return {"path": str(path.resolve()), "sha256": sha256(path)}


def array_record(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """How a sidecar names pixels that came from no file."""
    return {"path": None, "sha256": hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()}
