"""From the flags of `pusa generate`, which a batch file has as keys, to a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pusa.cli.shared.arguments import Source, listed, multiplier
from pusa.errors import InputError
from pusa.generation.given import Clip, Image
from pusa.generation.request import Generate

CLIP_KEYS = ("frames", "start", "noise")
OFFICIAL_FRAMES = 4
"""pixel frames of a latent frame in the official scripts, which exist for Wan alone"""


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
    """The request of `pusa generate`, whose docstring explains the flags. options: fields of `Generate`.

    Raises InputError for what they cannot mean.
    """
    multiplier(str(noise), "--noise")
    conditions: list[Image | Clip] = [*pictures(image, last_image, keyframe, noise)]
    if image_paths or cond_position or noise_multipliers:
        conditions += official(image_paths, video, cond_position, noise_multipliers or str(noise))
    else:
        conditions += videos(video, noise)
    if options.get("strength") is not None and edit is None:
        raise InputError("--strength says how much of a clip to --edit may change; give --edit PATH with it.")
    init = None
    if edit is not None:
        source = Source.parse(edit, "--edit", keys=("frames", "start"))
        init = Clip(source.path, frames=source.frames, start=source.start or 0)
    return Generate(conditions=tuple(conditions), init=init, **options)


def pictures(image: str | None, last_image: str | None, keyframes: Sequence[str], noise: float) -> list[Image]:
    """Of --image, --last-image and --keyframe."""
    found = []
    for text, flag, at in ((image, "--image", "0"), (last_image, "--last-image", "-1")):
        if text is not None:
            source = Source.parse(text, flag)
            if source.at is not None:
                raise InputError(f"{flag} {text}: its frame is given already; use --keyframe {text} for another one.")
            found.append(Image(source.path, at, noise if source.noise is None else source.noise))
    for text in keyframes:
        source = Source.parse(text, "--keyframe")
        if source.at is None:
            raise InputError(f"--keyframe {text}: say at which frame, for example --keyframe {text}@8.")
        found.append(Image(source.path, source.at, noise if source.noise is None else source.noise))
    return found


def videos(texts: Sequence[str], noise: float) -> list[Clip]:
    """Of --video."""
    sources = [Source.parse(text, "--video", keys=CLIP_KEYS) for text in texts]
    return [Clip(s.path, s.at or 0, s.frames, noise if s.noise is None else s.noise, s.start or 0) for s in sources]


def official(
    image_paths: Sequence[str], video: Sequence[str], cond_position: str | None, noise_multipliers: str | None
) -> list[Image | Clip]:
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
        frames = [OFFICIAL_FRAMES * k if k >= 0 else OFFICIAL_FRAMES * (k + 1) - 1 for k in positions]
        return [
            Image(Path(path), frame, noise, "single")
            for path, frame, noise in zip(image_paths, frames, noises, strict=True)
        ]
    if len(video) != 1:
        raise InputError("--cond_position goes with --image_paths, or with one --video.")
    if min(positions) < 0:
        raise InputError("--cond_position with a --video counts from its beginning: give latent frames from 0 on.")
    given = dict(zip(positions, noises, strict=True))
    slots = max(positions) + 1
    count = OFFICIAL_FRAMES * (slots - 1) + 1
    return [Clip(Path(video[0]), frames=count, noise=tuple(given.get(k, 1.0) for k in range(slots)))]
