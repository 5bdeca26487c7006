"""The names of fields in requests to the server, each with what it means here: one table for the code and the docs.

The first group are the names of OpenAI's video service, then those that other servers of videos use, then our own. The
options of `Request` have their own names and help. An unknown name is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pusa.generation.options import options_of
from pusa.generation.request import TASKS

Kind = Literal["text", "value", "picture", "video", "source"]


@dataclass(frozen=True)
class WireName:
    """A field.

    Attributes:
        meaning: what it does, for the documentation and the schema.
        option: the option of `Request` with the same value; "" if it is read in another way.
        kind: "text" is never parsed, "value" is JSON, and the others name a file.
        schema: its JSON schema.
    """

    meaning: str
    option: str = ""
    kind: Kind = "value"
    schema: tuple[tuple[str, object], ...] = ()


def _text(meaning: str, option: str = "") -> WireName:
    return WireName(meaning, option, "text", (("type", "string"),))


def _whole(meaning: str, option: str = "") -> WireName:
    return WireName(meaning, option, "value", (("type", "integer"),))


def _number(meaning: str, option: str = "") -> WireName:
    return WireName(meaning, option, "value", (("type", "number"),))


def _file(meaning: str, kind: Kind, option: str = "") -> WireName:
    return WireName(meaning, option, kind)


OPENAI: dict[str, WireName] = {
    "prompt": _text("what the clip shows", "prompt"),
    "model": _text("the id of the model, as `/v1/models` gives it"),
    "seconds": WireName(
        "length; the nearest length that the model can make is taken, and the answer says it",
        schema=(("type", ["string", "number"]),),
    ),
    "size": _text("width and height, such as `96x64`", "size"),
    "input_reference": _file("a picture is the first frame, a video is continued", "source"),
    "video": _file('of `/extensions` and `/edits`: the clip, as a file or as `{"id": …}`', "video"),
}
OTHERS: dict[str, WireName] = {
    "width": _whole("with `height`: the size"),
    "height": _whole("with `width`: the size"),
    "num_frames": _whole("length in frames; of an extension or transition, how many are added", "frames"),
    "fps": _number("the model's frame rate; another one is an error"),
    "num_inference_steps": _whole("sampling steps", "steps"),
    "guidance_scale": _number("classifier-free guidance", "guidance"),
    "guidance_scale_2": _number("guidance of the low-noise expert", "guidance_2"),
    "boundary_ratio": _number("the noise level at which two experts change", "boundary"),
    "flow_shift": _number("timestep shift", "shift"),
    "seed": _whole("the same seed gives the same clip; without one it is random, and the answer says it", "seed"),
    "negative_prompt": _text("what the clip should not show", "negative_prompt"),
    "image_reference": _file('the first frame, as `{"image_url": "data:…"}`', "picture"),
    "frame_images": WireName(
        'pictures: `[{"image_url": {"url": "data:…"}, "frame_type": "last_frame"}]`, or with `frame_index`, and `noise`'
    ),
    "keyframes": WireName('pictures at frames: `[{"image": …, "frame": 8, "noise": 0.2}]`'),
    "source_video": _file("a clip of the whole length, kept where `video_noise_mask` is 0", "video"),
    "video_noise_mask": WireName(
        "for `source_video`: a fraction for each latent frame, or for each frame, equal in a latent frame; 0 keeps it, "
        "1 makes it anew"
    ),
    "lora": WireName('LoRAs that the server offers: `{"name": …, "scale": 1.0}` or a list of them'),
    "extra_params": WireName("an object with options of `Request`"),
    "num_outputs_per_prompt": _whole("only 1"),
}
OWN: dict[str, WireName] = {
    "task": _text("`generate`, `extend` or `transition`"),
    "image": _file("the first frame", "picture"),
    "last_image": _file("the last frame", "picture"),
    "conditions": WireName("pictures and clips at their frames, see below"),
    "init": WireName('a clip to edit: `{"type": "clip", "src": …}`'),
    "matrix": WireName("a timestep matrix of your own: rows of σ, one for each step and the last one"),
    "clip": _file("of the task `extend`: the clip", "video"),
    "a": _file("of the task `transition`: the first clip", "video"),
    "b": _file("of the task `transition`: the second clip", "video"),
    "noise": WireName("noise multiplier of the overlap, and of pictures that say none: 0 keeps, 1 ignores"),
}


def _options() -> dict[str, WireName]:
    """The options of `Request` that have no other entry, under their own names and with their own help."""
    found: dict[str, WireName] = {}
    for task in TASKS.values():
        for name, (kind, option) in options_of(task).items():
            if name not in (*OPENAI, *OTHERS, *OWN):
                words = any(each is str or isinstance(each, str) for each in get_args(kind) or (kind,))
                found[name] = WireName(option.help, name, "text" if words else "value")
    return found


OPTIONS: dict[str, WireName] = _options()
NAMES: dict[str, WireName] = OPENAI | OTHERS | OWN | OPTIONS


def table(names: Mapping[str, WireName]) -> str:
    """The names with their meanings as a table of Markdown, for `docs/serving.md`."""
    rows = ["| field | meaning |", "| --- | --- |"]
    for name, one in names.items():
        same = f" (`{one.option}`)" if one.option not in ("", name) else ""
        rows.append(f"| `{name}` | {one.meaning}{same} |")
    return "\n".join(rows)


def schema() -> dict[str, object]:
    """The JSON schema of the body of `POST /v1/videos`."""
    anything: dict[str, object] = {}
    properties = {
        name: {"description": one.meaning, **(dict(one.schema) if one.schema else anything)}
        for name, one in NAMES.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}
