"""The timeline alone, on a bare page: places, firmness and refusals by mouse, by finger and by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.conftest import PHONE, Open, answer_chooser

BARE = """<!doctype html><html lang="en"><title>Timeline</title><h1>Timeline</h1><pusa-timeline></pusa-timeline>
<script type="module" src="/static/timeline/timeline.js"></script></html>"""
Write = Callable[[str, str], Path]


@pytest.fixture
def bare(open_page: Open) -> Callable[..., Any]:
    """Opens the bare page, whose timeline has 17 frames: five latent frames."""

    def opened(**options: Any) -> Any:
        page = open_page("/static/icon.svg", reduced_motion="reduce", **options)
        page.route("**/bare", lambda route: route.fulfill(body=BARE, content_type="text/html"))
        page.goto(page.url.replace("/static/icon.svg", "/bare"))
        page.get_by_role("button", name="Add pictures or clips").wait_for()
        page.evaluate(
            """() => {
              const timeline = document.querySelector('pusa-timeline');
              window.changes = [];
              timeline.addEventListener('change', () => changes.push(timeline.value.length));
            }"""
        )
        return page

    return opened


def value(page: Any) -> list[dict[str, Any]]:
    """The conditions, with the name of its file in place of each source."""
    found: list[dict[str, Any]] = page.evaluate(
        "() => document.querySelector('pusa-timeline').value.map((one) => ({...one, src: one.src.name}))"
    )
    return found


def add(page: Any, *files: Path) -> None:
    before = len(value(page))
    page.locator("pusa-timeline input[type=file]").set_input_files([str(file) for file in files])
    page.wait_for_function(
        f"() => document.querySelector('pusa-timeline').value.length === {before + len(files)}"
        " || document.querySelector('pusa-timeline').shadowRoot.querySelector('.refused')"
    )


def slider(page: Any, name: str) -> Any:
    return page.get_by_role("slider", name=name, exact=True)


def said(page: Any) -> str:
    return str(page.locator("pusa-timeline .said").inner_text())


def drag(page: Any, locator: Any, dx: float, dy: float) -> None:
    box = locator.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def cell_width(page: Any) -> float:
    return float(page.locator("pusa-timeline .cell").first.bounding_box()["width"])


def test_pictures_take_the_first_and_the_last_place_and_then_the_middle(
    bare: Callable[..., Any], picture: Write
) -> None:
    page = bare()
    add(page, picture("a.png", "red"), picture("b.png", "lime"), picture("c.png", "blue"))
    assert [(one["src"], one["frame"], one["noise"]) for one in value(page)] == [
        ("a.png", 0, 0),
        ("c.png", 8, 0),
        ("b.png", 16, 0),
    ]
    assert page.evaluate("() => changes.at(-1)") == 3


def test_the_mouse_moves_a_picture_to_a_latent_frame_and_not_onto_another(
    bare: Callable[..., Any], picture: Write
) -> None:
    page = bare()
    add(page, picture("a.png", "red"), picture("b.png", "lime"))
    width = cell_width(page)
    drag(page, slider(page, "a.png: place"), 2.1 * width, 0)
    assert [one["frame"] for one in value(page)] == [8, 16]
    drag(page, slider(page, "a.png: place"), 2 * width, 0)
    assert [one["frame"] for one in value(page)] == [8, 16]
    assert said(page).startswith("a.png and b.png would share frames 13 to 16")
    assert "Move b.png first" in said(page)


def test_the_mouse_changes_the_firmness(bare: Callable[..., Any], picture: Write) -> None:
    page = bare()
    add(page, picture("a.png", "red"))
    handle = slider(page, "a.png: firmness")
    lane = page.locator("pusa-timeline .level").bounding_box()
    drag(page, handle, 0, lane["height"] / 2)
    assert value(page)[0]["noise"] == pytest.approx(0.5, abs=0.06)
    assert handle.get_attribute("aria-valuetext") == "loose, 50 %"


def test_escape_gives_a_drag_up(bare: Callable[..., Any], picture: Write) -> None:
    page = bare()
    add(page, picture("a.png", "red"))
    box = slider(page, "a.png: place").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 5)
    page.keyboard.press("Escape")
    page.mouse.up()
    assert value(page)[0]["frame"] == 0


def test_the_keyboard_does_all_that_the_mouse_does(bare: Callable[..., Any], picture: Write) -> None:
    page = bare()
    add(page, picture("a.png", "red"), picture("b.png", "lime"))
    place = slider(page, "a.png: place")
    place.focus()
    page.keyboard.press("ArrowRight")
    assert value(page)[0]["frame"] == 4
    assert place.get_attribute("aria-valuetext") == "frame 4, 0.5 s, exact"
    assert said(page) == "a.png: frame 4, 0.5 s, exact."
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert value(page)[0]["noise"] == 0.2
    assert said(page) == "a.png: frame 4, 0.5 s, close."
    page.keyboard.press("ArrowUp")
    assert value(page)[0]["noise"] == 0.1
    page.keyboard.press("End")
    assert "would share" in said(page)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert value(page)[0]["frame"] == 12
    assert "no free place in this direction" in said(page)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.querySelector('pusa-timeline').shadowRoot.activeElement.ariaLabel") == (
        "a.png: firmness"
    )
    page.keyboard.press("Home")
    assert value(page)[0]["noise"] == 1
    place.focus()
    page.keyboard.press("Delete")
    assert [one["src"] for one in value(page)] == ["b.png"]
    assert said(page) == "Removed a.png."
    focused = page.evaluate("() => document.querySelector('pusa-timeline').shadowRoot.activeElement.ariaLabel")
    assert focused == "b.png: place"


def test_a_clip_has_a_length_a_part_and_a_ramp(bare: Callable[..., Any], clip: Path) -> None:
    page = bare()
    add(page, clip)
    assert "5 of its 17 frames are used" in said(page)
    place = slider(page, "walk.mp4: place")
    place.focus()
    page.keyboard.press("Shift+ArrowRight")
    assert (value(page)[0]["at"], value(page)[0]["frames"]) == (0, 9)
    slider(page, "walk.mp4: firmness at its end").focus()
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    assert value(page)[0]["noise"] == [0, 0.2, 0.4]
    place.focus()
    page.keyboard.press("ArrowRight")
    assert (value(page)[0]["at"], value(page)[0]["frames"], value(page)[0]["noise"]) == (1, 12, [0, 0.2, 0.4])
    part = page.get_by_label("Which part is used")
    part.fill("5")
    assert value(page)[0]["start"] == 5
    edge = page.locator("pusa-timeline .edge")
    drag(page, edge, -1.0 * cell_width(page), 0)
    assert (value(page)[0]["frames"], value(page)[0]["noise"]) == (8, [0, 0.4])


def test_a_clip_that_is_too_short_for_a_place_is_refused(bare: Callable[..., Any], tmp_path: Path) -> None:
    import numpy as np

    from pusa.media.videos import write_video

    write_video(tmp_path / "blink.mp4", np.zeros((2, 32, 32, 3), np.uint8), 8)
    page = bare()
    page.evaluate("() => document.querySelector('pusa-timeline').ghosts = [{slot: 2, label: 'Here'}]")
    page.get_by_role("button", name="Here").click()
    answer_chooser(page, tmp_path / "blink.mp4")
    page.locator("pusa-timeline .refused").wait_for()
    assert said(page).startswith("blink.mp4 has 2 frames, and frames 5 to 8 needs 4")


def test_a_place_that_asks_to_be_filled(bare: Callable[..., Any], picture: Write) -> None:
    page = bare()
    page.evaluate(
        """() => { document.querySelector('pusa-timeline').ghosts =
          [{slot: 0, label: 'First'}, {slot: -1, label: 'Last', noise: 0.3}]; }"""
    )
    page.get_by_role("button", name="Last").click()
    answer_chooser(page, picture("a.png", "red"))
    page.wait_for_function("() => document.querySelector('pusa-timeline').value.length === 1")
    assert (value(page)[0]["frame"], value(page)[0]["noise"]) == (16, 0.3)
    assert page.get_by_role("button", name="Last").count() == 0
    assert page.get_by_role("button", name="First").count() == 1


def test_another_length_moves_the_end_and_loses_nothing(bare: Callable[..., Any], picture: Write) -> None:
    page = bare()
    add(page, picture("a.png", "red"), picture("b.png", "lime"), picture("c.png", "blue"))
    page.evaluate("() => { document.querySelector('pusa-timeline').clip = {frames: 25}; }")
    assert [one["frame"] for one in value(page)] == [0, 8, 24]
    refused = page.evaluate(
        """() => {
          try { document.querySelector('pusa-timeline').clip = {frames: 5}; } catch (error) { return error.message; }
        }"""
    )
    assert refused == "c.png would be outside this length: move or remove it, or make the clip longer."
    assert [one["frame"] for one in value(page)] == [0, 8, 24]


def test_conditions_that_are_set_come_back_unchanged(bare: Callable[..., Any]) -> None:
    page = bare()
    conditions = [
        {"type": "clip", "src": {"name": "x"}, "at": 0, "frames": 5, "start": 2, "noise": [0, 0.7], "rate": "file"},
        {"type": "image", "src": {"name": "y"}, "frame": 14, "noise": 0.25, "encoding": "single"},
    ]
    page.evaluate("(all) => document.querySelector('pusa-timeline').load(all)", conditions)
    assert value(page) == [{**one, "src": one["src"]["name"]} for one in conditions]


def test_a_finger_moves_a_picture(bare: Callable[..., Any], picture: Write) -> None:
    page = bare(viewport=PHONE, has_touch=True, is_mobile=True)
    add(page, picture("a.png", "red"))
    box = slider(page, "a.png: place").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)
    width = cell_width(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    send("touchStart", (x, y))
    for part in range(1, 9):
        send("touchMove", (x + part * width / 4, y))
    send("touchEnd")
    page.wait_for_function("() => document.querySelector('pusa-timeline').value[0].frame === 8")


def test_an_animated_picture_is_a_clip_and_an_empty_file_is_refused(bare: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (32, 32), (12 * i, 0, 0)) for i in range(17)]
    pictures[0].save(tmp_path / "walk.webp", save_all=True, append_images=pictures[1:], duration=125)
    (tmp_path / "empty.png").write_bytes(b"")
    page = bare()
    add(page, tmp_path / "walk.webp")
    assert (value(page)[0]["type"], value(page)[0]["frames"]) == ("clip", 5)
    assert "5 of its 17 frames are used" in said(page)
    add(page, tmp_path / "empty.png")
    assert said(page) == "empty.png is empty: choose another file."
