"""The clips that the embedded model learns from: the world's shapes, textures and photographs, and those of a pack.

A clip is a pure function of its seed. Held-out photographs never occur: the pack has none, and the world keeps its
splits apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from pusa.embedded import world

SHAPES, TEXTURES = 0.35, 0.2
"""Shares of the clips; the rest are photographs, most of them from the pack."""
SCALES = (96, 112, 128)
Clip = tuple[np.ndarray, str]
"""uint8 [17, 64, 64, 3] and caption"""


class Pictures:
    """Training photographs: a pack of `pictures.py` and the world's own twelve, each in the world's three scales."""

    def __init__(self, pack: Path | None) -> None:
        from pictures import load

        self.pictures: list[Image.Image | str] = [
            *(load(pack) if pack is not None else []),
            *world.PHOTOGRAPHS["train"],
        ]

    @lru_cache(maxsize=4096)  # noqa: B019  (lives as long as the process)
    def scaled(self, index: int, scale: int) -> Image.Image:
        picture = self.pictures[index]
        if isinstance(picture, str):
            return world._scaled(picture, scale)
        ratio = scale / min(picture.size)
        return picture.resize([max(scale, round(side * ratio)) for side in picture.size], Image.Resampling.LANCZOS)

    def clip(self, rng: np.random.Generator) -> Clip:
        """A camera clip over one of the photographs, by the world's own laws."""
        motion = str(rng.choice(list(world.CAMERA_MOTIONS)))
        picture = self.scaled(int(rng.integers(len(self.pictures))), int(rng.choice(SCALES)))
        width, height = picture.size
        dx, dy = world.DIRECTIONS.get(motion, (0.0, 0.0))
        travel, half = world.PAN * (world.FRAMES - 1), world.SIZE / 2
        x = rng.uniform(half + travel * max(-dx, 0), width - half - travel * max(dx, 0))
        y = rng.uniform(half + travel * max(-dy, 0), height - half - travel * max(dy, 0))
        frames = world.film(picture, motion, x, y)
        return frames, f"the camera {world.CAMERA_MOTIONS[motion]} over a photograph"


def clip(seed: int, pictures: Pictures) -> Clip:
    """The training clip of a seed."""
    rng = np.random.default_rng([seed, 14])
    kind = rng.random()
    if kind < SHAPES:
        scene: world.Scene = world._sample_shape(rng)
    elif kind < SHAPES + TEXTURES:
        while not (scene := world._sample_camera(rng, "train")).picture.startswith("texture"):
            pass
    else:
        return pictures.clip(rng)
    return world.render(scene), scene.caption


def clips(seeds: Sequence[int], pictures: Pictures) -> tuple[np.ndarray, list[str]]:
    made = [clip(seed, pictures) for seed in seeds]
    return np.stack([frames for frames, _ in made]), [caption for _, caption in made]


def heldout(kind: str, count: int) -> tuple[np.ndarray, list[world.Scene]]:
    """The first `count` held-out scenes of a kind: "shape", "camera" (as the world mixes them) or "photograph"."""
    scenes: list[world.Scene] = []
    seed = 0
    while len(scenes) < count:
        scene = world.sample(seed, "heldout", "shape" if kind == "shape" else "camera")
        seed += 1
        if kind != "photograph" or scene.picture in world.PHOTOGRAPHS["heldout"]:  # type: ignore[union-attr]
            scenes.append(scene)
    return np.stack([world.render(scene) for scene in scenes]), scenes
