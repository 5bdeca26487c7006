"""A generated clip: its frames, the latents they were decoded from, and the recipe that makes it again.

A saved clip is three files with one stem: `clip.mp4`, `clip.json` (the sidecar, with the recipe) and
`clip.latents.safetensors`. An extension or transition starts from these latents, so that no decoding and encoding
shifts the colours. The latents carry hashes of the video and of the autoencoder. If the video has changed, they are
not used.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.files import replacing, sha256, write_json
from pusa.images import Frames
from pusa.videos import write_video


@dataclass(eq=False, repr=False)
class GeneratedClip:
    """What `Pipeline.generate` returns.

    Attributes:
        frames: uint8 [N, H, W, 3].
        latents: float32 [1, C, F, h, w] on the CPU, normalised.
        fps: frames per second.
        matrix: the timestep matrix of the clip, or of the sampled window of an extension or transition.
        recipe: values for JSON, everything that `regenerate` needs.
        prompt: the text that it was made from.
        saved: the path and hashes of the files of the last `save`, or None.
    """

    frames: Frames
    latents: Tensor
    fps: float
    matrix: TimestepMatrix
    recipe: dict[str, Any]
    prompt: str
    saved: dict[str, str] | None = None

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"GeneratedClip({count} frames of {width}x{height} at {self.fps:g} fps, prompt={self.prompt!r})"

    def save(self, path: str | Path) -> Path:
        """Write the mp4 at `path`, and next to it the sidecar (.json) and the latents; return `path`.

        All three files are complete before the first is renamed to its place. Missing folders are made. Raises
        InputError for a name that does not end in .mp4, a read-only folder, or a full disk.
        """
        path = Path(path)
        if path.suffix != ".mp4":
            raise InputError(f"A clip cannot be saved to {path}: the name must end in .mp4.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"A clip cannot be saved to {path}: {error.strerror}; write elsewhere.") from error
        with (
            replacing(path) as video,  # renamed last, so that there is never a video without its sidecar
            replacing(path.with_suffix(".json")) as recipe,
            replacing(latents_path(path)) as latents,
        ):
            write_video(video, self.frames, self.fps)
            hashes = {"sha256": sha256(video)}
            content = {"format": "pt", "video_sha256": hashes["sha256"], "vae": self.recipe["model"]["vae"]}
            latents.write_bytes(safetensors.torch.save({"latents": self.latents.contiguous()}, content))
            hashes["latents_sha256"] = latents_hash(self.latents)
            size = [self.frames.shape[2], self.frames.shape[1]]
            write_json(recipe, {**self.recipe, "result": {"frames": len(self.frames), "size": size, **hashes}})
        self.saved = {"path": str(path.resolve()), **hashes}
        return path


def latents_path(video: Path) -> Path:
    """The path of the latents of a saved clip."""
    return video.with_suffix(".latents.safetensors")


def kept_latents(video: Path, vae: str) -> Tensor | None:
    """The latents saved with a clip, float32 [1, C, F, h, w]; None if there are none, or another autoencoder's.

    vae: the fingerprint of the autoencoder. If the video has changed since, the latents are not used and a UserWarning
    says so. Raises InputError if the file is damaged.
    """
    path = latents_path(video)
    if not video.is_file() or not path.is_file():
        return None
    latents, metadata = read_latents(path)
    if metadata.get("vae") != vae:
        return None
    if metadata.get("video_sha256") != sha256(video):
        warnings.warn(
            f"{video} has changed since {path.name} was written, so its pixels are used; delete the latents to "
            "silence this warning.",
            stacklevel=3,
        )
        return None
    return latents


def read_latents(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The latents in a file, float32 [1, C, F, h, w], and its metadata. Raises InputError if it is damaged."""
    try:
        with safe_open(str(path), "pt") as file:
            return file.get_tensor("latents"), file.metadata() or {}
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged ({reason}); delete it to work from the pixels of its video.") from error


def latents_hash(latents: Tensor) -> str:
    """The SHA-256 of latents, independent of their file."""
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()
