"""What is known beforehand: pictures and clips at given frames, turned into known latents.

A condition says where (a pixel frame, negative from the end, or a time such as "1.5s") and how noisy it stays: 0 keeps
it bit for bit, 1 ignores it. Resolving gives every touched latent slot one latent and one noise multiplier. Slot 0 is
frame 0 and slot k >= 1 is frames 4k-3 ... 4k, so:

* A picture at frame 0 is encoded alone, which is exactly its latent in any clip that begins with it. A picture at a
  later frame owns a whole four-frame slot: `single` puts the one-frame latent there, as the official code does;
  `repeat` puts the latent of four copies that follow a fifth. The copy, not the picture at frame 0, is the context,
  because what precedes a keyframe is nearer to the keyframe than to the clip's beginning.
* A clip at frame 0 is encoded as one video and needs 4n+1 frames. A clip further on must begin at a frame 4k-3 and have
  4n frames, so that groups of four stay groups; it is encoded behind the frames that precede it in its source (up to
  17; a copy of its first frame where none do), and the latents of that lead-in are dropped.
* A generated clip, or its file, brings its latents. They are used as they are wherever its groups of four fall on
  slots: from its frame 4j on when placed at frame 0 (for j >= 1 the one-frame latent of slot 0 is encoded from its
  picture), from its frame 4j+1 on when placed further in. Elsewhere, and at another size, its frames are encoded anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor

from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip
from pusa.generation.clip_sources import Footage, array_record, file_record, open_footage
from pusa.images import Fit, Frames, fit, read_image, to_rgb
from pusa.models.wan import latents
from pusa.models.wan.latents import FRAMES_PER_SLOT, frames_of, latent_frames, slot_of

Encoding = Literal["single", "repeat"]
Picture = str | Path | PILImage.Image | NDArray[np.uint8]
Known = Mapping[int, tuple[Tensor, float]]
"""{latent slot: (latent float32 [1, C, 1, h, w], noise multiplier)}"""

DEFAULT_ENCODING: Encoding = "repeat"
LEAD_IN = 17
"""pixel frames, 4n+1: how far back the context of a clip reaches when its pixels are encoded"""


@dataclass(frozen=True)
class Image:
    """A picture at a pixel frame of the clip to make.

    src: a path, a PIL picture or uint8 [H, W, 3]. frame: 0, -1 for the last, or a time "1.5s". noise: in [0, 1].
    encoding: how it fills a four-frame slot (see the module); both ways are the same at frame 0.
    """

    src: Picture
    frame: int | str = 0
    noise: float = 0.0
    encoding: Encoding | None = None


@dataclass(frozen=True)
class Clip:
    """A stretch of video at a pixel frame of the clip to make.

    src: a path (read at the model's frame rate), uint8 [N, H, W, 3] at that rate, or a generated clip. at: where it
    begins. frames: how many frames of it are used, by default all from `start` on. start: the first one used, negative
    from its end. noise: in [0, 1], one number or one per latent slot.
    """

    src: str | Path | Frames | GeneratedClip | Footage
    at: int | str = 0
    frames: int | None = None
    noise: float | Sequence[float] = 0.0
    start: int | str = 0


@dataclass(frozen=True)
class Target:
    """What conditions are fitted to: pixel frames, (width, height), frame rate, and what happens to another shape."""

    frames: int
    size: tuple[int, int]
    fps: float
    fit: Fit
    vae: AutoencoderKLWan

    def encode(self, frames: Frames) -> Tensor:
        """Latents of frames of any size, float32 [1, C, F, h, w] on the CPU."""
        return latents.encode(self.vae, fit(frames, self.size, self.fit)).cpu()


@dataclass
class Placed:
    """A condition that has found its slots but is not encoded yet. record: what the recipe says about it."""

    label: str
    slots: range
    noise: Sequence[float]
    record: dict[str, Any]
    encode: Callable[[], Tensor]


def resolve(
    conditions: Sequence[Image | Clip], target: Target
) -> tuple[dict[int, tuple[Tensor, float]], list[dict[str, Any]]]:
    """Encode all conditions: ({latent slot: (latent, noise multiplier)}, their records for the recipe).

    Raises InputError for a frame outside the clip, frames that do not fill whole slots, two conditions on one slot,
    noise outside [0, 1] and sources that cannot be read; nothing is encoded before everything has been checked.
    """
    if isinstance(conditions, Image | Clip):
        raise InputError(f"The conditions are {type(conditions).__name__}(…): give a list of conditions.")
    placed = [place(condition, target) for condition in conditions]
    owners: dict[int, str] = {}
    for item in placed:
        for slot in item.slots:
            if slot in owners:
                held = frames_of(slot)
                span = f"frames {held[0]} to {held[-1]}" if len(held) > 1 else "frame 0"
                raise InputError(
                    f"{owners[slot]} and {item.label} fall into the same latent frame ({span}): keep one of them, or "
                    "give a clip instead."
                )
            owners[slot] = item.label
    known: dict[int, tuple[Tensor, float]] = {}
    for item in placed:
        encoded = item.encode()
        for i, slot in enumerate(item.slots):
            known[slot] = encoded[:, :, i : i + 1], item.noise[i]
    return known, [item.record for item in placed]


def place(condition: Image | Clip, target: Target) -> Placed:
    """Find a condition's slots and check everything about it; opens its source."""
    if isinstance(condition, Image):
        return _place_image(condition, target)
    if isinstance(condition, Clip):
        return _place_clip(condition, target)
    raise InputError(f"A condition is a pusa.Image or a pusa.Clip, not a {type(condition).__name__}.")


def frame_index(value: int | str, count: int, fps: float, what: str) -> int:
    """The pixel frame meant by a number, a number from the end or a time "1.5s", in a clip of `count` frames."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+|(\d+\.?\d*|\.\d+)s", text):
        raise InputError(f"{what}: {value!r} is no frame; give a number, -1 for the last, or a time such as '1.5s'.")
    frame = round(float(text[:-1]) * fps) if text.endswith("s") else int(text)
    if not -count <= frame < count:
        span = f"0 to {count - 1}, -{count} to -1, or 0s to {(count - 1) / fps:g}s"
        raise InputError(f"{what}: frame {value} is outside the clip, which has {count} frames: {span}.")
    return frame % count


def _check_noise(value: float, label: str) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{label}: noise {value} is outside 0 to 1; 0 keeps it exactly, 1 ignores it.")
    return float(value)


# ------------------------------------------------------------------------------------------------------------- pictures


def _place_image(condition: Image, target: Target) -> Placed:
    picture, source, name = _open_picture(condition.src)
    label = f"{name} at frame {condition.frame}"
    frame = frame_index(condition.frame, target.frames, target.fps, name)
    noise = _check_noise(condition.noise, label)
    encoding = condition.encoding or DEFAULT_ENCODING
    if encoding not in ("single", "repeat"):
        raise InputError(f"{label}: the encoding {encoding!r} is unknown; choose single or repeat.")
    slot = slot_of(frame)
    record = {"type": "image", **source, "frame": frame, "noise": noise, "encoding": encoding}
    return Placed(
        label, range(slot, slot + 1), [noise], record, partial(_encode_picture, picture, slot, encoding, target)
    )


def _encode_picture(picture: NDArray[np.uint8], slot: int, encoding: Encoding, target: Target) -> Tensor:
    if slot == 0 or encoding == "single":
        return target.encode(picture[None])
    return target.encode(np.repeat(picture[None], 1 + FRAMES_PER_SLOT, axis=0))[:, :, 1:]


def _open_picture(src: Picture) -> tuple[NDArray[np.uint8], dict[str, Any], str]:
    """The picture, its record and what to call it."""
    if isinstance(src, (str, Path)):
        return read_image(src), file_record(Path(src)), str(src)
    if isinstance(src, PILImage.Image):
        try:
            picture = to_rgb(src)
        except InputError as error:
            raise InputError(f"The given picture {error}.") from error
        return picture, array_record(picture), "the given picture"
    picture = np.asarray(src)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise InputError(f"A picture must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}.")
    return picture, array_record(picture), "the given picture"


# ---------------------------------------------------------------------------------------------------------------- clips


def _place_clip(condition: Clip, target: Target) -> Placed:
    footage = open_footage(condition.src, target.fps, target.vae)
    label = f"{footage.label} at frame {condition.at}"
    at = frame_index(condition.at, target.frames, target.fps, footage.label)
    start = frame_index(condition.start, footage.count, target.fps, f"the start of {footage.label}")
    count = footage.count - start if condition.frames is None else condition.frames
    if not 1 <= count <= footage.count - start:
        raise InputError(
            f"{label}: {count} frames from frame {start} on were asked for, but the clip has {footage.count} in all."
        )
    if at + count > target.frames:
        raise InputError(
            f"{label}: its {count} frames end at frame {at + count - 1}, outside the clip of {target.frames}: use "
            "fewer, or make a longer clip."
        )
    _check_groups(label, at, count, min(footage.count - start, target.frames - at), target.frames)
    first = slot_of(at)
    slots = range(first, first + (latent_frames(count) if at == 0 else count // FRAMES_PER_SLOT))
    multipliers = condition.noise if isinstance(condition.noise, Sequence) else [condition.noise] * len(slots)
    if len(multipliers) != len(slots):
        raise InputError(
            f"{label}: {len(multipliers)} noise multipliers for {len(slots)} latent frames: give one, or one each."
        )
    noise = [_check_noise(value, label) for value in multipliers]
    record = {"type": "clip", **footage.record, "at": at, "frames": count, "start": start, "noise": noise}
    return Placed(label, slots, noise, record, partial(_encode_clip, footage, start, count, at, target))


def _check_groups(label: str, at: int, count: int, available: int, length: int) -> None:
    """InputError unless `count` frames from `at` on fill slots; it advises what `available` and the `length` allow."""
    if at and at % FRAMES_PER_SLOT != 1:
        below = (at - 1) // FRAMES_PER_SLOT * FRAMES_PER_SLOT + 1
        places = " or ".join(str(n) for n in (below, below + FRAMES_PER_SLOT) if n + count <= length)
        raise InputError(
            f"{label}: a clip that does not begin at frame 0 begins with a group of four: put it at frame {places}."
        )
    rest = count % FRAMES_PER_SLOT
    if rest == (0 if at else 1):
        return
    form, below = ("4n", count - rest) if at else ("4n+1", (count - 1) // FRAMES_PER_SLOT * FRAMES_PER_SLOT + 1)
    better = " or ".join(str(n) for n in (below, below + FRAMES_PER_SLOT) if 0 < n <= available)
    advice = f"use {better} of them" if better else "give a longer clip"
    raise InputError(f"{label}: {count} frames do not fill whole latent frames, which takes {form}: {advice}.")


def _encode_clip(footage: Footage, start: int, count: int, at: int, target: Target) -> Tensor:
    """Latents of `count` frames from `start` on, as they are when the first one is at frame `at` of a clip."""
    kept = footage.latents if footage.size == target.size else None
    first, phase = slot_of(start), start % FRAMES_PER_SLOT
    if at == 0:
        if kept is None or phase != 0:
            return target.encode(footage.frames[start : start + count])
        later = kept[:, :, first + 1 : first + latent_frames(count)]
        head = kept[:, :, :1] if start == 0 else target.encode(footage.frames[start : start + 1])
        return torch.cat([head, later], dim=2)
    slots = count // FRAMES_PER_SLOT
    if kept is not None and phase == 1:
        return kept[:, :, first : first + slots]
    lead = min(LEAD_IN, (start - 1) // FRAMES_PER_SLOT * FRAMES_PER_SLOT + 1)
    before = footage.frames[start - lead : start] if start else footage.frames[:1]
    return target.encode(np.concatenate([before, footage.frames[start : start + count]]))[:, :, -slots:]
