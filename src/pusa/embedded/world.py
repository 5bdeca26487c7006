"""The synthetic world of the embedded base model: captioned clips, each a function of a seed.

There are two kinds of clip. A *shape* clip shows one coloured shape that moves over a grey background. Its first frame
and its caption determine all later frames, so a generated clip can be compared with the truth pixel by pixel. A
*camera* clip moves a viewport over a picture (a photograph or a procedural texture), so that the tiny model can also
move a real picture. Lengths are in pixels of the 64 x 64 canvas, times in frames of an 8 fps clip; y points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from pusa.media.images import Frames

Split = Literal["train", "heldout"]

SIZE = 64
FRAMES = 17
FPS = 8

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "yellow": (230, 215, 40),
    "green": (50, 190, 60),
    "cyan": (50, 205, 215),
    "blue": (50, 75, 230),
    "magenta": (220, 60, 210),
}
BACKGROUNDS = ("black", "white", "gradient", "checkered")
MOTIONS: dict[str, str] = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
    "spin": "spins",
    "still": "stays still",
}
CAMERA_MOTIONS: dict[str, str] = {
    "left": "pans left",
    "right": "pans right",
    "up": "pans up",
    "down": "pans down",
    "in": "zooms in",
    "out": "zooms out",
}
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

SPEED = 1.5
"""pixels per frame of a moving shape; the borders reflect it"""
GROWTH = 0.04
"""a growing shape has the radius r (1 + GROWTH t), a shrinking shape r / (1 + GROWTH t)"""
SPIN = 6.0
"""degrees per frame, clockwise on the screen"""
PAN = 1.0
"""pixels per frame of a panning camera"""
ZOOM = 0.02
"""a zooming camera shows a window of SIZE / (1 + ZOOM t) pixels"""

CAMERA_SHARE = 0.3
"""the share of camera clips in `sample`"""


@dataclass(frozen=True)
class ShapeScene:
    """One shape on a grey background. x, y (centre) and radius: in pixels, at frame 0."""

    shape: str
    colour: str
    background: str
    motion: str
    x: float
    y: float
    radius: float

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {MOTIONS[self.motion]} on a {self.background} background"


@dataclass(frozen=True)
class CameraScene:
    """A viewport over a picture. scale: the short side of the scaled picture in pixels. x, y: the centre at frame 0."""

    picture: str
    motion: str
    scale: int
    x: float
    y: float

    @property
    def caption(self) -> str:
        over = "texture" if self.picture.startswith("texture") else "photograph"
        return f"the camera {CAMERA_MOTIONS[self.motion]} over a {over}"


Scene = ShapeScene | CameraScene


def sample(seed: int, split: Split = "train", kind: Literal["any", "shape", "camera"] = "any") -> Scene:
    """The scene of a seed, an integer >= 0. The two splits have no random stream and no photograph in common."""
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    camera = rng.random() < CAMERA_SHARE
    if kind == "camera" or (kind == "any" and camera):
        return _sample_camera(rng, split)
    return _sample_shape(rng)


def render(scene: Scene, frames: int = FRAMES) -> Frames:
    """The clip of a scene, uint8 [frames, 64, 64, 3]."""
    if isinstance(scene, ShapeScene):
        return np.stack([_draw_shape(scene, t) for t in range(frames)])
    return film(_scaled(scene.picture, scene.scale), scene.motion, scene.x, scene.y, frames)


# --- shapes ---------------------------------------------------------------------------------------------------------


def _sample_shape(rng: np.random.Generator) -> ShapeScene:
    motion = str(rng.choice(list(MOTIONS)))
    # A spinning circle looks like a still one.
    shape = str(rng.choice([s for s in SHAPES if motion != "spin" or s != "circle"]))
    low, high = {"grow": (7, 10), "shrink": (14, 18)}.get(motion, (9, 14))
    radius = float(rng.uniform(low, high))
    largest = radius * (1 + GROWTH * (FRAMES - 1)) if motion == "grow" else radius
    margin = largest + 1
    x, y = rng.uniform(margin, SIZE - margin, size=2)
    return ShapeScene(
        shape,
        str(rng.choice(list(COLOURS))),
        str(rng.choice(BACKGROUNDS)),
        motion,
        float(x),
        float(y),
        radius,
    )


def bounce(position: float, low: float, high: float) -> float:
    """The place of a point that starts in [low, high] and moves to `position`, if both ends reflect it."""
    span = high - low
    folded = (position - low) % (2 * span)
    return low + (folded if folded <= span else 2 * span - folded)


def pose(scene: ShapeScene, t: float) -> tuple[float, float, float, float]:
    """The centre x, centre y, radius (pixels) and angle (degrees, clockwise) of the shape at frame `t`."""
    x, y, radius, angle = scene.x, scene.y, scene.radius, 0.0
    if scene.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[scene.motion]
        x = bounce(x + dx * SPEED * t, radius, SIZE - radius)
        y = bounce(y + dy * SPEED * t, radius, SIZE - radius)
    elif scene.motion == "grow":
        radius *= 1 + GROWTH * t
    elif scene.motion == "shrink":
        radius /= 1 + GROWTH * t
    elif scene.motion == "spin":
        angle = SPIN * t
    return x, y, radius, angle


@lru_cache(maxsize=1)
def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centres = np.arange(SIZE) + 0.5
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return x, y


def coverage(shape: str, x: float, y: float, radius: float, angle: float = 0.0) -> NDArray[np.float64]:
    """The share of each pixel that a shape covers, [64, 64] in [0, 1], from its signed distance.

    Raises ValueError for an unknown shape.
    """
    gx, gy = _grid()
    a = np.deg2rad(angle)
    dx, dy = gx - x, gy - y
    u, v = np.cos(a) * dx + np.sin(a) * dy, -np.sin(a) * dx + np.cos(a) * dy
    if shape == "circle":
        distance = np.hypot(u, v) - radius
    elif shape == "square":
        distance = np.maximum(abs(u), abs(v)) - 0.86 * radius
    elif shape == "triangle":
        distance = np.maximum(v, np.sqrt(0.75) * abs(u) - 0.5 * v) - 0.62 * radius
    elif shape == "cross":
        bar = np.maximum(abs(u) - radius, abs(v) - 0.36 * radius)
        distance = np.minimum(bar, np.maximum(abs(v) - radius, abs(u) - 0.36 * radius))
    else:
        raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(SHAPES)}")
    covered: NDArray[np.float64] = np.clip(0.5 - distance, 0, 1)
    return covered


@lru_cache(maxsize=len(BACKGROUNDS))
def background(name: str) -> NDArray[np.float64]:
    """A grey background, [64, 64, 1] in [0, 255]. ValueError for an unknown name."""
    x, y = _grid()
    if name == "black":
        grey = np.full_like(x, 20.0)
    elif name == "white":
        grey = np.full_like(x, 235.0)
    elif name == "gradient":
        grey = 60 + 140 * y / SIZE
    elif name == "checkered":
        grey = np.where((x // 16 + y // 16) % 2 == 0, 90.0, 165.0)
    else:
        raise ValueError(f"unknown background {name!r}; the world has {', '.join(BACKGROUNDS)}")
    return grey[..., None]


def _draw_shape(scene: ShapeScene, t: float) -> Frames:
    x, y, radius, angle = pose(scene, t)
    alpha = coverage(scene.shape, x, y, radius, angle)[..., None]
    image = (1 - alpha) * background(scene.background) + alpha * np.array(COLOURS[scene.colour])
    pixels: Frames = np.rint(image).astype(np.uint8)
    return pixels


# --- cameras --------------------------------------------------------------------------------------------------------

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("astronaut", "motorcycle_left", "motorcycle_right", "hubble_deep_field", "retina", "immunohistochemistry"),
        *("brick", "grass", "gravel", "coins", "moon", "camera"),
    ),
    "heldout": ("chelsea", "coffee", "rocket"),
}
"""photographs in the scikit-image wheel; no held-out photograph was used in training"""
TEXTURES = 4096


@lru_cache(maxsize=64)
def _picture(name: str) -> PILImage.Image:
    if name.startswith("texture"):
        return PILImage.fromarray(_texture(int(name.removeprefix("texture"))))
    from skimage import data

    if name.startswith("motorcycle"):
        left, right, _ = data.stereo_motorcycle()
        pixels = left if name.endswith("left") else right
    else:
        pixels = getattr(data, name)()
    return PILImage.fromarray(pixels).convert("RGB")


def _texture(seed: int) -> Frames:
    """Coloured noise with a 1/f^a spectrum, like natural pictures, uint8 [128, 128, 3]."""
    rng = np.random.default_rng([seed, 2])
    size = 2 * SIZE
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    decay = frequency ** -rng.uniform(1.2, 2.2)
    decay[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, size, size))) * decay, s=(size, size))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    mixed = np.einsum("ij,jhw->hwi", [1, 0, 0] + rng.normal(0, 0.4, (3, 3)), noise)
    mixed = mixed / mixed.std() * rng.uniform(30, 60) + rng.uniform(70, 185, size=3)
    pixels: Frames = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return pixels


@lru_cache(maxsize=256)
def _scaled(name: str, scale: int) -> PILImage.Image:
    picture = _picture(name)
    ratio = scale / min(picture.size)
    width, height = (max(scale, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), PILImage.Resampling.LANCZOS)


def _sample_camera(rng: np.random.Generator, split: Split) -> CameraScene:
    motion = str(rng.choice(list(CAMERA_MOTIONS)))
    texture = rng.random() < 0.5
    index = int(rng.integers(TEXTURES))
    picture = f"texture{index + (TEXTURES if split == 'heldout' else 0)}"
    photograph = str(rng.choice(PHOTOGRAPHS[split]))
    name = picture if texture else photograph
    scale = int(rng.choice([96, 112, 128]))
    width, height = _scaled(name, scale).size
    dx, dy = DIRECTIONS.get(motion, (0.0, 0.0))
    travel = PAN * (FRAMES - 1)
    half = SIZE / 2
    x = rng.uniform(half + travel * max(-dx, 0), width - half - travel * max(dx, 0))
    y = rng.uniform(half + travel * max(-dy, 0), height - half - travel * max(dy, 0))
    return CameraScene(name, motion, scale, float(x), float(y))


def viewport(motion: str, x: float, y: float, t: float, frames: int = FRAMES) -> tuple[float, float, float, float]:
    """The window (left, top, right, bottom) of a camera at (x, y) at frame `t`, in pixels of the picture."""
    dx, dy = DIRECTIONS.get(motion, (0.0, 0.0))
    step = {"in": t, "out": frames - 1 - t}.get(motion, 0.0)
    half = SIZE / 2 / (1 + ZOOM * step)
    x, y = x + dx * PAN * t, y + dy * PAN * t
    return x - half, y - half, x + half, y + half


def film(
    picture: PILImage.Image, motion: str, x: float, y: float, frames: int = FRAMES, density: float = 1.0
) -> Frames:
    """The clip of a camera that begins at (x, y) and moves over a picture, uint8 [frames, 64, 64, 3].

    motion: one of `CAMERA_MOTIONS`. x, y: in pixels of the clip. density: pixels of the picture along a pixel of the
    clip. The window must stay inside of the picture.
    """
    boxes = [viewport(motion, x, y, t) for t in range(frames)]
    boxes = [(left * density, top * density, right * density, bottom * density) for left, top, right, bottom in boxes]
    views = [picture.resize((SIZE, SIZE), PILImage.Resampling.BICUBIC, box=box) for box in boxes]
    return np.stack([np.asarray(view) for view in views])


def contact_sheet(clips: Sequence[Frames], columns: int = 9) -> Frames:
    """The clips as rows of evenly spaced frames, uint8 [rows * H, columns * W, 3]."""
    rows = []
    for clip in clips:
        picked = np.linspace(0, len(clip) - 1, columns).round().astype(int)
        rows.append(np.concatenate(list(clip[picked]), axis=1))
    return np.concatenate(rows)
