"""Measure what a clip of the synthetic world shows, from its pixels alone: colour, shape, motion, direction and speed.

Backgrounds are grey and shapes are coloured, so saturation separates them. The judge does not use the caption. It was
calibrated on rendered clips before any model existed; tests check its accuracy there, and on blurred, noisy, frozen and
shuffled controls.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.embedded import world
from pusa.media.images import Frames

Array = NDArray[Any]
"""float64"""

SATURATION = 40.0
"""max − min over RGB, of 255, at which half a pixel counts as part of the shape"""
MINIMUM_AREA = 30.0
"""the area in pixels below which a frame shows no shape"""


@dataclass(frozen=True)
class Verdict:
    """What a clip shows.

    colour, shape, motion: names in `world`, or None if no shape is visible. speed: pixels per frame.
    """

    colour: str | None
    shape: str | None
    motion: str | None
    speed: float


def judge(clip: Frames) -> Verdict:
    """The verdict on a shape clip, uint8 [N, 64, 64, 3] with N >= 5, at the frame rate of the world."""
    pixels = clip.astype(np.float64)
    masks = mask(pixels)
    areas = masks.sum(axis=(1, 2))
    if np.count_nonzero(areas > MINIMUM_AREA) < 0.8 * len(clip):
        return Verdict(None, None, None, 0.0)
    centres = _centres(masks, areas)
    shape = _shape(masks[0], centres[0], areas[0])
    motion, speed = _motion(masks, centres, areas, shape)
    return Verdict(_colour(pixels, masks), shape, motion, speed)


def mask(pixels: Array) -> Array:
    """The share of each pixel that belongs to a coloured shape, [N, H, W] in [0, 1].

    pixels: float [N, H, W, 3] in [0, 255].
    """
    saturation = pixels.max(-1) - pixels.min(-1)
    belongs: Array = np.clip((saturation - 0.5 * SATURATION) / SATURATION, 0, 1)
    return belongs


def _centres(masks: Array, areas: Array) -> Array:
    """The centroids (x, y) of the masks, [N, 2], in pixels."""
    along = np.arange(masks.shape[-1]) + 0.5
    area = np.maximum(areas, 1e-6)
    return np.stack([(masks * along).sum((1, 2)) / area, (masks * along[:, None]).sum((1, 2)) / area], axis=1)


def _colour(pixels: Array, masks: Array) -> str:
    solid = masks > 0.9
    if not solid.any():
        solid = masks > 0.5
    mean = np.median(pixels[solid], axis=0) / 255
    hue = colorsys.rgb_to_hsv(*mean)[0]

    def distance(name: str) -> float:
        other = colorsys.rgb_to_hsv(*(c / 255 for c in world.COLOURS[name]))[0]
        return min(abs(hue - other), 1 - abs(hue - other))

    return min(world.COLOURS, key=distance)


AREA_OF_UNIT = {name: float(world.coverage(name, 32, 32, 20).sum()) / 400 for name in world.SHAPES}
SYMMETRY = {"square": 4, "triangle": 3, "cross": 4}


def _shape(one: Array, centre: Array, area: float) -> str:
    """The shape whose upright template of the same area and centroid has the largest intersection over union."""

    def overlap(name: str) -> float:
        radius = float(np.sqrt(area / AREA_OF_UNIT[name]))
        template = world.coverage(name, 32, 32, radius)
        at = _centres(template[None], template.sum(keepdims=True).reshape(1))[0]
        x, y = centre + 32 - at
        template = world.coverage(name, x, y, radius)
        return float(np.minimum(one, template).sum() / np.maximum(one, template).sum())

    return max(world.SHAPES, key=overlap)


def _angles(masks: Array, centres: Array, fold: int) -> Array:
    """The orientation of each frame in degrees, unwrapped, [N]: the angle of the mask's moment of order `fold`."""
    along = np.arange(masks.shape[-1]) + 0.5
    dx = along[None, None, :] - centres[:, 0, None, None]
    dy = along[None, :, None] - centres[:, 1, None, None]
    moment = (masks * (dx + 1j * dy) ** fold).sum((1, 2))
    angles: Array = np.rad2deg(np.unwrap(np.angle(moment))) / fold
    return angles


def _motion(masks: Array, centres: Array, areas: Array, shape: str) -> tuple[str, float]:
    """The motion of a shape, and its speed in pixels per frame.

    If the shape moves, the motion is the direction whose path from the first centroid fits best. Otherwise the size and
    then the angle decide.
    """
    last = len(areas) - 1
    third = max(1, len(areas) // 3)
    growth = np.median(areas[-third:]) / max(np.median(areas[:third]), 1e-6)
    path = np.linalg.norm(centres - centres[0], axis=1).max()
    if path > 0.2 * world.SPEED * last:
        radius = float(np.sqrt(areas[0] / AREA_OF_UNIT[shape]))
        errors = {name: _path_error(centres, name, radius) for name in world.DIRECTIONS}
        motion = min(errors, key=errors.__getitem__)
        axis = 0 if motion in ("left", "right") else 1
        return motion, float(np.median(np.abs(np.diff(centres[:, axis]))))
    expected = 1 + world.GROWTH * (last + 1) * 2 / 3
    if growth > expected:
        return "grow", 0.0
    if growth < 1 / expected:
        return "shrink", 0.0
    if shape in SYMMETRY:
        angles = _angles(masks, centres, SYMMETRY[shape])
        rate = np.polyfit(np.arange(len(angles)), angles, 1)[0]
        if abs(rate) > 0.5 * world.SPIN:
            return "spin", 0.0
    return "still", 0.0


def _path_error(centres: Array, motion: str, radius: float) -> float:
    """The mean distance of the centroids to the path of a shape that moves from the first centroid in a direction."""
    dx, dy = world.DIRECTIONS[motion]
    low, high = radius, world.SIZE - radius
    if low >= high:
        return np.inf
    x0, y0 = np.clip(centres[0], low, high)
    path = [
        (world.bounce(x0 + dx * world.SPEED * t, low, high), world.bounce(y0 + dy * world.SPEED * t, low, high))
        for t in range(len(centres))
    ]
    return float(np.linalg.norm(centres - np.array(path), axis=1).mean())


# --- cameras --------------------------------------------------------------------------------------------------------


def judge_camera(clip: Frames) -> str:
    """The camera motion that explains a clip best: a name in `world.CAMERA_MOTIONS`, or "still".

    Each candidate motion moves the first frame as that camera would. The motion with the smallest mean squared error
    against the later frames, where they overlap, is returned.
    """
    grey = clip.astype(np.float64).mean(-1)
    later = list(range(4, len(clip), 4))
    errors = {
        name: float(np.mean([_camera_error(grey, name, t) for t in later])) for name in [*world.CAMERA_MOTIONS, "still"]
    }
    return min(errors, key=errors.__getitem__)


def _camera_error(grey: Array, motion: str, t: int) -> float:
    """The mean squared difference of frame t and the moved frame 0, where both are known."""
    centre, last = world.SIZE / 2, len(grey) - 1
    start = world.viewport(motion, centre, centre, 0, last + 1)
    now = world.viewport(motion, centre, centre, t, last + 1)
    ratio = (now[2] - now[0]) / (start[2] - start[0])
    along = np.arange(world.SIZE) + 0.5
    # A pixel of frame t lies at `source` in frame 0's pixels.
    source_x = (along - centre) * ratio + centre + (now[0] + now[2]) / 2 - centre
    source_y = (along - centre) * ratio + centre + (now[1] + now[3]) / 2 - centre
    warped, known = _bilinear(grey[0], source_x, source_y)
    return float(((warped - grey[t])[known] ** 2).mean())


def _bilinear(image: Array, x: Array, y: Array) -> tuple[Array, NDArray[np.bool_]]:
    """The values of `image` at a grid of x and y (pixel centres at .5), and whether each position is inside it."""
    size = image.shape[0]
    fx, fy = np.clip(x - 0.5, 0, size - 1), np.clip(y - 0.5, 0, size - 1)
    x0, y0 = np.minimum(fx.astype(int), size - 2), np.minimum(fy.astype(int), size - 2)
    ax, ay = fx - x0, (fy - y0)[:, None]
    top = image[np.ix_(y0, x0)] * (1 - ax) + image[np.ix_(y0, x0 + 1)] * ax
    bottom = image[np.ix_(y0 + 1, x0)] * (1 - ax) + image[np.ix_(y0 + 1, x0 + 1)] * ax
    inside = ((y >= 0) & (y <= size))[:, None] & ((x >= 0) & (x <= size))[None]
    return top * (1 - ay) + bottom * ay, inside
