"""Build a request from the flags of `pusa generate` or from the keys of a line of a batch file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pusa.cli.shared.arguments import Source, multiplier, number_list
from pusa.errors import InputError
from pusa.generation.given import Clip, Image
from pusa.generation.request import Generate

CLIP_KEYS = ("frames", "start", "noise")
OFFICIAL_FRAMES = 4
"""Pixel frames of one latent frame in the official scripts, which support only Wan."""


def request_of(
    *,
    image: str | None = None,
    last_image: str | None = None,
    keyframe: Sequence[str] = (),
    video: Sequence[str] = (),
    edit: str | None = None,
    noise: float = 0.0,
    image_paths: Sequence[str] = (),
    cond_position: str | None = None,
    noise_multipliers: str | None = None,
    options: Mapping[str, Any],
) -> Generate:
    """Return the request for the flags of `pusa generate`; its docstring explains them.

    options: further fields of `Generate`. Raises InputError if a flag is wrong or two flags contradict each other.
    """
    multiplier(str(noise), "--noise")
    conditions: list[Image | Clip] = [*image_conditions(image, last_image, keyframe, noise)]
    if image_paths or cond_position or noise_multipliers:
        conditions += official_conditions(image_paths, video, cond_position, noise_multipliers or str(noise))
    else:
        conditions += clip_conditions(video, noise)
    if options.get("strength") is not None and edit is None:
        raise InputError("--strength sets how much of the edited clip may change; give --edit PATH, too.")
    init = None
    if edit is not None:
        source = Source.parse(edit, "--edit", keys=("frames", "start"))
        init = Clip(source.path, frames=source.frames, start=source.start or 0)
    return Generate(conditions=tuple(conditions), init=init, **options)


def image_conditions(image: str | None, last_image: str | None, keyframes: Sequence[str], noise: float) -> list[Image]:
    """Return the conditions of --image, --last-image and --keyframe. noise: the default noise multiplier."""
    found = []
    for text, flag, at in ((image, "--image", "0"), (last_image, "--last-image", "-1")):
        if text is not None:
            source = Source.parse(text, flag)
            if source.at is not None:
                raise InputError(f"{flag} {text}: this flag sets the frame itself; give --keyframe {text} instead.")
            found.append(Image(source.path, at, noise if source.noise is None else source.noise))
    for text in keyframes:
        source = Source.parse(text, "--keyframe")
        if source.at is None:
            raise InputError(f"--keyframe {text}: the frame is missing; give it, for example --keyframe {text}@8.")
        found.append(Image(source.path, source.at, noise if source.noise is None else source.noise))
    return found


def clip_conditions(texts: Sequence[str], noise: float) -> list[Clip]:
    """Return the conditions of --video. noise: the default noise multiplier."""
    sources = [Source.parse(text, "--video", keys=CLIP_KEYS) for text in texts]
    return [Clip(s.path, s.at or 0, s.frames, noise if s.noise is None else s.noise, s.start or 0) for s in sources]


def official_conditions(
    image_paths: Sequence[str], video: Sequence[str], cond_position: str | None, noise_multipliers: str | None
) -> list[Image | Clip]:
    """Return the conditions of --image_paths, or of one --video, with --cond_position and --noise_multipliers.

    These flags count latent frames. Latent frame k >= 1 stands for pixel frames 4k-3 to 4k. A picture fills one latent
    frame. From a video, whose every frame is taken as it is, the latent frames at the given positions are kept, and the
    model makes the others.
    """
    if cond_position is None:
        flag = "--image_paths" if image_paths else "--noise_multipliers"
        raise InputError(f"{flag} needs the latent frames; give --cond_position, for example --cond_position 0,20.")
    positions = number_list(cond_position, "--cond_position", int)
    noises = [
        multiplier(str(m), "--noise_multipliers")
        for m in number_list(noise_multipliers or "0", "--noise_multipliers", float)
    ]
    if len(noises) == 1:
        noises *= len(positions)
    if len(noises) != len(positions):
        raise InputError(
            f"--noise_multipliers has {len(noises)} numbers for {len(positions)} positions; give one number for each "
            "position."
        )
    if image_paths:
        if "" in image_paths:
            raise InputError("--image_paths: a path is empty; give a file.")
        if len(image_paths) != len(positions):
            raise InputError(
                f"--cond_position has {len(positions)} positions for {len(image_paths)} pictures; give one position "
                "for each picture."
            )
        frames = [OFFICIAL_FRAMES * k if k >= 0 else OFFICIAL_FRAMES * (k + 1) - 1 for k in positions]
        return [
            Image(Path(path), frame, noise, "single")
            for path, frame, noise in zip(image_paths, frames, noises, strict=True)
        ]
    if len(video) != 1:
        raise InputError("--cond_position needs pictures or one video; give --image_paths, or one --video.")
    if min(positions) < 0:
        raise InputError("--cond_position with --video cannot be negative; give latent frames from 0 on.")
    noise_at = dict(zip(positions, noises, strict=True))
    slots = max(positions) + 1
    count = OFFICIAL_FRAMES * (slots - 1) + 1
    noise = tuple(noise_at.get(k, 1.0) for k in range(slots))
    return [Clip(Path(video[0]), frames=count, noise=noise, rate="file")]
