"""Read, resize, arrange and write pictures.

A picture is uint8 RGB [H, W, 3]; a clip is uint8 RGB [N, H, W, 3]. If a file is missing, truncated or of the wrong
kind, an `InputError` names it. Transparent pictures are put on white. Colours are those of sRGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pusa.errors import InputError
from pusa.files import existing_file, replacing, unreadable
from pusa.media import picture_files, tone_mapping
from pusa.media.orientation import exif_upright
from pusa.media.picture_colours import stated_hdr, to_srgb

Image = NDArray[np.uint8]
"""[H, W, 3], RGB"""
Frames = NDArray[np.uint8]
"""[N, H, W, 3], RGB"""
Fit = Literal["crop", "pad", "stretch"]

MAX_SIDE = 16_384
"""the largest width and height of a picture that is read, in pixels"""


def read_image(path: str | Path) -> Image:
    """Read one picture of any format that Pillow reads, and HEIF, in upright orientation, as uint8 RGB [H, W, 3].

    The content decides about the format, not the name. Pictures that belong to another one in the file are left out:
    thumbnails, gain maps, depth maps.
    Greyscale, palette, CMYK, 16-bit (scaled to 8 bits) and transparent pictures (put on white) are accepted. EXIF
    rotation is applied. Colour profiles are converted to sRGB. HDR is tone-mapped with a warning. Raises InputError if
    the file is not exactly one picture of at most 16,384 pixels a side.
    """
    path = existing_file(path)
    with picture_files.still(path) as picture:
        width, height = picture.size
        if max(width, height) > MAX_SIDE:
            raise InputError(
                f"{path} has {width} x {height} pixels; the limit is {MAX_SIDE} a side; scale it down first"
            )
        tone_mapping.tell(path, stated_hdr(picture))
        try:
            return to_rgb(picture)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:
            for other in picture_files.without_metadata(path):
                with suppress(Exception):
                    return to_rgb(other)
            raise unreadable(path, "picture", error) from error


def to_rgb(picture: PILImage.Image) -> Image:
    """Convert an opened Pillow picture to upright uint8 RGB [H, W, 3], by the rules of `read_image`."""
    if picture.format != "TIFF":  # of which Pillow reads metadata with the pixels
        picture.load()
    with picture_files.quiet():
        picture.load()
        picture = exif_upright(picture)
    if picture.mode == "F":
        raise InputError("the picture has floating-point pixels of unknown range; convert it to 8 or 16 bits")
    if picture.mode.startswith("I"):
        picture = _in_8_bits(picture)
    picture = to_srgb(picture)
    if picture.has_transparency_data and picture_files.OVER_WHITE not in picture.info:
        return over_white(np.asarray(picture.convert("RGBA")))
    return np.array(picture.convert("RGB"))


def _in_8_bits(picture: PILImage.Image) -> PILImage.Image:
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # in which Pillow's 32 bits hold 16
        raise InputError("the picture has signed or 32-bit pixels of unknown range; convert it to 8 or 16 bits")
    grey = np.asarray(picture).astype(np.int64)
    scaled = PILImage.fromarray(((grey + 128) // 257).astype(np.uint8))
    scaled.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return scaled


def fit(frames: NDArray[np.uint8], size: tuple[int, int], mode: Fit = "crop") -> NDArray[np.uint8]:
    """Resize a clip [N, H, W, 3] or a picture [H, W, 3] to `size` = (width, height) in pixels, with a Lanczos filter.

    mode: "crop" scales until the picture covers the size and keeps its centre; "pad" scales until the picture fits into
    the size and puts it on black; "stretch" scales each side independently. If the size is right already, the input is
    returned. Raises InputError for a size below 1 pixel or an unknown mode.
    """
    width, height = size
    if min(width, height) < 1:
        raise InputError(f"the size {width}x{height} has no pixels; give a width and a height of at least 1")
    if mode not in ("crop", "pad", "stretch"):
        raise InputError(f"the fit {mode!r} is unknown; choose crop, pad or stretch")
    clip = frames[None] if frames.ndim == 3 else frames
    check_frames(clip)
    old_height, old_width = clip.shape[1:3]
    if (old_width, old_height) == (width, height):
        return frames
    box = (0.0, 0.0, float(old_width), float(old_height))
    inner, corner = (width, height), (0, 0)
    if mode == "crop":
        scale = max(width / old_width, height / old_height)
        x, y = max(0.0, (old_width - width / scale) / 2), max(0.0, (old_height - height / scale) / 2)
        box = (x, y, old_width - x, old_height - y)
    elif mode == "pad":
        scale = min(width / old_width, height / old_height)
        inner = (max(1, round(old_width * scale)), max(1, round(old_height * scale)))
        corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    out = np.zeros((len(clip), height, width, 3), np.uint8)
    rows, columns = slice(corner[1], corner[1] + inner[1]), slice(corner[0], corner[0] + inner[0])
    for source, target in zip(clip, out, strict=True):
        scaled = PILImage.fromarray(source).resize(inner, PILImage.Resampling.LANCZOS, box=box)
        target[rows, columns] = np.asarray(scaled)
    return out[0] if frames.ndim == 3 else out


def contact_sheet(
    frames: Frames | Sequence[Image], columns: int | None = None, labels: bool | Sequence[str] = False, gap: int = 2
) -> Image:
    """Arrange frames of one size in rows on white, `gap` pixels apart; nearly square, unless `columns` is given.

    labels: the text above each frame: its number (True), or one string per frame. If the next labels in the row are
    empty, a text extends over their frames. Raises InputError if there are no frames, no columns, or not one label per
    frame.
    """
    clip = np.stack(list(frames)) if len(frames) else np.zeros((0, 1, 1, 3), np.uint8)
    check_frames(clip)
    count, height, width = clip.shape[:3]
    if columns is not None and columns < 1:
        raise InputError(f"columns is {columns}; a contact sheet needs at least 1")
    texts = [str(i) for i in range(count)] if labels is True else list(labels or ())
    if texts and len(texts) != count:
        raise InputError(f"{len(texts)} labels for {count} frames; give one label per frame")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    strip = 13 if texts else 0
    cell_width, cell_height = width + gap, height + strip + gap
    rows = math.ceil(count / columns)
    sheet = np.full((rows * cell_height + gap, columns * cell_width + gap, 3), 255, np.uint8)
    corners = [(gap + i // columns * cell_height, gap + i % columns * cell_width) for i in range(count)]
    for i, text in enumerate(texts):
        if not text:
            continue
        (y, x), end = corners[i], i + 1
        while end < count and end % columns and not texts[end]:
            end += 1
        label = PILImage.new("RGB", (width + (end - i - 1) * cell_width, strip), "white")
        ImageDraw.Draw(label).text((1, 0), text, fill="black", font=ImageFont.load_default(10))
        sheet[y : y + strip, x : x + label.width] = np.asarray(label)
    for (y, x), frame in zip(corners, clip, strict=True):
        sheet[y + strip : y + strip + height, x : x + width] = frame
    return sheet


def write_image(path: str | Path, image: Image) -> None:
    """Write uint8 RGB [H, W, 3] as PNG, JPEG (quality 95) or WebP (lossless); the suffix decides."""
    path = Path(path)
    check_frames(image[None])
    options: dict[str, dict[str, Any]] = {
        ".png": {},
        ".jpg": {"quality": 95},
        ".jpeg": {"quality": 95},
        ".webp": {"lossless": True},
    }
    if path.suffix.lower() not in options:
        raise InputError(f"cannot write a picture to {path}: its name must end in {', '.join(options)}")
    with replacing(path) as part:
        PILImage.fromarray(image).save(part, **options[path.suffix.lower()])


def over_white(rgba: NDArray[np.uint8]) -> Image:
    """Put a transparent picture on white: uint8 [H, W, 4] to [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.uint32)
    over = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def check_frames(frames: NDArray[Any]) -> None:
    """Raise InputError unless the array is uint8 [N, H, W, 3] and not empty."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InputError(
            f"frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [N, H, W, 3] and not empty"
        )
