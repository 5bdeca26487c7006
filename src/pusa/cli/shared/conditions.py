"""From flags to conditions: what was asked for is checked before a model is loaded, and placed when there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pusa.cli.shared.arguments import Source, listed, multiplier
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.generation.conditions import Clip, Image
    from pusa.generation.pipeline import Pipeline

VIDEO_KEYS = ("frames", "start", "noise")


@dataclass(frozen=True)
class Picture:
    """A picture at a pixel frame or time; `encoding` None is the library's choice."""

    path: Path
    at: str
    noise: float
    encoding: Literal["single", "repeat"] | None = None

    def condition(self) -> Image:
        from pusa.generation.conditions import Image

        return Image(self.path, frame=self.at, noise=self.noise, encoding=self.encoding)


@dataclass(frozen=True)
class Video:
    """A stretch of a clip that begins at `at`, or ends there when it is negative. noise: one, or one a latent frame."""

    path: Path
    at: str = "0"
    start: str = "0"
    frames: int | None = None
    noise: float | tuple[float, ...] = 0.0

    def condition(self, pipe: Pipeline, frames: int) -> Clip:
        """Placed in a clip of `frames` pixel frames."""
        from pusa.generation.clip_sources import open_footage
        from pusa.generation.conditions import Clip, frame_index

        footage = open_footage(self.path, pipe.defaults.fps, pipe.vae)
        at: int | str = self.at
        if self.at.startswith("-"):
            start = frame_index(self.start, footage.count, pipe.defaults.fps, f"the start of {self.path}")
            used = self.frames or footage.count - start
            at = frame_index(self.at, frames, pipe.defaults.fps, str(self.path)) - used + 1
            if at < 0:
                raise InputError(
                    f"--video {self.path}@{self.at}: {used} frames that end there begin before the clip of {frames} "
                    "frames does; use fewer with start=, or make a longer clip with --frames."
                )
            if at > 0:
                self._check_end(at, used, frames)
        return Clip(footage, at=at, frames=self.frames, noise=self.noise, start=self.start)

    def _check_end(self, at: int, used: int, frames: int) -> None:
        """Of a clip that ends at its frame: InputError unless its `used` frames from `at` on are groups of four."""
        name, last = f"--video {self.path}@{self.at}", at + used - 1
        if last % 4:
            below = last // 4 * 4
            ends = " or ".join(f"@{n - frames}" for n in (below, below + 4) if n)
            raise InputError(f"{name}: a clip further in ends with a group of four frames; let it end at {ends}.")
        if used % 4:
            fewer = used // 4 * 4
            tail = f" or start=-{fewer} for its last" if self.frames is None else ""
            advice = f"use frames={fewer} for its first{tail}" if fewer else "give a longer one"
            raise InputError(f"{name}: a clip that ends there has a multiple of four frames, not {used}; {advice}.")


def pictures(image: str | None, last_image: str | None, keyframes: Sequence[str], noise: float) -> list[Picture]:
    """Of --image, --last-image and --keyframe."""
    found = []
    for text, flag, at in ((image, "--image", "0"), (last_image, "--last-image", "-1")):
        if text is not None:
            source = Source.parse(text, flag)
            if source.at is not None:
                raise InputError(f"{flag} {text}: its frame is given already; use --keyframe {text} for another one.")
            found.append(Picture(source.path, at, noise if source.noise is None else source.noise))
    for text in keyframes:
        source = Source.parse(text, "--keyframe")
        if source.at is None:
            raise InputError(f"--keyframe {text}: say at which frame, for example --keyframe {text}@8.")
        found.append(Picture(source.path, source.at, noise if source.noise is None else source.noise))
    return found


def videos(texts: Sequence[str], noise: float) -> list[Video]:
    """Of --video."""
    sources = [Source.parse(text, "--video", keys=VIDEO_KEYS) for text in texts]
    return [
        Video(s.path, s.at or "0", s.start or "0", s.frames, noise if s.noise is None else s.noise) for s in sources
    ]


def official(
    image_paths: Sequence[str], video: Sequence[str], cond_position: str | None, noise_multipliers: str | None
) -> list[Picture | Video]:
    """Of --image_paths or one --video with --cond_position and --noise_multipliers, which count latent frames.

    Latent frame k >= 1 is pixel frames 4k-3 to 4k. A picture is a latent of its own there; of a video the latents
    of the named frames are kept and the others are left to the model.
    """
    if cond_position is None:
        flag = "--image_paths" if image_paths else "--noise_multipliers"
        raise InputError(f"{flag} needs --cond_position, the latent frames, for example --cond_position 0,20.")
    positions = listed(cond_position, "--cond_position", int)
    noises = [
        multiplier(str(m), "--noise_multipliers")
        for m in listed(noise_multipliers or "0", "--noise_multipliers", float)
    ]
    if len(noises) == 1:
        noises *= len(positions)
    if len(noises) != len(positions):
        raise InputError(
            f"--noise_multipliers has {len(noises)} numbers for {len(positions)} positions; give one each."
        )
    if image_paths:
        if "" in image_paths:
            raise InputError("--image_paths: a path is empty; name a file.")
        if len(image_paths) != len(positions):
            raise InputError(
                f"--cond_position has {len(positions)} positions for {len(image_paths)} pictures; give one each."
            )
        frames = [4 * k if k >= 0 else 4 * k + 3 for k in positions]
        return [
            Picture(Path(path), str(frame), noise, "single")
            for path, frame, noise in zip(image_paths, frames, noises, strict=True)
        ]
    if len(video) != 1:
        raise InputError("--cond_position goes with --image_paths, or with one --video.")
    if min(positions) < 0:
        raise InputError("--cond_position with a --video counts from its beginning: give latent frames from 0 on.")
    given = dict(zip(positions, noises, strict=True))
    slots = max(positions) + 1
    return [Video(Path(video[0]), frames=4 * slots - 3, noise=tuple(given.get(k, 1.0) for k in range(slots)))]
