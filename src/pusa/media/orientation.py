"""Turn and mirror pictures as their metadata states: EXIF orientations, and the display matrices of videos."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image as PILImage

Matrix = tuple[int, int, int, int]
"""The entries a, b, c, d of a display matrix: the pixel (x, y) is shown at (a x + c y, b x + d y)."""

_EXIF_ORIENTATION = 0x0112
_EXIF = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


def exif_upright(picture: PILImage.Image) -> PILImage.Image:
    """Apply the EXIF orientation of a picture. Broken EXIF data count as no orientation."""
    stated = _orientation(picture)
    return picture.transpose(_EXIF[stated]) if stated in _EXIF else picture


def shown_size(picture: PILImage.Image) -> tuple[int, int]:
    """The width and height of a picture in upright orientation. Its pixels are not decoded."""
    width, height = picture.size
    return (height, width) if _orientation(picture) in _ON_ITS_SIDE else (width, height)


def _orientation(picture: PILImage.Image) -> Any:
    try:
        return picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises errors of many types for broken metadata
        return None


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """The display matrix of a decoded frame; None if it has none."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    values = np.frombuffer(bytes(data), np.int32)
    return (int(values[0]), int(values[1]), int(values[3]), int(values[4])) if len(values) == 9 else None


def turned(picture: NDArray[np.uint8], matrix: Matrix | None) -> NDArray[np.uint8]:
    """Show a picture [H, W, 3] as the matrix states, by the rules of `ffmpeg` (autorotate).

    Quarter turns and mirrors are exact. Another angle turns the picture within its size, on black.
    """
    if matrix is None:
        return picture
    a, b, c, d = matrix
    width, height = math.hypot(a, c), math.hypot(b, d)
    if not (width and height):
        return picture
    degrees = round(math.degrees(math.atan2(b / height, a / width))) % 360  # clockwise
    if degrees in (90, 270):
        quarter = np.rot90(picture, -1 if degrees == 90 else 1)
        mirrored = c > 0 if degrees == 90 else c < 0
        return quarter[:, ::-1] if mirrored else quarter
    if degrees == 180:
        picture = picture[:, ::-1] if a < 0 else picture
        return picture[::-1] if d < 0 else picture
    if degrees:
        return _rotated(picture, degrees)
    return picture[::-1] if d < 0 else picture


def _rotated(picture: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
    """Turn a picture [H, W, 3] clockwise within its size, on black, with FFmpeg's filter."""
    graph, frame = Graph(), VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    graph.link_nodes(source, graph.add("rotate", f"{degrees}*PI/180"), graph.add("buffersink")).configure()
    frame.pts, frame.time_base = 0, Fraction(1)
    graph.vpush(frame)
    return np.asarray(graph.vpull().to_ndarray(format="rgb24"), np.uint8)
