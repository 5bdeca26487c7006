"""Properties of a clip, measured from its pixels. No single number says that a clip is good.

A frozen clip has no flicker, no warp error and perfect smoothness, and a blurred clip almost so. These three measures
are called *stillness-prone*. They are only reported together with dynamic degree and sharpness, which are low for a
frozen or a blurred clip. If VBench (Huang et al., arXiv 2311.17982) has a measure, its formula is used, with DIS
optical flow instead of VBench's networks. So the numbers here are not those of VBench.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from pusa.evaluation.clips.optical_flow import Motion, flow, warp
from pusa.media.images import Frames

Array = NDArray[np.float64]
SECTION = 0.15
"""the share of the clip at its beginning, and at its end, between which drift is measured"""
TOP = 0.05
"""the share of the fastest pixels that the dynamic degree counts"""
GRID = 10
"""points along each side at which the camera motion is estimated"""
TEXTURE, TEXTURE_EVERY = 4.0, 4
"""the variation around a point, in levels of 255, above which its motion is visible; the distance of the frames in
which it is measured"""
STEP_PIXELS = 0.5
"""the largest distance, in one step, of a point's flow to that of the camera"""
CAMERA_SHIFT, CAMERA_SCALE = 0.03, 0.05
"""the smallest shift, as a share of the picture's width, and the smallest relative change of scale that count as camera
motion, from the first frame to the last"""


@dataclass(frozen=True)
class Measure:
    """How a measure is named and read. better: "high", "low", or "" if neither is better."""

    title: str
    unit: str
    better: str
    stillness_prone: bool = False


MEASURES: dict[str, Measure] = {
    "flicker": Measure("flicker", "", "high", True),
    "warp_error": Measure("warp error", "levels", "low", True),
    "smoothness": Measure("smoothness", "", "high", True),
    "dynamic": Measure("dynamic degree", "× threshold", ""),
    "sharpness": Measure("sharpness", "", "high"),
    "sharpness_kept": Measure("sharpness kept", "", ""),
    "visible": Measure("visible after warping", "", ""),
    "colour_drift": Measure("colour drift", "ΔE/s", "low"),
    "contrast_kept": Measure("contrast kept", "", ""),
    "chroma_kept": Measure("chroma kept", "", ""),
    "luma_drift": Measure("luma drift", "L*", "low"),
    "speed_drift": Measure("speed drift", "px", "low"),
}
AGREE = 0.5
"""the share of the points that one camera motion must explain"""
SHORTEST = 5
"""the number of frames below which no motion is measured"""


def measure(frames: Frames, fps: float, motion: Motion) -> dict[str, float]:
    """All measures of a clip, uint8 [N, H, W, 3] with N ≥ 5, at `fps` frames per second. motion: of the same frames."""
    lab = np.stack([rgb2lab(frame) for frame in motion.frames])
    sharp = np.array([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in motion.grey])
    mean = lab.mean(axis=(1, 2))
    contrast, chroma = lab[..., 0].std(axis=(1, 2)), np.hypot(lab[..., 1], lab[..., 2]).mean(axis=(1, 2))
    speed = np.array([np.hypot(f[..., 0], f[..., 1]).mean() for f in motion.forward])
    return {
        "flicker": flicker(frames),
        "warp_error": float(motion.residuals[:, 0].mean()),
        "visible": float(motion.residuals[:, 1].mean()),
        "smoothness": smoothness(motion),
        "dynamic": dynamic_degree(motion, fps),
        "sharpness": float(np.median(sharp)),
        "sharpness_kept": _kept(sharp),
        "colour_drift": colour_drift(mean, fps),
        "contrast_kept": _kept(contrast),
        "chroma_kept": _kept(chroma),
        "luma_drift": _drift(mean[:, 0]),
        "speed_drift": _drift(speed),
    }


def curves(motion: Motion) -> dict[str, list[float]]:
    """Series for plots: mean L*, chroma and sharpness of each frame [N]; speed and warp error of each step [N − 1]."""
    lab = np.stack([rgb2lab(frame) for frame in motion.frames])
    return {
        "L* mean": lab[..., 0].mean(axis=(1, 2)).tolist(),
        "chroma": np.hypot(lab[..., 1], lab[..., 2]).mean(axis=(1, 2)).tolist(),
        "sharpness": [float(cv2.Laplacian(grey, cv2.CV_64F).var()) for grey in motion.grey],
        "speed": [float(np.hypot(field[..., 0], field[..., 1]).mean()) for field in motion.forward],
        "warp error": motion.residuals[:, 0].tolist(),
    }


def flicker(frames: Frames) -> float:
    """Temporal flickering of VBench, in [0, 1]: 1 − mean |f_t − f_{t−1}| / 255; 1 is no flicker."""
    steps = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]
    return float(1 - np.mean(steps) / 255)


def smoothness(motion: Motion) -> float:
    """Motion smoothness by the protocol of VBench, in [0, 1]; 1 is smoothest.

    Every other frame is predicted from its two neighbours: the mean of both, each warped by half the flow between them.
    The value is 1 − mean error / 255.
    """
    errors = []
    for t in range(1, len(motion.frames) - 1, 2):
        before, after = motion.frames[t - 1], motion.frames[t + 1]
        half = flow(motion.grey[t - 1], motion.grey[t + 1]) / np.float32(2)
        middle = (warp(before, -half).astype(np.float32) + warp(after, half)) / 2
        errors.append(np.abs(middle - motion.frames[t]).mean())
    return float(1 - np.mean(errors) / 255)


def dynamic_degree(motion: Motion, fps: float) -> float:
    """The speed of the clip divided by VBench's threshold; from 1 on, VBench calls the clip dynamic.

    Every max(1, round(fps / 8))-th frame is used, n frames in all. A pair of frames moves if the mean of its fastest 5
    % of the pixels exceeds 6 pixels of 256; round(4 n / 16) pairs must move. The value is that of the pair of this
    rank, divided by the threshold. It depends on the frame rate that the file states.
    """
    step = max(1, round(fps / 8))
    grey = motion.grey[::step]
    if len(grey) < 2:
        return 0.0
    speeds = []
    for a, b in pairwise(grey):
        field = flow(a, b)
        fastest = np.sort(np.hypot(field[..., 0], field[..., 1]).ravel())
        speeds.append(fastest[-max(1, int(len(fastest) * TOP)) :].mean())
    needed = min(max(1, round(4 * len(grey) / 16)), len(speeds))
    threshold = 6 * min(motion.grey.shape[1:]) / 256
    return float(sorted(speeds, reverse=True)[needed - 1] / threshold)


def colour_drift(mean: Array, fps: float) -> float:
    """The slope of the distance of the mean Lab colour [N, 3] from that of the first frame, in ΔE (1976) per second."""
    distance = np.linalg.norm(mean - mean[0], axis=1)
    return float(abs(np.polyfit(np.arange(len(mean)) / fps, distance, 1)[0]))


def _sections(values: Array) -> tuple[float, float]:
    count = max(1, round(SECTION * len(values)))
    return float(values[:count].mean()), float(values[-count:].mean())


def _kept(values: Array) -> float:
    """The mean of the last 15 % divided by that of the first 15 %; 1 if the latter is 0."""
    first, last = _sections(values)
    return last / first if first > 1e-9 else 1.0


def _drift(values: Array) -> float:
    """|mean of the first 15 % − mean of the last 15 %|, the drift of HeliosBench."""
    first, last = _sections(values)
    return abs(first - last)


def _texture(motion: Motion, at: NDArray[np.int_]) -> float:
    """The mean share of the points around which the picture varies enough for optical flow."""
    side = 2 * max(2, min(motion.grey.shape[1:]) // 24) + 1
    seen = []
    for grey in motion.grey[:-1:TEXTURE_EVERY].astype(np.float32):
        mean = cv2.blur(grey, (side, side))
        spread = np.sqrt(np.maximum(cv2.blur(grey * grey, (side, side)) - mean * mean, 0))
        seen.append(spread[at[:, 1], at[:, 0]] > TEXTURE)
    return float(np.mean(seen))


def camera(motion: Motion) -> list[str]:
    """The motion of the camera, in the words of VBench: pans, tilts, zooms, or "static".

    In each step, the similarity transform that explains most of the flow of a grid (RANSAC) gives a shift and a scale.
    The shifts and scales of all steps are accumulated, so that the total may exceed the picture. The result is
    "unknown" if the transforms explain, on average, less than half of the grid, or if something moves in front of a
    background without texture, where no camera motion is visible. If the camera pans right, the picture moves left.
    """
    height, width = motion.grey.shape[1:]
    x, y = np.meshgrid(np.linspace(0.1, 0.9, GRID) * (width - 1), np.linspace(0.1, 0.9, GRID) * (height - 1))
    start = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    centred = start - np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
    at = np.rint(start).astype(int)
    shift, zoom, agreed = np.zeros(2), 0.0, []
    for field in motion.forward:
        moved = centred + field[at[:, 1], at[:, 0]]
        found, agree = cv2.estimateAffinePartial2D(centred, moved, ransacReprojThreshold=STEP_PIXELS)
        agreed.append(0.0 if found is None else float(agree.mean()))
        if found is not None:
            shift += found[:, 2] / width
            zoom += float(np.log(max(np.hypot(found[0, 0], found[1, 0]), 1e-3)))
    plain = _texture(motion, at) < AGREE and any(np.abs(field).max() > STEP_PIXELS for field in motion.forward)
    if plain or np.mean(agreed) < AGREE:
        return ["unknown"]
    scale = float(np.exp(zoom))
    says: list[str] = []
    if abs(shift[0]) > CAMERA_SHIFT:
        says.append("pans left" if shift[0] > 0 else "pans right")
    if abs(shift[1]) > CAMERA_SHIFT:
        says.append("tilts up" if shift[1] > 0 else "tilts down")
    if abs(scale - 1) > CAMERA_SCALE:
        says.append("zooms in" if scale > 1 else "zooms out")
    return says or ["static"]
