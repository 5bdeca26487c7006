"""From conditions to known latents: pictures and clips at given frames become latents at their slots.

A slot is a latent frame. Every slot that a condition covers gets one latent and one noise multiplier. The numbers
below are those of Wan, whose slots have four pixel frames; the code takes them from the backbone's geometry. Slot 0 is
frame 0, and slot k >= 1 is frames 4k-3 to 4k.

* A picture at frame 0 is encoded alone. This is exactly its latent in any clip that begins with it. A picture at a
  later frame fills a whole slot of four frames. `single` puts the latent of one frame there, as the official code
  does. `repeat` encodes five copies and takes the latent of the last four. The context is then a copy of the picture
  and not frame 0, because the frames before a keyframe resemble the keyframe more than the beginning of the clip.
* A clip at frame 0 is encoded as one video and needs 4n+1 frames. A clip at a later frame begins at a frame 4k-3 and
  has 4n frames, so that its groups of four stay together. It is encoded after up to 17 frames that precede it in its
  source, or after a copy of its first frame. The latents of this lead-in are dropped.
* A generated clip, or its file, has latents. If its groups of four match the slots, these latents are used unchanged:
  from its frame 4j on at frame 0 (for j >= 1 the latent of slot 0 is encoded from its picture), and from its frame
  4j+1 on at a later frame. Otherwise, and at another size, its frames are encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pusa.generation.given import Clip, Encoding, Image, claim, frame_index
from pusa.generation.pictures import open_picture
from pusa.generation.placement import Span, place_clip
from pusa.generation.sources import ClipSource, open_clip
from pusa.media.images import Fit, Frames, fit
from pusa.models.backbone import Encoders, Geometry

Known = Mapping[int, tuple[Tensor, float]]
"""{latent slot: (latent float32 [1, C, 1, h, w], noise multiplier)}"""

DEFAULT_ENCODING: Encoding = "repeat"
LEAD_IN = 5
"""slots that are encoded before a clip as its context"""


@dataclass(frozen=True)
class Target:
    """The clip that conditions are fitted to.

    frames: pixel frames. size: (width, height) in pixels. fit: how pictures of another shape are brought to the size.
    """

    frames: int
    size: tuple[int, int]
    fps: float
    fit: Fit
    backbone: Encoders

    def encode(self, frames: Frames) -> Tensor:
        """Latents of frames of any size, float32 [1, C, F, h, w] on the CPU."""
        return self.backbone.encode(fit(frames, self.size, self.fit)).cpu()

    @property
    def geometry(self) -> Geometry:
        """The geometry of the backbone."""
        return self.backbone.geometry


@dataclass
class Placed:
    """A condition whose slots are known and that is not encoded yet. record: its entry in the sidecar."""

    label: str
    slots: range
    noise: Sequence[float]
    record: dict[str, Any]
    encode: Callable[[], Tensor]


def resolve(
    conditions: Sequence[Image | Clip], target: Target
) -> tuple[dict[int, tuple[Tensor, float]], list[dict[str, Any]]]:
    """Encode all conditions: ({latent slot: (latent, noise multiplier)}, their entries in the sidecar).

    Raises InputError for a frame outside the clip, frames that do not fill whole slots, two conditions on one slot,
    and sources that cannot be read. All conditions are checked before the first is encoded.
    """
    placed = [place(condition, target) for condition in conditions]
    owners: dict[int, str] = {}
    for item in placed:
        claim(owners, item.slots, item.label, target.geometry.frames_of)
    known: dict[int, tuple[Tensor, float]] = {}
    for item in placed:
        encoded = item.encode()
        for i, slot in enumerate(item.slots):
            known[slot] = encoded[:, :, i : i + 1], item.noise[i]
    return known, [item.record for item in placed]


def place(condition: Image | Clip, target: Target) -> Placed:
    """Open the source of a condition, find its slots, and check it."""
    if isinstance(condition, Image):
        return _place_image(condition, target)
    return _place_clip(condition, target)


# ------------------------------------------------------------------------------------------------------------- pictures


def _place_image(condition: Image, target: Target) -> Placed:
    picture = open_picture(condition.src)
    label = f"{picture.label} at frame {condition.frame}"
    frame = frame_index(condition.frame, target.frames, target.fps, picture.label)
    encoding = condition.encoding or DEFAULT_ENCODING
    slot = target.geometry.slot_of(frame)
    record = {"type": "image", **picture.record, "frame": frame, "noise": condition.noise, "encoding": encoding}
    encode = partial(_encode_picture, picture.pixels, slot, encoding, target)
    return Placed(label, range(slot, slot + 1), [condition.noise], record, encode)


def _encode_picture(picture: NDArray[np.uint8], slot: int, encoding: Encoding, target: Target) -> Tensor:
    if slot == 0 or encoding == "single":
        return target.encode(picture[None])
    return target.encode(np.repeat(picture[None], 1 + target.geometry.frames_per_slot, axis=0))[:, :, 1:]


# ---------------------------------------------------------------------------------------------------------------- clips


def _place_clip(condition: Clip, target: Target) -> Placed:
    source = open_clip(condition.src, condition.fps(target.fps), target.backbone)
    place = place_clip(condition, source.label, source.count, Span(target.frames, target.fps, target.geometry))
    record = {"type": "clip", **source.record, "at": place.at, "frames": place.count, "start": place.start}
    record |= {"noise": place.noise} | ({"rate": condition.rate} if condition.rate != "model" else {})
    encode = partial(_encode_clip, source, place.start, place.count, place.at, target)
    return Placed(place.label, place.slots, place.noise, record, encode)


def _encode_clip(source: ClipSource, start: int, count: int, at: int, target: Target) -> Tensor:
    """The latents of `count` frames from `start` on, for a place at frame `at` of a clip."""
    kept = source.latents if source.size == target.size else None
    geometry = target.geometry
    first, ends_slot = geometry.slot_of(start), geometry.is_whole(start + 1)
    if at == 0:
        if kept is None or not ends_slot:
            return target.encode(source.frames[start : start + count])
        later = kept[:, :, first + 1 : first + geometry.latent_frames(count)]
        head = kept[:, :, :1] if start == 0 else target.encode(source.frames[start : start + 1])
        return torch.cat([head, later], dim=2)
    slots = count // geometry.frames_per_slot
    if kept is not None and start and geometry.begins_slot(start):
        return kept[:, :, first : first + slots]
    lead = geometry.pixel_frames(min(LEAD_IN, geometry.latent_frames(geometry.whole(start))))
    before = source.frames[start - lead : start] if start else source.frames[:1]
    return target.encode(np.concatenate([before, source.frames[start : start + count]]))[:, :, -slots:]
