"""Makes the `Request` of what was asked, checks it against the model, and says what the record keeps of it.

The model's configuration is enough for this, so that a client learns of a mistake before the video waits.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pusa.errors import InputError
from pusa.generation.limits import Limits
from pusa.generation.request import SEEDS, TASKS, Extend, Generate, Request, Transition
from pusa.serving.field_values import FieldError
from pusa.serving.fields import Asked, Source, replaced
from pusa.serving.served_model import ServedModel
from pusa.serving.sources import Opened
from pusa.serving.wire_names import NAMES

SEEDS_GIVEN = 2**31
"""Random seeds are below this number, so that every client can write them."""


@dataclass(frozen=True)
class Order:
    """A request that the model can make.

    Attributes:
        request: with the paths of its sources.
        opened: its sources.
        settings: every value decided, of the window that is sampled.
        frames: of the whole clip; of an extension or transition, with the given clips where they are known.
        notes: sentences about what becomes of the sources.
        lora: (name, scale) of each LoRA.
        model: the id of the model.
    """

    request: Request
    opened: Mapping[Source, Opened]
    settings: Any
    frames: int
    fps: float
    notes: list[str]
    lora: list[tuple[str, float]]
    model: str

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The request for the database: each source by its name."""
        names = {str(one.path): one.name for one in self.opened.values()}
        return with_sources(self.request.to_dict(), lambda path: names[path])

    @cached_property
    def shown(self) -> dict[str, Any]:
        """What the API says of the video from its beginning to its end."""
        width, height = self.settings.size
        return {
            "model": self.model,
            "task": self.request.task,
            "prompt": getattr(self.request, "prompt", ""),
            "width": width,
            "height": height,
            "frames": self.frames,
            "fps": self.fps,
            "steps": self.settings.steps,
            "seed": self.request.seed,
            "notes": self.notes,
        }

    @property
    def sources(self) -> dict[str, Any]:
        """{name: what it is}."""
        return {one.name: one.about for one in self.opened.values()}


def with_sources(request: Mapping[str, Any], change: Callable[[str], Any]) -> dict[str, Any]:
    """The dictionary of a request with other names for its files."""
    changed = dict(request)
    for key in ("clip", "a", "b"):
        if key in changed:
            changed[key] = change(changed[key])
    if "init" in changed and changed["init"] is not None:
        changed["init"] = {**changed["init"], "src": change(changed["init"]["src"])}
    if "conditions" in changed:
        changed["conditions"] = [{**one, "src": change(one["src"])} for one in changed["conditions"]]
    return changed


def order(asked: Asked, opened: Mapping[Source, Opened], limits: Limits, model: ServedModel) -> Order:
    """Make and check the request. limits: of the model.

    Raises FieldError for what the model cannot make; sources have the names that the client gave them.
    """
    offered = model.offered
    for name, _ in asked.lora:
        if name not in offered:
            there = f"choose {', '.join(offered)}" if offered else "this server offers none"
            raise FieldError(f"There is no LoRA {name[:60]!r}: {there}.", "lora")
    if asked.fps not in (None, limits.defaults.fps):
        raise FieldError(
            f"fps is {asked.fps:g}: {limits.source} makes {limits.defaults.fps:g} frames per second; leave fps out.",
            "fps",
        )
    try:
        request = _request(asked, opened, limits)
        settings: Any = request.check(limits)
        notes = request.opened().notes(limits)  # a picture that is cropped counts once it is opened
        frames = _frames(request, settings, opened, limits)
    except FieldError:
        raise
    except InputError as error:
        raise _in_the_words_of_the_client(str(error), asked, opened) from error
    if isinstance(request, Generate) and request.init is not None and request.frames is None:
        request = replace(request, frames=settings.frames)
    notes = [note for one in opened.values() for note in one.notes] + [_renamed(note, opened) for note in notes]
    new = frames if isinstance(request, Generate) else request.frames
    if asked.seconds is not None and new is not None and abs(asked.seconds - new / limits.defaults.fps) > 1e-6:
        what = "the video has" if isinstance(request, Generate) else "it gets"
        notes.append(
            f"{asked.seconds:g} seconds were asked for, and {what} {new} frames, "
            f"{seconds(new, limits.defaults.fps)} seconds."
        )
    return Order(request, opened, settings, frames, limits.defaults.fps, notes, asked.lora, model.name)


def seconds(frames: int, fps: float) -> str:
    """The length of a clip in seconds, as a text, as the API writes it."""
    return f"{frames / fps:.4g}"


def _request(asked: Asked, opened: Mapping[Source, Opened], limits: Limits) -> Request:
    options: dict[str, Any] = replaced(asked.options, lambda source: str(opened[source].path))
    task, names = asked.task, dict(asked.names)
    if asked.reference is not None:
        reference = opened[asked.reference]
        if reference.kind == "video":
            if "conditions" in options:
                raise FieldError(
                    "input_reference is a video, which is continued: leave the pictures out.", "input_reference"
                )
            task, options["clip"] = "extend", str(reference.path)
        else:
            picture = {"type": "image", "src": str(reference.path)} | (
                {} if asked.noise is None else {"noise": asked.noise}
            )
            options["conditions"] = [picture, *options.get("conditions", [])]
    if asked.seconds is not None:
        options["frames"] = _length(asked.seconds, task, limits)
    options.setdefault("seed", secrets.randbelow(SEEDS_GIVEN))
    if isinstance(options["seed"], int) and not 0 <= options["seed"] < SEEDS:
        raise FieldError(f"seed is {options['seed']}: give a whole number from 0 to {SEEDS - 1}.", "seed")
    for one in options.get("conditions", []):
        if "mask" in one:
            one |= _masked(one.pop("mask"), limits)
    if asked.noise is not None and task == "generate" and not options.get("conditions"):
        raise FieldError("noise is of pictures and clips, and none is given: give one, or leave noise out.", "noise")
    known = TASKS[task]
    if task != asked.task and (
        foreign := next((name for name in options if name not in known.__dataclass_fields__), None)
    ):
        raise FieldError(
            f"{names.get(foreign, foreign)} does not belong to a continuation: leave it out.",
            names.get(foreign, foreign),
        )
    return known(**options)


def _length(seconds: float, task: str, limits: Limits) -> int:
    """The nearest length in frames; of an extension or transition, the nearest number of added frames."""
    wanted, per_slot = seconds * limits.defaults.fps, limits.geometry.frames_per_slot
    if task == "generate":
        return max(1, round((wanted - 1) / per_slot) * per_slot + 1)
    return max(1, round(wanted / per_slot)) * per_slot


def _masked(mask: Any, limits: Limits) -> dict[str, Any]:
    """The noise of a clip from a fraction for each of its latent frames or pixel frames."""
    if mask is None:
        return {}
    if not isinstance(mask, list) or not mask or not all(_is_fraction(one) for one in mask):
        raise FieldError(
            "video_noise_mask is not a list of numbers from 0 (keep) to 1 (make anew): give one for each frame.",
            "video_noise_mask",
        )
    geometry = limits.geometry
    if not geometry.is_whole(len(mask)) or len(mask) == 1:
        return {"noise": mask}
    slots = [
        mask[geometry.frames_of(slot)[0] : geometry.frames_of(slot)[-1] + 1]
        for slot in range(geometry.latent_frames(len(mask)))
    ]
    for slot, levels in enumerate(slots):
        if len(set(levels)) > 1:
            frames = geometry.frames_of(slot)
            raise FieldError(
                f"video_noise_mask: frames {frames[0]} to {frames[-1]} are one latent frame and need one fraction.",
                "video_noise_mask",
            )
    return {"noise": [levels[0] for levels in slots]}


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _frames(request: Request, settings: Any, opened: Mapping[Source, Opened], limits: Limits) -> int:
    """The length of the whole clip."""
    if isinstance(request, Generate):
        return int(settings.frames)
    by_path = {str(one.path): one for one in opened.values()}

    def length(path: Any) -> int:
        about = by_path[str(path)].about
        return int(
            about["frames"] if about.get("video") else round(about["frames"] / about["fps"] * limits.defaults.fps)
        )

    if isinstance(request, Extend):
        _, added = limits.window(request.frames, request.overlap, clips=1)
        return length(request.clip) + added
    assert isinstance(request, Transition)
    _, added = limits.window(request.frames, request.overlap, clips=2)
    return length(request.a) + added + length(request.b) - 1


def _renamed(text: str, opened: Mapping[Source, Opened]) -> str:
    """A message with the client's names of files, and with names of fields in place of flags."""
    for one in opened.values():
        text = text.replace(str(one.path), one.label)
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda flag: flag[1].replace("-", "_"), text)


def _in_the_words_of_the_client(text: str, asked: Asked, opened: Mapping[Source, Opened]) -> FieldError:
    """The error with the client's names of files and of the option that it begins with."""
    text = _renamed(text, opened)
    first = text.partition(" ")[0].rstrip(":")
    name = asked.names.get(first, first if first in NAMES else "")
    if name != first and name:
        text = name + text[len(first) :]
    return FieldError(text, name or _about(text, asked, opened))


def _about(text: str, asked: Asked, opened: Mapping[Source, Opened]) -> str:
    """The field that a message of the model's checks is about; "" if it does not say."""
    for source, one in opened.items():
        if text.startswith(one.label):
            return source.param
    for pattern, option in _SUBJECTS.items():
        if re.match(pattern, text):
            return "seconds" if option == "frames" and asked.seconds is not None else asked.names.get(option, option)
    return ""


_SUBJECTS = {
    r"-?[\d,]+ frames": "frames",
    r"The size|size": "size",
    r"The matrix": "matrix",
    r"The solver": "solver",
    r"The fit": "fit",
    r"The direction": "direction",
}
"""{how a message begins: the option that it is about}"""
