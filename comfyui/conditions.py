"""Nodes that give pictures and clips for some frames of a latent. They can follow each other."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from torch import Tensor

from pusa.errors import InputError

from .latents import (
    PIXEL_FRAMES,
    Latent,
    frame_in,
    given,
    latent_frames,
    noise_levels,
    pixel_frames,
    samples_of,
)
from .widgets import CATEGORY, FIT, NOISE, widget


class PusaPicture:
    """Gives one latent frame from a picture."""

    TITLE = "Pusa: Picture at a Frame"
    DESCRIPTION = "Gives a frame of the clip. Several of these nodes can follow each other."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "place"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI calls it
        encoding = widget(
            "How a picture after frame 0 fills a latent frame of four pixel frames. repeat: as a still clip. single: "
            "as one frame, as in the official code."
        )
        noise = widget("0 keeps the picture exactly, 1 ignores it.", default=0.0, min=0.0, max=1.0, step=0.05)
        return {
            "required": {
                "latent": ("LATENT",),
                "vae": ("VAE",),
                "image": ("IMAGE",),
                "frame": ("INT", widget("The pixel frame; -1 is the last one.", default=0, min=-9999, max=9999)),
                "noise": ("FLOAT", noise),
                "encoding": (["repeat", "single"], encoding),
                "fit": FIT,
            }
        }

    def place(
        self, latent: Latent, vae: Any, image: Tensor, frame: int, noise: float, encoding: str, fit: str
    ) -> tuple[Latent]:
        if len(image) != 1:
            raise InputError(f"There are {len(image)} pictures for frame {frame}: choose one with ImageFromBatch.")
        samples = samples_of(latent)
        place = frame_in(frame, pixel_frames(samples.shape[2]))
        slot = -(-place // PIXEL_FRAMES)
        picture = fitted(image, samples, vae, fit)
        if slot == 0 or encoding == "single":
            encoded = vae.encode(picture)
        else:
            encoded = vae.encode(picture.expand(1 + PIXEL_FRAMES, -1, -1, -1))[:, :, 1:]
        return (given(latent, slot, encoded, [noise]),)


class PusaClip:
    """Gives consecutive latent frames from the frames of a video."""

    TITLE = "Pusa: Clip at a Frame"
    DESCRIPTION = "Gives consecutive frames of the clip from another clip."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "place"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        frame = widget(
            "The pixel frame at which the clip begins: 0 (with 4n+1 frames), or 4k-3 (with 4n frames). A negative "
            "number is the frame at which it ends: -1 is the last one.",
            default=0,
            min=-9999,
            max=9999,
        )
        return {
            "required": {
                "latent": ("LATENT",),
                "vae": ("VAE",),
                "images": ("IMAGE",),
                "frame": ("INT", frame),
                "noise": NOISE,
                "fit": FIT,
            }
        }

    def place(self, latent: Latent, vae: Any, images: Tensor, frame: int, noise: str, fit: str) -> tuple[Latent]:
        samples, count = samples_of(latent), len(images)
        frames = pixel_frames(samples.shape[2])
        last = frame_in(frame, frames) if frame < 0 else frame + count - 1
        first = last - count + 1
        if first < 0 or last >= frames:
            raise InputError(
                f"The {count} frames would be frames {first} to {last} of a clip of {frames}: give fewer frames."
            )
        if first == 0:
            slots = latent_frames(count)
        elif (first - 1) % PIXEL_FRAMES or count % PIXEL_FRAMES:
            below = first - 1 - (first - 1) % PIXEL_FRAMES + 1
            raise InputError(
                f"{count} frames from frame {first} on do not fill whole latent frames: after frame 0, a clip begins "
                f"at a frame 4k-3, such as {below} or {below + PIXEL_FRAMES}, and has a multiple of 4 frames."
            )
        else:
            slots = count // PIXEL_FRAMES
        levels = noise_levels(noise, slots)
        pictures = fitted(images, samples, vae, fit)
        if first:  # the latent of this copy stands for one frame; it is the context of the others
            pictures = torch.cat([pictures[:1], pictures])
        return (given(latent, -(-first // PIXEL_FRAMES), vae.encode(pictures)[:, :, -slots:], levels),)


def fitted(images: Tensor, samples: Tensor, vae: Any, fit: str) -> Tensor:
    """Return images [N, H, W, 3] at the size in pixels that the latents [B, C, F, h, w] have."""
    scale = vae.spacial_compression_encode()
    height, width = samples.shape[3] * scale, samples.shape[4] * scale
    images = images[..., :3]
    if images.shape[1:3] == (height, width):
        return images
    crop = "center" if fit == "crop" else "disabled"
    resized: Tensor = comfy.utils.common_upscale(images.movedim(-1, 1), width, height, "lanczos", crop)
    return resized.movedim(1, -1)
