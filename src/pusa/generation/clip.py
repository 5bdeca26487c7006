"""A generated clip: its frames, the latents they were decoded from, and the recipe that makes it again.

`outputs.py` names the three files of a saved clip. An extension or transition starts from the saved latents, so that no
decoding and encoding shifts the colours. The latents carry hashes of the video and of the autoencoder. If the video has
changed, they are not used.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError, first_line
from pusa.files import replacing, replacing_folder, sha256, write_json
from pusa.generation.outputs import check_place, files_of, latents_path, media_path, sidecar_path
from pusa.media.animations import frame_paths, write_animation, write_frames
from pusa.media.images import Frames
from pusa.media.videos import write_video

LONGEST_PROMPT = 60
"""characters of a prompt in the `repr` of a clip"""


@dataclass(frozen=True, eq=False)
class SampledClip:
    """A clip before it is decoded. The attributes are those of `GeneratedClip`."""

    latents: Tensor
    matrix: TimestepMatrix
    recipe: dict[str, Any]
    prompt: str


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
        prompt = self.prompt if len(self.prompt) <= LONGEST_PROMPT else f"{self.prompt[: LONGEST_PROMPT - 1]}…"
        saved = f", saved as {self.saved['path']!r}" if self.saved else ""
        return f"GeneratedClip({count} frames of {width}x{height} at {self.fps:g} fps, prompt={prompt!r}{saved})"

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write the clip at `path`, and next to it the sidecar (.json) and the latents; return the path of the clip.

        The suffix decides: .mp4, .gif (256 colours for each frame) or .webp (lossless). With .png, each frame is a PNG
        in a folder of that name without the suffix, and the path of this folder is returned.

        overwrite: whether a clip that exists at `path` is replaced. If not, it is an error.

        All three files are complete before the first is renamed to its place. Missing folders are made. Raises the
        errors of `pusa.generation.outputs.check_place`.
        """
        path = Path(path)
        check_place(path)
        if not overwrite and (taken := next((file for file in files_of(path) if file.exists()), None)):
            raise InputError(f"{taken} exists already: save the clip elsewhere, or with overwrite=True.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"A clip cannot be saved to {path}: {error.strerror}; write elsewhere.") from error
        target = media_path(path)
        with (
            replacing(target) if target == path else replacing_folder(target) as video,  # renamed last, so that
            # there is never a video without its sidecar
            replacing(sidecar_path(path)) as recipe,
            replacing(latents_path(path)) as latents,
        ):
            hashes = {"sha256": _write(video, self.frames, self.fps)}
            content = {"format": "pt", "video_sha256": hashes["sha256"], "vae": self.recipe["model"]["vae"]}
            latents.write_bytes(safetensors.torch.save({"latents": self.latents.contiguous()}, content))
            hashes["latents_sha256"] = latents_hash(self.latents)
            size = [self.frames.shape[2], self.frames.shape[1]]
            write_json(recipe, {**self.recipe, "result": {"frames": len(self.frames), "size": size, **hashes}})
        self.saved = {"path": str(target.resolve()), **hashes}
        return target


def _write(path: Path, frames: Frames, fps: float) -> str:
    """Write the frames as a video, an animated picture or, into a folder, as PNGs; return the SHA-256 of the files."""
    if path.is_dir():
        write_frames(path, frames)
        digest = hashlib.sha256()
        for frame in frame_paths(path, len(frames)):
            digest.update(frame.read_bytes())
        return digest.hexdigest()
    if path.suffix == ".mp4":
        write_video(path, frames, fps)
    else:
        write_animation(path, frames, fps)
    return sha256(path)


def kept_latents(video: Path, vae: str) -> Tensor | None:
    """The latents saved with a clip, float32 [1, C, F, h, w]; None if there are none, or another autoencoder's.

    vae: the fingerprint of the autoencoder. If the video has changed since, the latents are not used and a UserWarning
    says so. Raises InputError if the file is damaged.
    """
    path = latents_path(video)
    if not os.path.isfile(video) or not os.path.isfile(path):  # `Path.is_file` raises an error if its name is too long
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
        with safe_open(str(path), "np") as file:  # "pt" opens no path that is not UTF-8
            return torch.from_numpy(file.get_tensor("latents")), file.metadata() or {}
    except Exception as error:
        raise InputError(
            f"{path} is damaged ({first_line(error)}); delete it to work from the pixels of its video."
        ) from error


def latents_hash(latents: Tensor) -> str:
    """The SHA-256 of latents, independent of their file."""
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()
