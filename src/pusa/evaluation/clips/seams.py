"""Whether a join is visible: how different the step across the join is from the other steps of the clip.

An average over the clip hides a join. So the step at the join is compared with the other steps. Each statistic is a
robust z: its distance from the median of the other steps, divided by 1.4826 times their median absolute deviation. The
deviation has a minimum, because the other steps may be equal. From about 3 on, a step stands out. A shift by a
sixteenth of the picture, or a half that runs backwards, gives tens to hundreds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from pusa.errors import InputError
from pusa.evaluation.clips.optical_flow import Motion
from pusa.media.images import Frames

Array = NDArray[Any]
FLOORS = {"difference": 0.25, "luma": 0.05, "chroma": 0.05, "residual": 0.25, "acceleration": 0.05}
"""the minimum deviation of each statistic: levels of 255, L*, ab, levels, pixels per frame"""
TITLES = {
    "difference": "mean absolute difference",
    "luma": "step of mean L*",
    "chroma": "step of mean a*b*",
    "residual": "residual after warping",
    "acceleration": "acceleration of the flow",
}


def steps(frames: Frames, motion: Motion) -> dict[str, Array]:
    """Each statistic of every step, [N - 1]; index t is the step from frame t to t + 1."""
    lab = np.stack([rgb2lab(frame).mean(axis=(0, 1)) for frame in motion.frames])
    jump = np.diff(lab, axis=0)
    difference = [np.abs(b.astype(np.int16) - a).mean() for a, b in zip(motion.frames, motion.frames[1:], strict=False)]
    change = [np.linalg.norm(b - a, axis=-1).mean() for a, b in zip(motion.forward, motion.forward[1:], strict=False)]
    # The flow changes before and after a step; the larger change counts.
    into, out = np.array([0.0, *change]), np.array([*change, 0.0])
    return {
        "difference": np.array(difference),
        "luma": np.abs(jump[:, 0]),
        "chroma": np.hypot(jump[:, 1], jump[:, 2]),
        "residual": motion.residuals[:, 0],
        "acceleration": np.maximum(into, out),
    }


def seam(frames: Frames, motion: Motion, join: int) -> dict[str, float]:
    """The robust z of every statistic at the step to frame `join`, in [1, N - 1]; negative if the step is smaller.

    Raises InputError if the join is outside the clip, or if the clip has fewer than 6 frames.
    """
    if len(frames) < 6 or not 1 <= join < len(frames):
        raise InputError(
            f"a join at frame {join} of {len(frames)} frames cannot be measured; give a frame inside a clip of at "
            "least 6 frames"
        )
    return {name: robust_z(values, join - 1, FLOORS[name]) for name, values in steps(frames, motion).items()}


def robust_z(values: Array, at: int, floor: float) -> float:
    """(v_at − median) / max(1.4826 · MAD, floor); median and MAD are over the values except `at` and its neighbours."""
    others = np.delete(values, [i for i in (at - 1, at, at + 1) if 0 <= i < len(values)])
    median = np.median(others)
    spread = 1.4826 * np.median(np.abs(others - median))
    return float((values[at] - median) / max(spread, floor))
