"""Where, when and how much something moves: masks by background subtraction, their overlaps, and squared error.

A running mean of the grey, blurred picture (weight 0.3 for the new frame) is the background; what differs from it by
more than 10 levels, opened and closed with a square of 5 pixels, moves. Masks are made at the video's own size and,
like the frames, compared at a quarter of the real video's.

    spatial          masks joined over time, intersection over union: where
    spatiotemporal   intersection over union of each frame, averaged: where and when
    weighted         share of frames in which a pixel moves, Σ min / Σ max: where and how much
    mse              mean squared error of pixels in [0, 1]: how it looks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pusa.images import Frames

Mask = NDArray[np.bool_]
"""[N, H, W]"""
THRESHOLD = 10
RATE = 0.3
SIDE = 5
REDUCED = 4


def mask(frames: Frames) -> Mask:
    """What moves in each frame, bool [N, H, W]; nothing in the first."""
    kernel = np.ones((SIDE, SIDE), np.uint8)
    blurred = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), 0) for frame in frames]
    background = blurred[0].astype(np.float64)
    found = [np.zeros(blurred[0].shape, np.bool_)]
    for grey in blurred[1:]:
        cv2.accumulateWeighted(grey, background, RATE)
        apart = cv2.absdiff(grey, cv2.convertScaleAbs(background))
        moving = (apart > THRESHOLD).astype(np.uint8)
        moving = cv2.morphologyEx(cv2.morphologyEx(moving, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
        found.append(moving.astype(np.bool_))
    return np.stack(found)


def reduced(moving: Mask, size: tuple[int, int]) -> Mask:
    """Masks at (width, height): a pixel moves when more than half of what it covers does."""
    small = [cv2.resize(frame.astype(np.uint8) * 255, size) for frame in moving]
    return np.stack(small) > 127


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two arrays of truth values; 1 when neither has anything."""
    union = np.logical_or(one, other).sum()
    return 1.0 if union == 0 else float(np.logical_and(one, other).sum() / union)


@dataclass(frozen=True)
class Likeness:
    """How alike two videos are in the four ways."""

    spatial: float
    spatiotemporal: float
    weighted: float
    mse: float


@dataclass(frozen=True)
class Seen:
    """A video as it is compared: frames uint8 [N, h, w, 3] and masks [N, h, w] of one size."""

    frames: Frames
    masks: Mask

    @classmethod
    def of(cls, frames: Frames, size: tuple[int, int]) -> Seen:
        """A video brought to `size` = (width, height), its masks made before that."""
        return cls(np.stack([cv2.resize(frame, size) for frame in frames]), reduced(mask(frames), size))


def size_of(real: Frames) -> tuple[int, int]:
    """The size in which videos are compared with this real one."""
    return real.shape[2] // REDUCED, real.shape[1] // REDUCED


def likeness(one: Seen, other: Seen) -> Likeness:
    """The four measures of two videos of equal length."""
    share, other_share = one.masks.mean(axis=0), other.masks.mean(axis=0)
    most = np.maximum(share, other_share).sum()
    error = np.square(one.frames.astype(np.float64) - other.frames).mean() / 255**2
    return Likeness(
        spatial=overlap(np.any(one.masks, axis=0), np.any(other.masks, axis=0)),
        spatiotemporal=float(np.mean([overlap(a, b) for a, b in zip(one.masks, other.masks, strict=True)])),
        weighted=1.0 if most == 0 else float(np.minimum(share, other_share).sum() / most),
        mse=float(error),
    )
