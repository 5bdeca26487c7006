"""The world rendered in torch, a batch of clips at a time, on whatever device: what `world.render` draws, to a level.

Shapes by their signed distance, cameras by Pillow's own bicubic weights (a = -1/2, which `grid_sample` does not have)
as two matrix products a frame, rounded to whole levels in between as Pillow does. A batch of scenes is a dictionary of
tensors, drawn by the laws of `data.py`: shares of shapes, textures and photographs, motions, places and sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from data import SCALES, SHAPES, TEXTURES
from PIL import Image
from torch import Tensor

from pusa.embedded import world

LONGEST = 256
"""Longer pictures are cut to this, in the middle."""
SHAPE_NAMES, COLOURS, BACKGROUNDS = list(world.SHAPES), list(world.COLOURS), list(world.BACKGROUNDS)
MOTIONS, CAMERA_MOTIONS = list(world.MOTIONS), list(world.CAMERA_MOTIONS)
Scenes = dict[str, Tensor]


def captions() -> list[str]:
    """All captions: those of shape clips by (shape, colour, background, motion), then those of cameras over a texture
    and over a photograph."""
    shapes = [
        world.ShapeScene(shape, colour, background, motion, 0, 0, 0).caption
        for shape in SHAPE_NAMES
        for colour in COLOURS
        for background in BACKGROUNDS
        for motion in MOTIONS
    ]
    return shapes + [
        world.CameraScene(over, motion, 0, 0, 0).caption
        for over in ("texture0", "photograph")
        for motion in CAMERA_MOTIONS
    ]


def caption_index(shapes: Scenes, cameras: Scenes) -> Tensor:
    """The captions' places in `captions()`: of the shape clips, then of the camera clips."""
    first = shapes["shape"] * len(COLOURS) + shapes["colour"]
    first = (first * len(BACKGROUNDS) + shapes["background"]) * len(MOTIONS) + shapes["motion"]
    count = len(SHAPE_NAMES) * len(COLOURS) * len(BACKGROUNDS) * len(MOTIONS)
    second = count + cameras["photograph"].long() * len(CAMERA_MOTIONS) + cameras["motion"]
    return torch.cat([first, second])


class Atlas:
    """Pictures as one tensor: uint8 [N, 3, LONGEST, LONGEST], from the upper left; sizes [N, 2]: height, width."""

    def __init__(
        self, textures: Sequence[Image.Image], photographs: Sequence[Image.Image], device: torch.device
    ) -> None:
        pictures = [*textures, *photographs]
        self.textures = len(textures)
        self.pixels = torch.zeros(len(pictures), 3, LONGEST, LONGEST, dtype=torch.uint8)
        sizes = []
        for place, picture in zip(self.pixels, pictures, strict=True):
            left, top = (max(0, (side - LONGEST) // 2) for side in picture.size)
            box = (left, top, left + min(LONGEST, picture.width), top + min(LONGEST, picture.height))
            pixels = torch.from_numpy(np.array(picture.crop(box))).permute(2, 0, 1)
            place[:, : pixels.shape[1], : pixels.shape[2]] = pixels
            sizes.append(pixels.shape[1:])
        self.pixels, self.sizes = self.pixels.to(device), torch.tensor(sizes, device=device)


def texture(index: int, scale: int) -> Image.Image:
    return world._scaled(f"texture{index}", scale)


def sample_shapes(count: int, rng: torch.Generator) -> Scenes:
    """By the law of `world._sample_shape`."""
    device = rng.device

    def below(n: int) -> Tensor:
        return torch.randint(n, (count,), generator=rng, device=device)

    def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:
        u = torch.rand(count, generator=rng, device=device)
        return low + (high - low) * u

    motion, shape = below(len(MOTIONS)), below(len(SHAPE_NAMES))
    spin = motion == MOTIONS.index("spin")
    shape = torch.where(spin, 1 + below(len(SHAPE_NAMES) - 1), shape)  # the circle is the first
    grow, shrink = motion == MOTIONS.index("grow"), motion == MOTIONS.index("shrink")
    low, high = torch.full((count,), 9.0, device=device), torch.full((count,), 14.0, device=device)
    low, high = (torch.where(grow, a, torch.where(shrink, b, c)) for a, b, c in ((7.0, 14.0, low), (10.0, 18.0, high)))
    radius = uniform(low, high)
    margin = torch.where(grow, radius * (1 + world.GROWTH * (world.FRAMES - 1)), radius) + 1
    return {
        "shape": shape,
        "colour": below(len(COLOURS)),
        "background": below(len(BACKGROUNDS)),
        "motion": motion,
        "x": uniform(margin, world.SIZE - margin),
        "y": uniform(margin, world.SIZE - margin),
        "radius": radius,
    }


def bounce(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    span = high - low
    folded = torch.remainder(position - low, 2 * span)
    return low + torch.where(folded <= span, folded, 2 * span - folded)


def render_shapes(scenes: Scenes, frames: int = world.FRAMES) -> Tensor:
    """Whole levels as float32 [B, 3, frames, 64, 64]."""
    device, size = scenes["x"].device, world.SIZE
    t = torch.arange(frames, device=device, dtype=torch.float32)[None]
    motion, radius = scenes["motion"][:, None], scenes["radius"][:, None]
    steps = torch.zeros(len(MOTIONS), 2, device=device)
    for name, step in world.DIRECTIONS.items():
        steps[MOTIONS.index(name)] = torch.tensor(step)
    dx, dy = steps[scenes["motion"]].T[:, :, None] * world.SPEED
    x, y = scenes["x"][:, None] + dx * t, scenes["y"][:, None] + dy * t
    still = (motion >= MOTIONS.index("grow")).expand(x.shape)
    x = torch.where(still, scenes["x"][:, None], bounce(x, radius, size - radius))
    y = torch.where(still, scenes["y"][:, None], bounce(y, radius, size - radius))
    factor = 1 + world.GROWTH * t
    grow, shrink = motion == MOTIONS.index("grow"), motion == MOTIONS.index("shrink")
    radius = torch.where(grow, radius * factor, torch.where(shrink, radius / factor, radius.expand(x.shape)))
    angle = torch.deg2rad(world.SPIN * t) * (motion == MOTIONS.index("spin"))
    centres = torch.arange(size, device=device) + 0.5
    gx, gy = centres[None, None, None, :] - x[..., None, None], centres[None, None, :, None] - y[..., None, None]
    cos, sin, r = (v[..., None, None] for v in (angle.cos(), angle.sin(), radius))
    u, v = cos * gx + sin * gy, -sin * gx + cos * gy
    au, av = u.abs(), v.abs()
    bar = torch.maximum(au - r, av - 0.36 * r)
    distances = (
        torch.hypot(u, v) - r,
        torch.maximum(au, av) - 0.86 * r,
        torch.maximum(v, 0.75**0.5 * au - 0.5 * v) - 0.62 * r,
        torch.minimum(bar, torch.maximum(av - r, au - 0.36 * r)),
    )
    shape = scenes["shape"].view(-1, 1, 1, 1)
    distance = distances[0]
    for index in range(1, len(distances)):
        distance = torch.where(shape == index, distances[index], distance)
    alpha = (0.5 - distance).clamp(0, 1)[:, None]
    greys = torch.tensor(np.stack([world.background(name)[..., 0] for name in BACKGROUNDS]), device=device).float()
    colours = torch.tensor(list(world.COLOURS.values()), device=device).float()
    grey = greys[scenes["background"]][:, None, None]
    return ((1 - alpha) * grey + alpha * colours[scenes["colour"]].view(-1, 3, 1, 1, 1)).round()


def sample_cameras(count: int, atlas: Atlas, texture_share: float, rng: torch.Generator) -> Scenes:
    """By the law of `world._sample_camera`, over the pictures of the atlas."""
    device = rng.device
    u = torch.rand(4, count, generator=rng, device=device)
    photographs = len(atlas.pixels) - atlas.textures
    share = texture_share if photographs and atlas.textures else float(photographs == 0)
    photograph = u[0] >= share
    index = torch.where(photograph, atlas.textures + (u[1] * photographs).long(), (u[1] * atlas.textures).long())
    motion = torch.randint(len(CAMERA_MOTIONS), (count,), generator=rng, device=device)
    steps = torch.zeros(len(CAMERA_MOTIONS), 2, device=device)
    for name, step in world.DIRECTIONS.items():
        steps[CAMERA_MOTIONS.index(name)] = torch.tensor(step)
    travel, half = world.PAN * (world.FRAMES - 1), world.SIZE / 2
    height, width = atlas.sizes[index].T.float()
    places = []
    for side, step, where in ((width, steps[motion, 0], u[2]), (height, steps[motion, 1], u[3])):
        low = half + travel * (-step).clamp(min=0)
        high = side - half - travel * step.clamp(min=0)
        places.append(low + (high - low) * where)
    return {"picture": index, "photograph": photograph, "motion": motion, "x": places[0], "y": places[1]}


def weights(start: Tensor, extent: Tensor, side: Tensor, longest: int) -> Tensor:
    """Pillow's bicubic weights of a window on one axis: start, extent [B, T], side [B] -> [B, T, 64, longest]."""
    out = torch.arange(world.SIZE, device=start.device) + 0.5
    centre = start[..., None] + out * (extent / world.SIZE)[..., None]
    at = torch.arange(longest, device=start.device) + 0.5
    x = (at - centre[..., None]).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    w = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    w = torch.where(torch.arange(longest, device=start.device) < side.view(-1, 1, 1, 1), w, 0.0)
    return w / w.sum(-1, keepdim=True)


def render_cameras(scenes: Scenes, atlas: Atlas, frames: int = world.FRAMES) -> Tensor:
    """Whole levels as float32 [B, 3, frames, 64, 64]."""
    device = scenes["x"].device
    t = torch.arange(frames, device=device, dtype=torch.float32)[None]
    steps = torch.zeros(len(CAMERA_MOTIONS), 2, device=device)
    for name, step in world.DIRECTIONS.items():
        steps[CAMERA_MOTIONS.index(name)] = torch.tensor(step)
    motion = scenes["motion"][:, None]
    zoom = torch.where(motion == CAMERA_MOTIONS.index("in"), t, 0.0)
    zoom = torch.where(motion == CAMERA_MOTIONS.index("out"), frames - 1 - t, zoom)
    extent = world.SIZE / (1 + world.ZOOM * zoom)
    x = scenes["x"][:, None] + steps[scenes["motion"], 0][:, None] * world.PAN * t
    y = scenes["y"][:, None] + steps[scenes["motion"], 1][:, None] * world.PAN * t
    height, width = atlas.sizes[scenes["picture"]].T
    pixels = atlas.pixels[scenes["picture"]].float()
    across = weights(x - extent / 2, extent, width, LONGEST)
    down = weights(y - extent / 2, extent, height, LONGEST)
    made = torch.einsum("bchw,btow->btcho", pixels, across).add_(0.5).floor_().clamp_(0, 255)
    return torch.einsum("btcho,btph->bctpo", made, down).add_(0.5).floor_().clamp_(0, 255)


def batch(count: int, atlas: Atlas, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips in [-1, 1], float32 [count, 3, 17, 64, 64], and their captions' places. The share of shapes is exact."""
    shapes = sample_shapes(round(SHAPES * count), rng)
    cameras = sample_cameras(count - round(SHAPES * count), atlas, TEXTURES / (1 - SHAPES), rng)
    levels = torch.cat([render_shapes(shapes), render_cameras(cameras, atlas)])
    return levels / 127.5 - 1, caption_index(shapes, cameras)


__all__ = ["SCALES", "Atlas", "batch", "captions", "render_cameras", "render_shapes", "texture"]
