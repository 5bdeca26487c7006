"""From the fields of an HTTP request to a `Request`: names, JSON inside of forms, and references to files.

Nothing here opens a file. A field that names a picture or a clip becomes a `Source`, which `sources` turns into a file
of the new video. So no path and no address of a client reaches the file system or the network unseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pusa.generation.options import options_of
from pusa.generation.request import TASKS
from pusa.serving import field_values
from pusa.serving.field_values import FieldError
from pusa.serving.wire_names import NAMES

Role = Literal["picture", "video", "either"]
_REFERENCES = 64
"""sources of one request at most"""


@dataclass(frozen=True)
class Source:
    """A picture or a clip that a request names.

    Attributes:
        param: the field that names it.
        role: what the field takes.
        part: the name of a file in the form.
        text: a `data:` address, or an address on the net.
        video: the id of a finished video; frame: one frame of it, as a picture.
        of, name: the source `name` of the video with the id `of`.
    """

    param: str
    role: Role
    part: str = ""
    text: str = ""
    video: str = ""
    frame: int | None = None
    of: str = ""
    name: str = ""


@dataclass
class Asked:
    """What a request asks for.

    Attributes:
        task: of `Request`.
        options: values of the options of `Request`; each picture and clip is a `Source`.
        names: {option: the name that the client used}, for error messages.
        reference: `input_reference`, a first frame or a clip to continue, which its content decides.
        seconds: the length, if it is not given in frames.
        noise: of pictures that say none.
        model: the id of the model, "" if none was named.
        lora: (name, scale) of each LoRA.
        fps: the frame rate that the client expects.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    reference: Source | None = None
    seconds: float | None = None
    noise: Any = None
    model: str = ""
    lora: list[tuple[str, float]] = field(default_factory=list)
    fps: float | None = None

    def sources(self) -> list[Source]:
        """Everything that it names, in a fixed order. Raises FieldError if that is too much."""
        found: list[Source] = [] if self.reference is None else [self.reference]
        replaced(self.options, lambda source: found.append(source))
        found = list(dict.fromkeys(found))
        if len(found) > _REFERENCES:
            raise FieldError(f"A request names at most {_REFERENCES} files, and this one names {len(found)}.", "")
        return found


def replaced(value: Any, change: Callable[[Source], Any]) -> Any:
    """A copy of a value in which each `Source` is what `change` makes of it."""
    if isinstance(value, Source):
        return change(value)
    if isinstance(value, Mapping):
        return {key: replaced(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(each, change) for each in value]
    return value


def read(given: Mapping[str, Any], parts: Collection[str], task: str = "generate", *, edit: bool = False) -> Asked:
    """Read the fields of a body.

    given: JSON values, or texts of a form, without its files. parts: the names of its files. task: if no field says it.
    edit: whether `video` is a clip to edit, and not one to continue.

    Raises FieldError for an unknown field and for one that cannot be read.
    """
    given = field_values.flat(given)
    extra = field_values.value_of("extra_params", given.pop("extra_params", None)) or {}
    if not isinstance(extra, Mapping):
        raise FieldError(
            'extra_params is not an object: give options of a request, such as {"solver": "euler"}.', "extra_params"
        )
    if twice := next((name for name in extra if name in given), None):
        raise FieldError(f"{twice} is given twice, once in extra_params: leave one out.", twice)
    given |= extra
    for name in (*given, *parts):
        if name not in NAMES and (name in given or not field_values.is_named(name, given)):
            raise FieldError(field_values.unknown(name), str(name))
    values = {name: field_values.value_of(name, value) for name, value in given.items()}
    values = {name: value for name, value in values.items() if value is not None}
    return _Reader(values, parts).read(task, edit)


class _Reader:
    def __init__(self, values: dict[str, Any], parts: Collection[str]) -> None:
        self.values, self.parts = values, parts
        self.size_names = "size"
        self.pictures_from = "conditions"

    def read(self, task: str, edit: bool) -> Asked:
        take = self.values.pop
        asked = Asked(str(take("task", task)))
        if asked.task not in TASKS:
            raise FieldError(f"The task {asked.task!r} is unknown: choose {', '.join(TASKS)}.", "task")
        known = options_of(TASKS[asked.task])
        asked.model = str(take("model", ""))
        asked.lora = field_values.loras(take("lora", None))
        asked.fps = field_values.positive("fps", take("fps", None))
        if take("num_outputs_per_prompt", 1) != 1:
            raise FieldError(
                "num_outputs_per_prompt: one request makes one video; send several.", "num_outputs_per_prompt"
            )
        asked.seconds = field_values.positive("seconds", take("seconds", None))
        asked.noise = take("noise", None)
        if "noise" in known and asked.noise is not None:
            asked.options["noise"] = asked.noise
        self._size()
        asked.reference = self.source("input_reference", "either")
        if pictures := self._pictures(asked.noise):
            asked.options["conditions"], asked.names["conditions"] = pictures, self.pictures_from
        for name in ("clip", "a", "b", "video"):
            if (source := self.source(name, "video")) is not None:
                option = name if name != "video" else "init" if edit else "clip"
                if option in asked.options:
                    raise FieldError(f"{option} and video are the same field: leave one out.", "video")
                asked.options[option] = {"type": "clip", "src": source} if option == "init" else source
                asked.names[option] = name
        if edit and "init" not in asked.options and "init" not in self.values:
            raise FieldError("video is missing: give the clip to edit.", "video")
        for name, why in _NEEDED.get(asked.task, {}).items():
            if name not in asked.options:
                shown = "video" if name == "clip" and task == "extend" else name
                raise FieldError(f'{shown} is missing: give {why}, as a file or as {{"id": "video_…"}}.', shown)
        if (init := take("init", None)) is not None:
            asked.options["init"] = self._condition(init, "init", None)
        if (matrix := take("matrix", None)) is not None:
            asked.options["matrix"] = field_values.matrix(matrix)
        for name, value in self.values.items():
            option = NAMES[name].option
            if option in asked.options:
                raise FieldError(f"{name} and {asked.names[option]} are the same field: leave one out.", name)
            asked.options[option], asked.names[option] = value, self.size_names if name == "size" else name
        for option in asked.options:
            if option not in known:
                name = asked.names.get(option, option)
                raise FieldError(f"{name} does not belong to the task {asked.task}: leave it out.", name)
        if asked.reference is not None and asked.task != "generate":
            raise FieldError(
                f"input_reference does not belong to the task {asked.task}: leave it out.", "input_reference"
            )
        if asked.seconds is not None and "frames" in asked.options:
            raise FieldError("seconds and num_frames both say the length: leave one out.", "seconds")
        return asked

    def _size(self) -> None:
        width, height = self.values.pop("width", None), self.values.pop("height", None)
        if (width is None) != (height is None):
            raise FieldError(
                "width and height belong together: give both, or size.", "width" if height is None else "height"
            )
        if width is not None:
            if "size" in self.values:
                raise FieldError("size, and width and height, say the same: leave one of them out.", "size")
            for name, side in (("width", width), ("height", height)):
                if isinstance(side, bool) or not isinstance(side, int):
                    raise FieldError(f"{name} is {str(side)[:40]!r}: give a whole number of pixels.", name)
            self.values["size"] = f"{width}x{height}"
            self.size_names = "width"

    def source(self, name: str, role: Role) -> Source | None:
        """The file that a field names: a part of the form with its name, or its value."""
        value = self.values.pop(name, None)
        if name in self.parts:
            if value is not None:
                raise FieldError(f"{name} is given twice, as a file and as a value: leave one out.", name)
            return Source(name, role, part=name)
        return None if value is None else self.reference(value, name, role)

    def reference(self, value: Any, param: str, role: Role) -> Source:
        """The source that a value describes."""
        if isinstance(value, str):
            return self._named(value, param, role)
        if isinstance(value, Mapping):
            said = dict(value)
            if set(said) == {"part"}:
                return self._named(str(said["part"]), param, role)
            if (set(said) <= {"video", "frame"} and "video" in said) or set(said) == {"id"}:
                frame = said.get("frame")
                if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int)):
                    raise FieldError(f"{param}: frame is {frame!r}: give the number of a frame.", param)
                if frame is None and role == "picture":
                    raise FieldError(f"{param}: a video is no picture: name one frame of it, with frame.", param)
                return Source(param, role, video=str(said.get("video", said.get("id"))), frame=frame)
            if set(said) == {"source", "of"}:
                return Source(param, role, of=str(said["of"]), name=str(said["source"]))
            for key in ("image_url", "video_url", "url"):
                if set(said) == {key}:
                    inner = said[key]
                    return self._named(
                        str(inner["url"] if isinstance(inner, Mapping) and set(inner) == {"url"} else inner),
                        param,
                        role,
                    )
        raise FieldError(
            f'{param} names no file: give {{"part": "…"}} with the name of a file in the form, {{"video": "video_…"}} '
            "with the id of a finished video, or a data: address.",
            param,
        )

    def _named(self, text: str, param: str, role: Role) -> Source:
        if text in self.parts:
            return Source(param, role, part=text)
        if re.match(r"data:|https?://", text, re.IGNORECASE):
            return Source(param, role, text=text)
        if re.fullmatch(r"video_[0-9a-f]{32}", text):
            return self.reference({"video": text}, param, role)
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise FieldError(
            f"{param}: there is no file {shown!r} in the form: add it as a part of that name, or give a data: address.",
            param,
        )

    # ---------------------------------------------------------------------------------------------- conditions

    def _pictures(self, noise: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        take = self.values.pop

        def picture(source: Source | None, frame: Any, level: Any = None) -> None:
            if source is not None:
                self.pictures_from = source.param
                level = noise if level is None else level
                found.append(
                    {"type": "image", "src": source, "frame": frame} | ({} if level is None else {"noise": level})
                )

        picture(self.source("image", "picture"), 0)
        picture(self.source("image_reference", "picture"), 0)
        picture(self.source("last_image", "picture"), -1)
        for one in field_values.listed("frame_images", take("frame_images", None)):
            one = dict(one)
            one.pop("type", None)
            kind, index, level = one.pop("frame_type", None), one.pop("frame_index", None), one.pop("noise", None)
            frames = {"first_frame": 0, "last_frame": -1}
            if (kind is None) == (index is None) or (kind is not None and kind not in frames):
                raise FieldError(
                    "frame_images: each has a frame_type (first_frame or last_frame) or a frame_index.", "frame_images"
                )
            picture(self.reference(one, "frame_images", "picture"), index if kind is None else frames[kind], level)
        for one in field_values.listed("keyframes", take("keyframes", None)):
            if not set(one) <= {"image", "frame", "noise"} or not {"image", "frame"} <= set(one):
                raise FieldError("keyframes: each has an image, a frame and perhaps a noise.", "keyframes")
            picture(self.reference(one["image"], "keyframes", "picture"), one["frame"], one.get("noise"))
        found += [
            self._condition(one, "conditions", noise)
            for one in field_values.listed("conditions", take("conditions", None))
        ]
        mask = take("video_noise_mask", None)
        if (video := self.source("source_video", "video")) is not None:
            found.append({"type": "clip", "src": video, "mask": mask})
        elif mask is not None:
            raise FieldError("video_noise_mask needs a source_video: give one.", "video_noise_mask")
        return found

    def _condition(self, one: Any, param: str, noise: Any) -> dict[str, Any]:
        if not isinstance(one, Mapping) or one.get("type") not in ("image", "clip") or "src" not in one:
            raise FieldError(f'{param}: a condition is an object with a type ("image" or "clip") and a src.', param)
        role: Role = "picture" if one["type"] == "image" else "video"
        for word, instead in _WORDS_OF_THE_OTHER[one["type"]].items():
            if word in one:
                what = "a picture" if role == "picture" else "a clip"
                raise FieldError(f"{param}: {what} has no {word}: {instead}.", param)
        said = {**one, "src": self.reference(one["src"], param, role)}
        return {"noise": noise, **said} if noise is not None and param == "conditions" else said


_NEEDED = {
    "extend": {"clip": "the clip to continue"},
    "transition": {"a": "the first clip", "b": "the second clip"},
}
_WORDS_OF_THE_OTHER = {
    "image": {"at": "say where it stands with frame", "frames": "say where it stands with frame"},
    "clip": {"frame": "say where it begins with at"},
}
