"""From generated clips to the frames that a pipeline of diffusers returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip
from pusa.media.images import Frames

OutputType = Literal["np", "pil", "pt", "latent"]


@dataclass
class PusaPipelineOutput(BaseOutput):  # type: ignore[misc]
    """What `PusaPipeline` returns.

    Attributes:
        frames: the clips of the call. "np": float32 [B, N, H, W, 3] in [0, 1]. "pt": the same as a tensor [B, N, 3, H,
            W]. "pil": B lists of N pictures. "latent": float32 [B, C, F, h, w], normalised, on the CPU.
        clips: the finished clips as `pusa` has them: `clips[0].save("clip.mp4")` also writes the sidecar. Empty for
            "latent".
    """

    frames: Any
    clips: list[GeneratedClip]


def check(output_type: str) -> None:
    """Raise InputError for an output type that does not exist."""
    if output_type not in get_args(OutputType):
        raise InputError(f"The output_type {output_type!r} is unknown: choose {', '.join(get_args(OutputType))}.")


def converted(clips: Sequence[Frames], output_type: OutputType) -> Any:
    """Return B clips, each uint8 [N, H, W, 3], as one of the output types except "latent"."""
    if output_type == "pil":
        return [[PILImage.fromarray(frame) for frame in frames] for frames in clips]
    values = np.stack(clips).astype(np.float32) / 255
    return torch.from_numpy(values).permute(0, 1, 4, 2, 3) if output_type == "pt" else values
