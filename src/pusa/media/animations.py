"""Write clips in other forms than video: an animated GIF or WebP, or a folder with a PNG for each frame."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.files import replacing
from pusa.media.images import Frames, check_frames, write_image

TICKS = {".gif": 100, ".webp": 1000}
"""{suffix: units of time per second}. A GIF can say when a frame begins to a hundredth of a second."""


def write_animation(path: str | Path, frames: Frames, fps: float) -> None:
    """Write uint8 RGB [N, H, W, 3] as an animated picture that repeats; the suffix .gif or .webp decides.

    WebP is lossless. GIF has 256 colours for each frame. The times at which frames begin are rounded, so that the whole
    lasts as long as the clip. Raises InputError for another suffix or a rate outside (0, 1000].
    """
    path = Path(path)
    check_frames(frames)
    if (ticks := TICKS.get(path.suffix.lower())) is None:
        raise InputError(f"cannot write an animation to {path}: its name must end in {' or '.join(TICKS)}")
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; give a rate above 0 and at most 1000")
    begins = [round(ticks * n / fps) for n in range(len(frames) + 1)]
    milliseconds = [1000 // ticks * (after - before) for before, after in pairwise(begins)]
    first, *others = (PILImage.fromarray(frame) for frame in frames)
    options: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    with replacing(path) as part:
        first.save(part, save_all=True, append_images=others, duration=milliseconds, loop=0, **options)


def write_frames(folder: Path, frames: Frames) -> None:
    """Write uint8 RGB [N, H, W, 3] as `0000.png`, `0001.png` … into an existing folder."""
    check_frames(frames)
    for path, frame in zip(frame_paths(folder, len(frames)), frames, strict=True):
        write_image(path, frame)


def frame_paths(folder: Path, count: int) -> Iterator[Path]:
    """Yield the names of the frames in a folder, in their order."""
    return (folder / f"{number:04d}.png" for number in range(count))
