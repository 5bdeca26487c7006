"""The optical flow of a clip, computed once: dense inverse search of OpenCV (Kroeger et al., arXiv 1603.03590).

Clips are reduced to at most 416 x 240 pixels first, and the flow is in pixels of the reduced clip.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pusa.media.images import Frames

Array = NDArray[np.float32]
LARGEST = (416, 240)
"""(width, height) to which clips are reduced"""
CONSISTENT = (0.01, 0.5)
"""A pixel is visible in both frames if |F + B|² < 0.01 (|F|² + |B|²) + 0.5 (Sundaram et al. 2010)."""


class Motion:
    """A clip, uint8 [N, H, W, 3], reduced to the size at which motion is measured, and the flow between its frames."""

    def __init__(self, frames: Frames) -> None:
        height, width = frames.shape[1:3]
        self.scale = min(1.0, LARGEST[0] / width, LARGEST[1] / height)
        size = (max(16, round(width * self.scale)), max(16, round(height * self.scale)))
        small = size != (width, height)
        self.frames = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames]) if small else frames
        self.grey = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in self.frames])

    @cached_property
    def forward(self) -> list[Array]:
        """The flow from frame t to t + 1 in pixels, [h, w, 2], for each t."""
        return [flow(a, b) for a, b in zip(self.grey, self.grey[1:], strict=False)]

    @cached_property
    def backward(self) -> list[Array]:
        """The flow from frame t + 1 to t in pixels, [h, w, 2], for each t."""
        return [flow(b, a) for a, b in zip(self.grey, self.grey[1:], strict=False)]

    def residual(self, t: int) -> tuple[float, float]:
        """The mean absolute error of frame t + 1, warped to frame t, in levels of 255, and the share of visible pixels.

        The error is over the pixels that are visible in both frames; if there are none, both numbers are 0.
        """
        forward, backward = self.forward[t], self.backward[t]
        returned = forward + warp(backward, forward)
        size = np.square(forward).sum(-1) + np.square(backward).sum(-1)
        seen = np.square(returned).sum(-1) < CONSISTENT[0] * size + CONSISTENT[1]
        seen &= inside(forward)
        if not seen.any():
            return 0.0, 0.0
        error = np.abs(warp(self.frames[t + 1], forward).astype(np.float32) - self.frames[t]).mean(-1)
        return float(error[seen].mean()), float(seen.mean())

    @cached_property
    def residuals(self) -> NDArray[np.float64]:
        """`residual` of every pair, [N - 1, 2]."""
        return np.array([self.residual(t) for t in range(len(self.forward))]).reshape(-1, 2)


def flow(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> Array:
    """The flow from one grey picture [h, w] to another in pixels, float32 [h, w, 2]."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(search.calc(one, other, None), dtype=np.float32)


def _places(field: Array) -> tuple[Array, Array]:
    height, width = field.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return x + field[..., 0], y + field[..., 1]


def inside(field: Array) -> NDArray[np.bool_]:
    """Where the flow ends inside the picture, bool [h, w]."""
    x, y = _places(field)
    height, width = field.shape[:2]
    within: NDArray[np.bool_] = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return within


def warp(picture: NDArray[Any], field: Array) -> NDArray[Any]:
    """The picture [h, w, ...] sampled along a flow: its value at x + F(x), bilinear; the border is repeated."""
    x, y = _places(field)
    return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
