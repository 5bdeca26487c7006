"""Where a part of a video stands in a clip: its frames and its latent frames, from lengths alone.

Nothing is decoded here and torch is not imported, so that a place that does not fit is told before a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pusa.errors import InputError
from pusa.generation.given import Clip, frame_index

if TYPE_CHECKING:
    from pusa.models.backbone import Geometry


@dataclass(frozen=True)
class Span:
    """The clip that conditions are placed in: its length in pixel frames, its rate, and its latent frames."""

    frames: int
    fps: float
    geometry: Geometry


@dataclass(frozen=True)
class Place:
    """A part of a video in a clip: its first frame in the video and in the clip, its length, its latent frames.

    noise: the noise multiplier of each latent frame.
    """

    label: str
    start: int
    at: int
    count: int
    slots: range
    noise: list[float]


def place_clip(condition: Clip, source: str, length: int, target: Span) -> Place:
    """Find the place of a clip. Raises InputError if it is outside the clip or does not fill whole latent frames.

    source: its name, for messages. length: its pixel frames at the target's rate.
    """
    label = f"{source} at frame {condition.at}"
    start = frame_index(condition.start, length, target.fps, f"the start of {source}")
    count = length - start if condition.frames is None else condition.frames
    if not 1 <= count <= length - start:
        raise InputError(
            f"{label}: {count} frames from frame {start} on were requested, but the clip has {length} in all."
        )
    at = frame_index(condition.at, target.frames, target.fps, source)
    if str(condition.at).strip().startswith("-"):
        at = _beginning(condition, label, at, count, target)
    if at + count > target.frames:
        raise InputError(
            f"{label}: its {count} frames end at frame {at + count - 1}, outside the clip of {target.frames}: use "
            f"frames={_most(at, target)}, or make a longer clip."
        )
    geometry = target.geometry
    _check_groups(label, at, count, min(length - start, target.frames - at), target)
    first = geometry.slot_of(at)
    slots = range(first, first + (geometry.latent_frames(count) if at == 0 else count // geometry.frames_per_slot))
    noise = list(condition.noise) if isinstance(condition.noise, tuple) else [condition.noise] * len(slots)
    if len(noise) != len(slots):
        raise InputError(
            f"{label}: {len(noise)} noise multipliers for {len(slots)} latent frames: give one, or one each."
        )
    return Place(label, start, at, count, slots, noise)


def _most(at: int, target: Span) -> int:
    """How many frames fit from frame `at` to the end of the target."""
    room, geometry = target.frames - at, target.geometry
    return geometry.groups(room) if at else geometry.whole(room)


def check_overlap(source: str, length: int, overlap: int, geometry: Geometry) -> None:
    """Raise InputError if a clip of `length` frames has fewer than the overlap."""
    longest, shortest = geometry.whole(length), geometry.pixel_frames(2)
    if length < overlap:
        better = f"an overlap of at most {longest}" if longest >= shortest else f"a clip of {shortest} frames or more"
        raise InputError(f"{source} has {length} frames, fewer than the overlap of {overlap}: give {better}.")


def edited_part(init: Clip, frames: int | None, source: str, length: int, target: Span) -> tuple[int, int]:
    """(first frame, number of frames) that are used of a clip to edit. Raises InputError if no clip has this length.

    frames: the length that the request gives, if it gives one. source, length: as for `place_clip`. The length of the
    target is not used.
    """
    start = frame_index(init.start, length, target.fps, f"the start of {source}")
    count = frames or init.frames or length - start
    if init.frames not in (None, count):
        raise InputError(
            f"The clip to edit is all of the new clip: {init.frames} frames of it are to be used, and frames is "
            f"{count}; give one of the two."
        )
    geometry = target.geometry
    if not geometry.is_whole(count) and (frames, init.frames) == (None, None):
        raise InputError(
            f"{source}: {count} frames cannot be edited, a clip has {geometry.form()} of them; "
            f"use the first of them with frames={geometry.whole(count)}."
        )
    return start, count


def _beginning(condition: Clip, label: str, last: int, count: int, target: Span) -> int:
    """The frame at which a clip of `count` frames begins that ends with frame `last` of the target."""
    geometry, length, at = target.geometry, target.frames, last - count + 1
    if at < 0:
        raise InputError(
            f"{label}: {count} frames that end there begin before the clip of {length} frames does; use fewer with "
            "start=, or make a longer clip."
        )
    if at > 0 and not geometry.is_whole(last + 1):
        below = geometry.groups(last)
        ends = " or ".join(f"{n - length}" for n in (below, below + geometry.frames_per_slot) if n)
        raise InputError(
            f"{label}: a clip that does not begin at frame 0 ends with a group of {geometry.frames_per_slot}; let it "
            f"end at frame {ends}."
        )
    if at > 0 and (fewer := geometry.groups(count)) != count:
        tail = f", or start=-{fewer} for its last" if condition.frames is None else ""
        advice = f"use frames={fewer} for its first{tail}" if fewer else "give a longer one"
        raise InputError(
            f"{label}: a clip that ends there has a multiple of {geometry.group} frames, not {count}; {advice}."
        )
    return at


def _check_groups(label: str, at: int, count: int, available: int, target: Span) -> None:
    """Raise InputError unless `count` frames from `at` on fill slots; advise numbers up to `available`."""
    geometry = target.geometry
    if not geometry.begins_slot(at):
        places = " or ".join(str(n) for n in geometry.nearest(at) if n + count <= target.frames)
        raise InputError(
            f"{label}: a clip that does not begin at frame 0 begins with a group of {geometry.group}: put it at frame "
            f"{places}."
        )
    if geometry.is_whole(count + bool(at)):
        return
    form, below = geometry.form(), geometry.nearest(count)[0]
    if at:
        form, below = geometry.form(plus=0), geometry.groups(count)
    better = " or ".join(str(n) for n in (below, below + geometry.frames_per_slot) if 0 < n <= available)
    advice = f"use {better} of them" if better else "give a longer clip"
    raise InputError(f"{label}: {count} frames do not fill whole latent frames, which takes {form}: {advice}.")
