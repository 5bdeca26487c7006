"""The geometry of Wan's autoencoders: pixel frames per latent frame, and pixels per latent. Nothing imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pusa.models.backbone import Geometry

FRAMES_PER_SLOT = 4
GEOMETRIES = {16: Geometry(FRAMES_PER_SLOT, 8, (1, 2, 2)), 48: Geometry(FRAMES_PER_SLOT, 16, (1, 2, 2))}
"""{latent channels: geometry} of Wan2.1's autoencoder (16) and Wan2.2's autoencoder (48)."""


def geometry_of(vae: Mapping[str, Any], patch: tuple[int, int, int]) -> Geometry:
    """Return the geometry. vae: the autoencoder's configuration. patch: latents per token, of the transformer."""
    return Geometry(FRAMES_PER_SLOT, int(vae.get("scale_factor_spatial") or 8), patch)
