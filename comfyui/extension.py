"""Nodes that continue a clip from its latents: the window that is sampled next, and the longer clip.

The last latent frames of the clip are the first ones of the window. The first latent frame of a window stands for one
pixel frame, and the latent frames of the clip stand for four. So the first one is encoded again, from one picture of
the clip. It is context only. The join takes the latents of the clip unchanged and those of the window that are new.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pusa.errors import InputError

from .latents import PIXEL_FRAMES, Latent, given, latent_frames, noise_levels, pixel_frames, samples_of
from .widgets import CATEGORY, NOISE, widget

OVERLAP = "pusa_overlap"
"""The key of a window's LATENT for the number of its first latent frames that the clip has, too. Samplers keep it."""


class PusaExtend:
    """Makes the window that continues a clip."""

    TITLE = "Pusa: Extend a Clip"
    DESCRIPTION = "The last frames of a clip become the first frames of the next window. Join both after sampling."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("window",)
    FUNCTION = "extend"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        overlap = widget(
            "Pixel frames of the clip that the window sees: 4m+1, at least 5.", default=13, min=5, max=9997, step=4
        )
        frames = widget(
            "Pixel frames that are added: a multiple of 4. The window has overlap + frames of them.",
            default=68,
            min=4,
            max=9996,
            step=4,
        )
        images = widget("The decoded frames of the clip. Without them, its beginning is decoded again.")
        return {
            "required": {
                "clip": ("LATENT",),
                "vae": ("VAE",),
                "overlap": ("INT", overlap),
                "frames": ("INT", frames),
                "noise": NOISE,
            },
            "optional": {"images": ("IMAGE", images)},
        }

    def extend(
        self, clip: Latent, vae: Any, overlap: int, frames: int, noise: str, images: Tensor | None = None
    ) -> tuple[Latent]:
        samples, shared = samples_of(clip), latent_frames(overlap)
        _one(samples)
        if not 2 <= shared <= samples.shape[2]:
            most = pixel_frames(samples.shape[2])
            raise InputError(f"The overlap is {overlap} frames of a clip of {most}: give 4m+1, from 5 to {most}.")
        if frames < PIXEL_FRAMES or frames % PIXEL_FRAMES:
            raise InputError(f"{frames} frames cannot be added: give a multiple of {PIXEL_FRAMES}.")
        if not samples[:, :, -shared:].any():
            raise InputError("The end of the clip is empty: connect the latent that a sampler made.")
        levels = noise_levels(noise, shared)
        first = samples.shape[2] - shared
        head = samples[:, :, :1] if first == 0 else vae.encode(_picture(samples, first, vae, images))
        known = torch.cat([head.to(samples), samples[:, :, first + 1 :]], dim=2)
        empty = samples.new_zeros(*samples.shape[:2], shared + frames // PIXEL_FRAMES, *samples.shape[3:])
        window = given({"samples": empty}, 0, known, levels)
        return ({**window, OVERLAP: shared},)


class PusaJoin:
    """Makes one clip of a clip and of the window that continues it."""

    TITLE = "Pusa: Join Clip and Extension"
    DESCRIPTION = "The clip with its latents unchanged, followed by the new frames of the window."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        window = widget("What the sampler made of the latent of the node that extends the clip.")
        return {"required": {"clip": ("LATENT",), "window": ("LATENT", window)}}

    def join(self, clip: Latent, window: Latent) -> tuple[Latent]:
        if OVERLAP not in window:
            raise InputError(
                "The window does not say how many frames it has in common with the clip: connect the sampler's latent "
                f"of a window that the node '{PusaExtend.TITLE}' made."
            )
        before, after = samples_of(clip), samples_of(window)
        if before.shape[:2] != after.shape[:2] or before.shape[3:] != after.shape[3:]:
            raise InputError(
                f"The clip {list(before.shape)} and the window {list(after.shape)} have different sizes: connect the "
                "clip that was extended."
            )
        return ({"samples": torch.cat([before, after[:, :, window[OVERLAP] :].to(before)], dim=2)},)


def _one(samples: Tensor) -> None:
    if len(samples) != 1:
        raise InputError(f"The latent has {len(samples)} clips: choose one with LatentFromBatch.")


def _picture(samples: Tensor, slot: int, vae: Any, images: Tensor | None) -> Tensor:
    """Return the last pixel frame of a latent frame of the clip, [1, H, W, 3]."""
    frame = pixel_frames(slot + 1) - 1
    if images is None:
        decoded: Tensor = vae.decode(samples[:, :, : slot + 1])
        return decoded.reshape(-1, *decoded.shape[-3:])[frame : frame + 1]
    if len(images) != (needed := pixel_frames(samples.shape[2])):
        raise InputError(f"There are {len(images)} images for a clip of {needed} frames: connect its decoded frames.")
    scale = vae.spacial_compression_encode()
    if images.shape[1:3] != (samples.shape[3] * scale, samples.shape[4] * scale):
        raise InputError("The images have another size than the clip: connect its decoded frames as they are.")
    return images[frame : frame + 1, ..., :3]
