"""An opened video: its pixels, its latents if it was generated, and its entry in a sidecar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip, kept_latents, latents_hash
from pusa.generation.pictures import array_record, file_record
from pusa.media.images import Frames
from pusa.media.videos import read_every_frame, read_video
from pusa.models.backbone import Encoders


@dataclass(eq=False)
class ClipSource:
    """A source of frames, of latents, or of both.

    A saved clip has latents only. Its frames are decoded from them when they are needed, so that the coding error of
    the video file does not matter. latents: float32 [1, C, F, h, w].
    """

    label: str
    record: dict[str, Any]
    backbone: Encoders
    latents: Tensor | None = None
    pixels: Frames | None = None

    @cached_property
    def frames(self) -> Frames:
        """uint8 [N, H, W, 3]."""
        return self.backbone.decode(self._latents) if self.pixels is None else self.pixels

    @property
    def count(self) -> int:
        """The number of pixel frames."""
        if self.pixels is not None:
            return len(self.pixels)
        return self.backbone.geometry.pixel_frames(self._latents.shape[2])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        if self.pixels is not None:
            return self.pixels.shape[2], self.pixels.shape[1]
        factor = self.backbone.geometry.spatial
        return self._latents.shape[4] * factor, self._latents.shape[3] * factor

    @property
    def _latents(self) -> Tensor:
        assert self.latents is not None
        return self.latents


def open_clip(
    src: str | Path | Frames | GeneratedClip | ClipSource, fps: float | None, backbone: Encoders
) -> ClipSource:
    """Open a source. A path is read at `fps` frames per second, or frame by frame if `fps` is None.

    Clips of this autoencoder keep their latents.
    """
    if isinstance(src, ClipSource):
        return src
    if isinstance(src, GeneratedClip):
        own = src.recipe["model"]["vae"] == backbone.vae_fingerprint
        unsaved = {"path": None, "latents_sha256": latents_hash(src.latents)}
        record: dict[str, Any] = unsaved if src.saved is None else {**src.saved}
        label = src.saved["path"] if src.saved else "the given clip"
        return ClipSource(label, record, backbone, src.latents if own else None, src.frames)
    if isinstance(src, (str, Path)):
        kept = kept_latents(Path(src), backbone.vae_fingerprint)
        if kept is not None:
            record = file_record(Path(src)) | {"latents_sha256": latents_hash(kept)}
            return ClipSource(str(src), record, backbone, kept)
        frames = read_every_frame(src) if fps is None else read_video(src, fps=fps)[0]
        return ClipSource(str(src), file_record(Path(src)), backbone, pixels=frames)
    frames = np.asarray(src)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InputError(f"A clip must be uint8 frames [N, H, W, 3], not {frames.dtype} {list(frames.shape)}.")
    return ClipSource("the given clip", array_record(frames), backbone, pixels=frames)
