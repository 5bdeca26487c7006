"""What a source of frames is before it is decoded, and what becomes of it in the new clip.

The program reads a clip at the model's rate, brings it to the size of the new clip, and drops its sound. `notes` says
so. It also says when a size or a length is far from the model's own, because the result is then poor and slow. Nothing
here imports torch or decodes more than a few frames.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from pusa.errors import InputError
from pusa.generation.outputs import latents_path
from pusa.generation.placement import check_overlap

FAR_SIZE = 4
"""A size is far from the model's own if it has more than this many times its pixels, or fewer than its share."""
FAR_LENGTH = 2
"""A length is far from the model's own if it has more than this many times its frames."""
Size = tuple[int, int]


class Limits(Protocol):
    """What a model can make, see `pusa.generation.limits.Limits`."""

    @property
    def source(self) -> str: ...
    @property
    def defaults(self) -> Any: ...
    @property
    def geometry(self) -> Any: ...
    @property
    def multiple(self) -> int: ...
    def check_size(self, size: Size | None) -> Size: ...


@dataclass(frozen=True)
class Footage:
    """A source of frames.

    Attributes:
        label: its name in messages.
        count: its frames at the model's rate; None if only the model can tell.
        size: (width, height) in pixels.
        stored, fps: the frames and the rate of its file; 0 for pixels in memory, which have the model's rate.
        every: whether every frame of its file is taken, one after the other, whatever its rate.
        sound: whether it has sound.
        own: whether it was generated, so that it may have latents. Its size was chosen before.
    """

    label: str
    count: int | None
    size: Size
    stored: int = 0
    fps: float = 0.0
    sound: bool = False
    own: bool = False
    every: bool = False

    def named(self, fps: float) -> str:
        """The label; with both numbers of frames, if the file has not the model's rate, which is `fps`."""
        if not self.fps or self.count in (None, self.stored):
            return self.label
        return f"{self.label} ({self.stored} frames at {self.fps:.4g} fps, read as {self.count} at {fps:g} fps)"


def footage(src: Any, fps: float | None) -> Footage:
    """Find out what a source has: a path, uint8 [N, H, W, 3], a generated clip, or an opened one.

    fps: the rate at which a file is read; None takes every frame. Raises InputError for a file that cannot be read or
    is too large, and for another array.
    """
    if isinstance(src, str | Path):
        path = Path(src)
        try:
            stat = path.stat()
        except (OSError, ValueError):
            found = _probed(path, 0, 0, fps)  # raises the error that says what is wrong
        else:
            found = _probed(path, stat.st_mtime_ns, stat.st_size, fps)
        if os.path.isfile(latents_path(path)):
            # Its latents have the rate at which they were made, whatever the model's rate is.
            return replace(found, own=True, count=found.count if found.count == found.stored else None)
        return replace(found, label=str(src))
    if hasattr(src, "count") and hasattr(src, "label"):
        return Footage(src.label, src.count, src.size, own=src.latents is not None)
    if hasattr(src, "frames") and hasattr(src, "recipe"):
        height, width = src.frames.shape[1:3]
        return Footage("the given clip", len(src.frames), (width, height), own=True)
    shape: tuple[int, ...] = getattr(src, "shape", ())
    if len(shape) != 4:
        raise InputError(f"A clip must be uint8 frames [N, H, W, 3], not {list(shape) or type(src).__name__}.")
    return Footage("the given clip", shape[0], (shape[2], shape[1]))


@lru_cache(maxsize=64)
def _probed(path: Path, changed: int, size: int, fps: float | None) -> Footage:
    """What is in a file. changed, size: of the file, so that a file that has changed is read again."""
    from pusa.media import video_probe, videos

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the clip warns as well
        info = video_probe.probe(path)
    if info.fps == 0:
        raise InputError(f"{path} has one frame only, but a clip is needed; give it as a picture.")
    stored = len(info.times)
    if stored * info.width * info.height * 3 > videos.MAX_CLIP_BYTES:
        raise videos.too_large(path)
    constant, own = videos.rate_of(info.times, info.fps)
    count = stored
    if fps is not None and not (constant and math.isclose(fps, own, rel_tol=1e-6)):
        count = int((info.times[-1] - info.times[0]) * fps + 1e-6) + 1
    return Footage(str(path), count, (info.width, info.height), stored, own, info.sound, every=fps is None)


def joined_size(wanted: Size | None, clips: Sequence[Any], overlap: int, limits: Limits) -> Size | None:
    """The size of an extension or transition: the wanted one, else that of the first clip; None is the model's own.

    Raises InputError if a clip has fewer frames than the overlap, or if the size of the first one is far from the
    model's own and was not asked for.
    """
    first, *_ = found = [footage(clip, limits.defaults.fps) for clip in clips]
    for one in found:
        if one.count is not None:
            check_overlap(one.named(limits.defaults.fps), one.count, overlap, limits.geometry)
    if wanted is not None or any(side % limits.multiple for side in first.size):
        return wanted
    ratio, own = _pixels(first.size, limits), limits.defaults.size
    if not first.own and _far(ratio):
        slow = f", so each step takes more than {ratio:.3g} times as long" if ratio > 1 else ""
        keep = ""
        with suppress(InputError):
            keep = f", or --size {_by(limits.check_size(first.size))} to keep the size of the clip all the same"
        raise InputError(
            f"{first.label} has {_by(first.size)} pixels, and {limits.source} is made for {_by(own)}{slow}: give "
            f"--size {_by(own)}{keep}."
        )
    return first.size


def joined_changes(clips: Sequence[tuple[Any, str]], size: Size, fit: str, limits: Limits) -> list[str]:
    """`changes` of the clips of an extension or transition.

    clips: each with the end at which frames are left out if they do not fill latent frames.
    """
    notes, geometry = [], limits.geometry
    for clip, cut in clips:
        found = footage(clip, limits.defaults.fps)
        extra = 0 if found.own or found.count is None else found.count - geometry.whole(found.count)
        left_out = (
            f"{extra} of its {found.count} frames, at its {cut}, {'is' if extra == 1 else 'are'} left out, because "
        )
        left_out += f"a clip has {geometry.form()}"
        notes += changes(found, size, fit, limits.defaults.fps, left_out if extra else "")
    return list(dict.fromkeys(notes))


def changes(found: Footage, size: Size, fit: str, fps: float, left_out: str = "") -> list[str]:
    """What becomes of a source, as at most one sentence. fps: the model's rate. left_out: further losses."""
    parts = []
    if found.fps and not math.isclose(found.fps, fps, rel_tol=1e-6) and found.count is not None:
        own = f"its {found.stored} frames at {found.fps:.4g} fps"
        how = "taken one after the other" if found.every else f"read as {found.count}"
        parts.append(f"{own} are {how} at {fps:g} fps, the model's rate")
    if found.size != size:
        parts.append(f"its {_by(found.size)} pixels become {_by(size)}{_lost(found.size, size, fit)}")
    if left_out:
        parts.append(left_out)
    if found.sound:
        parts.append("its sound is left out")
    return [f"{found.label}: {'; '.join(parts)}."] if parts else []


def crop_of_picture(label: str, old: Size, size: Size, fit: str) -> list[str]:
    """What is cut off from a picture, as at most one sentence."""
    lost = _lost(old, size, fit) if fit == "crop" else ""
    return [f"{label}: its {_by(old)} pixels become {_by(size)}{lost} (--fit pad keeps them)."] if lost else []


def strain(size: Size, frames: int, limits: Limits) -> list[str]:
    """A sentence for a size, and one for a length, that is far from the model's own."""
    found, own = [], limits.defaults
    if _far(ratio := _pixels(size, limits)):
        slow = f", and a step takes more than {ratio:.3g} times as long" if ratio > 1 else ""
        found.append(
            f"{_by(size)} is far from {_by(own.size)}, for which {limits.source} is made, so the pictures may fall "
            f"apart{slow}: --size {_by(own.size)} is its own."
        )
    if frames > FAR_LENGTH * own.frames:
        found.append(
            f"{frames} frames are {frames / own.frames:.2g} times the {own.frames} for which {limits.source} is made, "
            f"so the clip may repeat itself or fall apart: make {own.frames} frames, and extend the clip."
        )
    return found


def _pixels(size: Size, limits: Limits) -> float:
    own: Size = limits.defaults.size
    return math.prod(size) / math.prod(own)


def _far(ratio: float) -> bool:
    return not 1 / FAR_SIZE <= ratio <= FAR_SIZE


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _lost(old: Size, new: Size, fit: str) -> str:
    """What `images.fit` does to another aspect ratio, in words; "" if the ratio is the same to half a pixel."""
    scale = max(new[0] / old[0], new[1] / old[1])
    columns, rows = (round((before - after / scale) / 2) for before, after in zip(old, new, strict=True))
    if columns < 1 and rows < 1:
        return ""
    if fit == "pad":
        return ", with black bars"
    if fit == "stretch":
        return ", and are stretched"
    return (
        f", without {columns} columns at each side" if columns else f", without {rows} rows at the top and the bottom"
    )
