"""Names and values of a body, as clients of several servers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pusa.generation.options import options_of
from pusa.generation.request import TASKS
from pusa.serving.field_values import FieldError
from pusa.serving.fields import Asked, Source, read
from pusa.serving.wire_names import NAMES, OPENAI, OPTIONS, OTHERS, OWN, table

PICTURE = "data:image/png;base64,AAAA"


def test_every_option_of_a_request_has_a_name() -> None:
    options = {name for task in TASKS.values() for name in options_of(task)}

    named = {one.option for one in NAMES.values()} | set(NAMES)
    assert options <= named


def test_every_name_leads_to_an_option() -> None:
    options = {name for task in TASKS.values() for name in options_of(task)}

    assert {one.option for one in NAMES.values() if one.option} <= options


@pytest.mark.parametrize("as_text", [False, True])
def test_forms_and_json_say_the_same(as_text: bool) -> None:
    fields: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.5, "seed": 3, "num_frames": 9}
    given = {name: str(value) for name, value in fields.items()} if as_text else fields

    assert read(given, []).options == {"steps": 4, "guidance": 2.5, "seed": 3, "frames": 9}


def test_a_prompt_of_digits_stays_a_text() -> None:
    assert read({"prompt": "123", "negative_prompt": '{"a": 1}'}, []).options == {
        "prompt": "123",
        "negative_prompt": '{"a": 1}',
    }


def test_nested_names_of_forms() -> None:
    asked = read({"image_reference[image_url]": PICTURE, "lora[name]": "paint", "keyframes": "[]"}, [])

    assert asked.lora == [("paint", 1.0)]
    assert asked.options["conditions"] == [
        {"type": "image", "src": Source("image_reference", "picture", text=PICTURE), "frame": 0}
    ]


def test_numbers_in_nested_names_of_forms() -> None:
    video = "video_" + "0" * 32
    asked = read({"last_image[video]": video, "last_image[frame]": "2", "lora[name]": "x", "lora[scale]": "0.5"}, [])

    assert asked.sources() == [Source("last_image", "picture", video=video, frame=2)]
    assert asked.lora == [("x", 0.5)]
    assert read({"video_noise_mask[]": ["0", "1"]} | {"source_video[id]": video}, []).options["conditions"][0][
        "mask"
    ] == [0, 1]


def test_forms_that_lose_what_belongs_together() -> None:
    with pytest.raises(FieldError, match=r"A form cannot hold keyframes\[\]\[image\]: give keyframes as JSON"):
        read({"keyframes[][image]": "cat"}, [])


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (PICTURE, {"text": PICTURE}),
        ({"image_url": PICTURE}, {"text": PICTURE}),
        ({"url": {"url": PICTURE}}, {"text": PICTURE}),
        ("cat", {"part": "cat"}),
        ({"part": "cat"}, {"part": "cat"}),
        ({"video": "video_" + "0" * 32, "frame": 3}, {"video": "video_" + "0" * 32, "frame": 3}),
        ({"source": "source_0", "of": "video_x"}, {"name": "source_0", "of": "video_x"}),
    ],
)
def test_ways_to_name_a_picture(value: Any, source: dict[str, Any]) -> None:
    asked = read({"last_image": value}, ["cat"] if "cat" in str(value) else [])

    wanted = Source("last_image", "picture", **source)
    assert asked.options["conditions"] == [{"type": "image", "src": wanted, "frame": -1}]
    assert asked.sources() == [wanted]


@pytest.mark.parametrize(
    "value", ["/etc/passwd", "file:///etc/passwd", {"path": "/etc/passwd"}, 3, ["cat"], "ftp://x/y"]
)
def test_nothing_else_names_a_file(value: Any) -> None:
    with pytest.raises(FieldError, match="image"):
        read({"image": value}, [])


def test_the_clip_of_an_edit() -> None:
    asked = read({"prompt": "x"}, ["video"], edit=True)

    assert asked.options["init"] == {"type": "clip", "src": Source("video", "video", part="video")}
    with pytest.raises(FieldError, match="video is missing"):
        read({"prompt": "x"}, [], edit=True)


def test_a_source_that_is_named_twice_is_one() -> None:
    asked = read({"image": {"part": "cat"}, "last_image": {"part": "cat"}}, ["cat"])

    assert len({source.part for source in asked.sources()}) == 1
    assert isinstance(asked, Asked)


def test_the_page_has_the_names_and_their_meanings() -> None:
    page = Path("docs/serving.md").read_text(encoding="utf-8")

    assert all(table(names) in page for names in (OPENAI, OTHERS, OWN, OPTIONS))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 1.5, "height": 64}, "width is '1.5': give a whole number of pixels."),
        ({"seconds": 1e9}, "seconds is '1000000000.0': give a number above 0 and below 100,000."),
        ({"matrix": [["a", 1], [0, 0]]}, "matrix: row 0 has 'a': give noise levels from 0 to 1."),
        ({"matrix": [[1, 1], [0]]}, "matrix: row 1 has 1 numbers, and row 0 has 2: give as many."),
        ({"matrix": [[0]] * 1002}, "matrix has 1,001 steps: give at most 1,000."),
        ({"task": "extend"}, 'clip is missing: give the clip to continue, as a file or as {"id": "video_…"}.'),
        (
            {"task": "transition", "a": PICTURE},
            'b is missing: give the second clip, as a file or as {"id": "video_…"}.',
        ),
        (
            {"conditions": [{"type": "clip", "src": PICTURE, "frame": 4}]},
            "conditions: a clip has no frame: say where it begins with at.",
        ),
        (
            {"task": "extend", "clip": PICTURE, "image": PICTURE},
            "image does not belong to the task extend: leave it out.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_client(given: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as error:
        read(given, [])

    assert str(error.value) == message
