"""Where, when and how much something moves: motion masks by background subtraction, and measures of two videos.

The background is a running mean of the grey, blurred picture, with the weight 0.3 for the new frame. A pixel moves if
it differs from the background by more than 10 levels; the mask is then opened and closed with a square of 5 pixels.
Masks are made at the video's own size. Masks and frames are compared at a quarter of the size of the real video.

    spatial          intersection over union of the masks, joined over time: where
    spatiotemporal   intersection over union of each frame's masks, averaged: where and when
    weighted         from the share of frames in which each pixel moves, Σ min / Σ max: where and how much
    mse              mean squared error of the pixels in [0, 1]: how it looks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pusa.media.images import Frames

Mask = NDArray[np.bool_]
"""[N, H, W]"""
THRESHOLD = 10
RATE = 0.3
SIDE = 5
REDUCED = 4


def mask(frames: Frames) -> Mask:
    """The pixels that move in each frame, bool [N, H, W]; none in the first frame."""
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
    """Masks resized to (width, height): a pixel moves if more than half of the area that it covers moves."""
    small = [cv2.resize(frame.astype(np.uint8) * 255, size) for frame in moving]
    return np.stack(small) > 127


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boolean arrays; 1 if both are empty."""
    union = np.logical_or(one, other).sum()
    return 1.0 if union == 0 else float(np.logical_and(one, other).sum() / union)


@dataclass(frozen=True)
class Similarity:
    """The four measures of two videos, each in [0, 1]."""

    spatial: float
    spatiotemporal: float
    weighted: float
    mse: float


@dataclass(frozen=True)
class ComparedVideo:
    """A video, prepared for comparison: frames uint8 [N, h, w, 3] and masks [N, h, w]."""

    frames: Frames
    masks: Mask

    @classmethod
    def of(cls, frames: Frames, size: tuple[int, int]) -> ComparedVideo:
        """A video resized to `size` = (width, height); its masks are made before that."""
        return cls(np.stack([cv2.resize(frame, size) for frame in frames]), reduced(mask(frames), size))


def size_of(real: Frames) -> tuple[int, int]:
    """The (width, height) at which videos are compared with this real video."""
    return real.shape[2] // REDUCED, real.shape[1] // REDUCED


def similarity(one: ComparedVideo, other: ComparedVideo) -> Similarity:
    """The four measures of two videos of equal length."""
    share, other_share = one.masks.mean(axis=0), other.masks.mean(axis=0)
    most = np.maximum(share, other_share).sum()
    error = np.square(one.frames.astype(np.float64) - other.frames).mean() / 255**2
    return Similarity(
        spatial=overlap(np.any(one.masks, axis=0), np.any(other.masks, axis=0)),
        spatiotemporal=float(np.mean([overlap(a, b) for a, b in zip(one.masks, other.masks, strict=True)])),
        weighted=1.0 if most == 0 else float(np.minimum(share, other_share).sum() / most),
        mse=float(error),
    )
