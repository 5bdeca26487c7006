"""Recipes that are opened on the page: their sources, and files that are none or do not fit, on the fake server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.page.conftest import (
    DESKTOP,
    PHONE,
    PROMPT,
    Open,
    Shot,
    choose,
    finished,
    make,
    put_clip,
)

if TYPE_CHECKING:
    from tests.serving.page.fake_server import FakeServer

SIZES = pytest.mark.parametrize(("viewport", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
SETTLED = 1000
"""milliseconds in which the form is checked after a change"""


def open_recipe(page: Any, content: bytes | dict[str, Any] | list[Any], name: str = "clip.json") -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    page.locator("#recipe").set_input_files({"name": name, "mimeType": "application/json", "buffer": data})


def saved_recipe(page: Any) -> bytes:
    """The recipe of the clip on the stage."""
    with page.expect_download() as download:
        page.locator("#stage").get_by_role("link", name="Recipe").click()
    return Path(download.value.path()).read_bytes()


def overlap(page: Any, one: Any, other: Any) -> bool:
    a, b = one.bounding_box(), other.bounding_box()
    return bool(
        min(a["x"] + a["width"], b["x"] + b["width"]) > max(a["x"], b["x"])
        and min(a["y"] + a["height"], b["y"] + b["height"]) > max(a["y"], b["y"])
    )


@SIZES
def test_a_recipe_asks_for_the_clip_that_it_continues_where_it_can_be_read(
    open_page: Open, server: FakeServer, clip: Path, shot: Shot, viewport: dict[str, int], name: str
) -> None:
    page = open_page(viewport=viewport)
    choose(page, "Continue a clip")
    put_clip(page, "clip", clip)
    make(page)
    finished(page)
    recipe = saved_recipe(page)
    page.get_by_role("button", name="Clear").click()
    open_recipe(page, recipe)
    asked = page.locator("#clip").get_by_text("Add walk.mp4 again")
    asked.wait_for()
    assert not overlap(page, asked, page.get_by_role("group", name="The new frames come"))
    assert not overlap(page, asked, page.locator("#clip .place"))
    shot(page, f"{name}-recipe-asks")
    put_clip(page, "clip", clip)
    asked.wait_for(state="detached")
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")
    assert server.orders[1]["clip"] == {"part": "file_0"}


def test_a_recipe_takes_the_clips_that_the_server_still_has(page: Any, server: FakeServer, shot: Shot) -> None:
    page.get_by_role("button", name=PROMPT).click()
    make(page)
    finished(page).get_by_role("button", name="Continue it").click()
    page.locator("#clip").get_by_text("17 frames").wait_for()
    make(page)
    page.locator("#stage").get_by_text("29 frames").wait_for()
    finished(page)
    first = next(iter(server.jobs))
    recipe = saved_recipe(page)
    assert json.loads(recipe)["clip"]["path"] == f"{first}.mp4"

    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("() => document.querySelector('#extend-area').hidden")
    open_recipe(page, recipe)
    page.locator("#clip").get_by_text("17 frames").wait_for()
    assert page.locator("#clip").get_by_text("again").count() == 0
    shot(page, "desktop-recipe-stored")
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 3")
    assert server.orders[2]["clip"] == {"video": first}

    finished(page)
    server._drop(first)
    open_recipe(page, recipe)
    page.locator("#clip").get_by_text(f"Add {first}.mp4 again").wait_for()


@SIZES
def test_files_that_are_no_recipe_are_refused_in_a_sentence_that_stays(
    open_page: Open, server: FakeServer, shot: Shot, viewport: dict[str, int], name: str
) -> None:
    page = open_page(viewport=viewport)
    page.get_by_role("radio", name="From text").wait_for()
    prompt = page.get_by_label("What the clip shows", exact=True)
    prompt.fill(PROMPT)
    page.wait_for_timeout(SETTLED)
    files = {"run.log": b"12:00 started", "cat.png": b"\x89PNG\r\n\x1a\n\0\0", "list.json": b"[1, 2]", "none.json": b""}
    for file, content in files.items():
        open_recipe(page, content, file)
        sentence = f"{file} is no recipe of a clip: choose the .json file that was saved with one."
        said = page.locator("#composer").get_by_text(sentence)
        said.wait_for()
        page.wait_for_timeout(SETTLED)
        box = said.bounding_box()
        assert 0 <= box["y"] <= viewport["height"] - box["height"]
        assert page.get_by_role("status").filter(has_text=sentence).count() == 1
    shot(page, f"{name}-no-recipe")
    assert prompt.input_value() == PROMPT
    prompt.fill("other words")
    said.wait_for(state="hidden")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"frames": -4}, "clip.json cannot be opened: frames is -4 and must be a whole number from 1 on."),
        ({"frames": 1e9}, "1000000000 frames cannot be made: tiny makes at most 65."),
        ({"size": [64]}, "size is [64] and must be a width and a height in pixels."),
        ({"size": "large"}, 'size is "large" and must be a width and a height in pixels.'),
        ({"size": [-64, 64]}, "size is [-64,64] and must be"),
        ({"steps": "many"}, 'steps is "many" and must be a number.'),
        ({"conditions": "cat.png"}, 'conditions is "cat.png" and must be a list of pictures and clips.'),
        (
            {"conditions": [{"type": "image", "path": "cat.png", "frame": 99}]},
            "cat.png is at frame 99, outside the clip of 17 frames.",
        ),
        (
            {"conditions": [{"type": "image", "path": "cat.png", "noise": 7}]},
            "conditions[0].noise is 7 and must be a number from 0 to 1",
        ),
        ({"task": "dance"}, 'task is "dance" and must be "generate" or "extend" or "transition".'),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_recipe_that_does_not_fit_is_refused_in_words(page: Any, fields: dict[str, Any], sentence: str) -> None:
    open_recipe(page, {"prompt": PROMPT, "frames": 17, **fields})
    page.locator("#composer").get_by_text(sentence).wait_for()
    page.wait_for_timeout(SETTLED)
    assert page.locator("#composer").get_by_text(sentence).is_visible()


def test_what_the_model_cannot_make_of_a_recipe_is_marked(page: Any, server: FakeServer, shot: Shot) -> None:
    open_recipe(page, {"prompt": PROMPT, "frames": 10, "steps": 0, "seed": -5})
    page.get_by_text("10 frames cannot be made, a clip has 4n+1 of them.").wait_for()
    length = page.get_by_role("slider", name="Length", exact=True)
    for field in (page.get_by_label("Steps", exact=True), page.get_by_label("Seed", exact=True), length):
        assert field.get_attribute("aria-invalid") == "true"
    shot(page, "desktop-recipe-marked")
    length.press("ArrowRight")
    assert length.input_value() == "13"
    open_recipe(page, {"prompt": PROMPT, "frames": 17, "size": [100, 64]})
    page.get_by_text("The size 100x64 cannot be made: both sides must be multiples of 16.").wait_for()


def test_a_slider_keeps_a_value_between_its_stops(page: Any, server: FakeServer, clip: Path) -> None:
    open_recipe(page, {"prompt": PROMPT, "task": "extend", "clip": {"path": "walk.mp4"}, "frames": 8, "noise": 0.33})
    put_clip(page, "clip", clip)
    make(page)
    finished(page)
    assert server.orders[0]["noise"] == pytest.approx(0.33)
