"""Latent frames in ComfyUI's LATENT: which are given, and with how much noise.

A LATENT of a Wan clip is a dictionary. `samples` is [B, C, F, h, w], with F latent frames. `noise_mask` is the noise
multiplier of each latent frame, from 0 (given, stays as it is) to 1 (not given). ComfyUI's own nodes write such masks,
too. Latent frame 0 is pixel frame 0, and latent frame k >= 1 is pixel frames 4k-3 to 4k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pusa.errors import InputError

PIXEL_FRAMES = 4
"""Pixel frames of every latent frame after the first."""
Latent = dict[str, Any]


def latent_frames(frames: int) -> int:
    """Return the number of latent frames that 4n+1 pixel frames need. InputError for another number."""
    if frames < 1 or (frames - 1) % PIXEL_FRAMES:
        below = max(1, (frames - 1) // PIXEL_FRAMES * PIXEL_FRAMES + 1)
        raise InputError(f"{frames} frames do not fill whole latent frames: give {below} or {below + PIXEL_FRAMES}.")
    return (frames - 1) // PIXEL_FRAMES + 1


def pixel_frames(latents: int) -> int:
    """Return the number of pixel frames of a clip of `latents` >= 1 latent frames."""
    return PIXEL_FRAMES * (latents - 1) + 1


def frame_in(frame: int, frames: int) -> int:
    """Return the pixel frame that a number means; a negative one counts from the end. InputError outside the clip."""
    if not -frames <= frame < frames:
        raise InputError(
            f"Frame {frame} is outside the clip, which has {frames} frames: give 0 to {frames - 1}, or -1 for the last."
        )
    return frame % frames


def samples_of(latent: Latent) -> Tensor:
    """Return the samples, [B, C, F, h, w]. InputError for a latent of pictures."""
    samples: Tensor = latent["samples"]
    if samples.ndim != 5:
        raise InputError(
            f"The latent has the shape {list(samples.shape)}, and a clip has [batch, channels, frames, height, width]: "
            "make it with a node for video, such as EmptyHunyuanLatentVideo."
        )
    return samples


def multipliers(latent: Latent) -> list[float]:
    """Return the noise multiplier of each latent frame; 1 without a mask.

    InputError for a mask with another number of frames, with values outside [0, 1], or that varies inside a frame.
    """
    samples, mask = samples_of(latent), latent.get("noise_mask")
    frames = samples.shape[2]
    if mask is None:
        return [1.0] * frames
    if mask.ndim < 5:  # ComfyUI reads [F, h, w] in this way
        mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    if mask.shape[2] != frames:
        raise InputError(
            f"The noise mask has {mask.shape[2]} frames and the latent has {frames}: make it for latent frames."
        )
    columns = mask.float().movedim(2, 0).flatten(1)
    if not torch.equal(columns.amin(dim=1), columns.amax(dim=1)):
        raise InputError(
            "The noise mask varies inside a latent frame, and Pusa has one noise level per latent frame: use the Pusa "
            "nodes to give frames."
        )
    values: list[float] = columns[:, 0].tolist()
    if not all(0 <= value <= 1 for value in values):
        raise InputError("The noise mask has a value outside 0 to 1: 0 keeps a frame, and 1 makes it from noise.")
    return values


def given(latent: Latent, first: int, frames: Tensor, noise: list[float]) -> Latent:
    """Return the latent with `frames` [1, C, n, h, w] given from latent frame `first` on.

    noise: the multipliers of the n frames. InputError if a frame is given already or the shapes do not fit.
    """
    samples, levels = samples_of(latent).clone(), multipliers(latent)
    places = range(first, first + frames.shape[2])
    if frames.shape[1] != samples.shape[1] or frames.shape[3:] != samples.shape[3:]:
        raise InputError(
            f"The VAE makes latents of {frames.shape[1]} channels and {frames.shape[4]}x{frames.shape[3]}, and the "
            f"latent has {samples.shape[1]} and {samples.shape[4]}x{samples.shape[3]}: use the VAE of the model."
        )
    for place, level in zip(places, noise, strict=True):
        if levels[place] < 1:
            raise InputError(
                f"Latent frame {place} (pixel frame {max(0, pixel_frames(place + 1) - PIXEL_FRAMES)} and later) is "
                "given twice: keep one of both."
            )
        levels[place] = level
    samples[:, :, first : places.stop] = frames.to(samples)
    return {**latent, "samples": samples, "noise_mask": mask_of(levels, samples)}


def mask_of(levels: list[float], samples: Tensor) -> Tensor:
    """Return the noise mask [1, 1, F, h, w] of one multiplier per latent frame."""
    column = torch.tensor(levels, dtype=torch.float32)[None, None, :, None, None]
    return column.expand(1, 1, -1, *samples.shape[3:]).contiguous()


def noise_levels(text: str, count: int) -> list[float]:
    """Read one noise multiplier, or one for each of `count` latent frames: `0.3`, or `0, 0.3, 0.5`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"The noise is {text!r}: give numbers from 0 to 1 with commas between them.") from None
    if not all(0 <= value <= 1 for value in values):
        raise InputError(f"The noise is {text!r}: give numbers from 0 (keeps a frame) to 1 (ignores it).")
    if len(values) not in (1, count):
        raise InputError(f"The noise has {len(values)} numbers for {count} latent frames: give one, or one for each.")
    return values * count if len(values) == 1 else values
