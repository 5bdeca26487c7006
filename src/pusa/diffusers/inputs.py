"""From the pictures and videos that users of diffusers have to the conditions of a request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.generation.given import Clip, Image
from pusa.generation.pictures import Picture
from pusa.media.images import to_rgb

Noise = float | Sequence[float]


def conditions(image: Any, last_image: Any, video: Any, noise: Noise) -> list[Image | Clip]:
    """Return the conditions of the pictures and of the video that are not None.

    image, last_image: see `picture`. They become the first and the last frame. video: see `frames`. It becomes the
    first frames. noise: one multiplier for all; with pictures alone, one for each; with a video alone, one for each of
    its latent frames. Raises InputError for several multipliers that do not say which of them is for what.
    A number without pictures and video has no effect.
    """
    pictures = [(value, frame) for value, frame in ((image, 0), (last_image, -1)) if value is not None]
    several = isinstance(noise, (list, tuple))
    if several and video is not None and pictures:
        raise InputError(
            "noise has several numbers, and both pictures and a video are given: give one number, or conditions with "
            "a noise of their own."
        )
    if several and video is None and len(noise) != len(pictures):  # type: ignore[arg-type]
        count = len(pictures)
        raise InputError(
            f"noise has {len(noise)} numbers and {count} picture{'s are' if count != 1 else ' is'} given: "  # type: ignore[arg-type]
            "give one number for all, or one for each."
        )
    made: list[Image | Clip] = []
    for place, (value, frame) in enumerate(pictures):
        made.append(Image(picture(value), frame, noise[place] if several else noise))  # type: ignore[index,arg-type]
    if video is not None:
        made.append(Clip(frames(video), noise=tuple(noise) if several else noise))  # type: ignore[arg-type]
    return made


def picture(value: Any) -> Any:
    """Return a picture as `pusa.Image` takes it: a path, a PIL picture, or uint8 [H, W, 3].

    value: one of these; floats in [0, 1], as an array [H, W, 3] or as a tensor [3, H, W]; or a list or batch of one.
    """
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise InputError(f"There are {len(value)} pictures for one frame: give one, and others as conditions.")
        return picture(value[0])
    if isinstance(value, (str, Path, PILImage.Image, Picture)):
        return value
    pixels = _channels_last(value, "The picture")
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    return _levels(pixels, "The picture", "[H, W, 3]", 3)


def frames(value: Any) -> Any:
    """Return a video as `pusa.Clip` takes it: a path, a generated clip, or uint8 [N, H, W, 3].

    value: one of these; a list of PIL pictures or of arrays; floats in [0, 1], as an array [N, H, W, 3] or as a tensor
    [N, 3, H, W]; or a batch of one.
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise InputError("The video has no frames: give at least one.")
        if isinstance(value[0], (list, tuple)) or getattr(value[0], "ndim", 0) > 3:
            if len(value) != 1:
                raise InputError(f"There are {len(value)} videos: give one, and others as conditions.")
            return frames(value[0])
        pictures = [to_rgb(x) if isinstance(x, PILImage.Image) else picture(x) for x in value]
        sizes = {np.shape(x) for x in pictures}
        if len(sizes) != 1 or any(isinstance(x, (str, Path)) for x in pictures):
            raise InputError("The frames of the video are not arrays or PIL pictures of one size: give such frames.")
        return np.stack(pictures)
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        return value
    pixels = _channels_last(value, "The video")
    if pixels.ndim == 5 and len(pixels) == 1:
        pixels = pixels[0]
    return _levels(pixels, "The video", "[N, H, W, 3]", 4)


def _channels_last(value: Any, what: str) -> NDArray[Any]:
    """Return an array. The channels of a tensor are before its height, those of an array after its width."""
    if isinstance(value, torch.Tensor):
        pixels = value.detach().cpu()
        pixels = pixels.float() if pixels.is_floating_point() else pixels
        return (pixels.movedim(-3, -1) if pixels.ndim >= 3 else pixels).numpy()
    if not isinstance(value, np.ndarray):
        raise InputError(f"{what} is of type {type(value).__name__}: give a path, a PIL picture, an array or a tensor.")
    return value


def _levels(pixels: NDArray[Any], what: str, shape: str, axes: int) -> NDArray[np.uint8]:
    if pixels.ndim != axes or pixels.shape[-1] != 3 or 0 in pixels.shape:
        first = shape.removesuffix("H, W, 3]")
        raise InputError(
            f"{what} has the shape {list(pixels.shape)}: give an array {shape}, or a tensor {first}3, H, W]."
        )
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"{what} has values of type {pixels.dtype}: give uint8, or floats from 0 to 1.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            f"{what} has values from {pixels.min():g} to {pixels.max():g}: give floats from 0 to 1, or uint8."
        )
    levels: NDArray[np.uint8] = np.rint(pixels * 255).astype(np.uint8)
    return levels
