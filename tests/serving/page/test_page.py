"""Making clips on the page, on a desktop and on a phone, against the fake server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.page.conftest import (
    DESKTOP,
    PHONE,
    PROMPT,
    Open,
    Shot,
    Write,
    choose,
    finished,
    make,
    put_clip,
)

if TYPE_CHECKING:
    from tests.serving.page.fake_server import FakeServer


@pytest.mark.parametrize(("viewport", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
def test_a_clip_from_a_picture(
    open_page: Open, server: FakeServer, picture: Write, shot: Shot, viewport: dict[str, int], name: str
) -> None:
    page = open_page(viewport=viewport, color_scheme="light" if name == "desktop" else "dark")
    choose(page, "From a picture")
    shot(page, f"{name}-empty")
    make(page)
    page.locator("#composer").get_by_text("Add a picture to start from").wait_for()
    page.locator("pusa-timeline input[type=file]").set_input_files(str(picture("cat.png", "orange")))
    page.get_by_role("slider", name="cat.png: place").wait_for()
    page.get_by_label("What the clip shows", exact=True).fill(PROMPT)
    shot(page, f"{name}-filled")

    server.waits = True
    make(page)
    page.get_by_text("Starting").first.wait_for()
    server.release(3)
    page.locator("#stage").get_by_text("Step 3 of 10, about 4 s left").wait_for()
    page.wait_for_function("() => document.querySelector('#stage .preview')?.naturalWidth > 0")
    shot(page, f"{name}-making")
    server.release()
    stage = finished(page)
    assert "Frame" in stage.locator("output").inner_text()
    page.get_by_text("How it was made").click()
    heat_map = page.locator("#stage").get_by_role("img", name=re.compile("Noise levels of 5 latent frames over 10"))
    heat_map.wait_for()
    assert "frame 0 clean from the start" in (heat_map.get_attribute("aria-label") or "")
    shot(page, f"{name}-finished")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")

    (order,) = server.orders
    assert order["prompt"] == PROMPT
    assert order["conditions"] == [{"type": "image", "src": {"part": "file_0"}, "frame": 0, "noise": 0}]
    page.reload()
    page.locator("#cards").get_by_role("button", name=re.compile(PROMPT)).click()
    finished(page)


def test_a_waiting_clip_shows_its_place_and_can_be_cancelled(page: Any, server: FakeServer, shot: Shot) -> None:
    server.waits = True
    for prompt in ("first", "second", "third"):
        page.get_by_label("What the clip shows", exact=True).fill(prompt)
        make(page)
        page.locator("#queue").get_by_role("button", name=prompt, exact=True).wait_for()
    page.locator("#queue").get_by_text("1 clip before this one").wait_for()
    shot(page, "desktop-queue")
    page.get_by_role("button", name="Cancel “first”").click()
    page.locator("#queue").get_by_role("button", name="first", exact=True).wait_for(state="detached")
    page.locator("#queue").get_by_text("Next in the queue").wait_for()
    assert [job.video["prompt"] for job in server.jobs.values()] == ["second", "third"]


def test_a_clip_that_fails_says_why(page: Any, server: FakeServer) -> None:
    reason = "The device has too little memory for this clip: make it smaller."
    server.fail_next = reason
    make(page)
    page.locator("#stage").get_by_text(reason).wait_for()
    page.locator("#stage").get_by_role("button", name="Try again").click()
    finished(page)


def test_errors_stand_where_they_belong(page: Any, shot: Shot) -> None:
    page.get_by_text("More settings").click()
    page.get_by_label("Size").select_option(label="Another size")
    page.get_by_label("Width in pixels").fill("100")
    page.get_by_label("Height in pixels").fill("64")
    error = page.locator("#more .error:visible")
    error.wait_for()
    assert error.inner_text() == "The size 100x64 cannot be made: both sides must be multiples of 16."
    assert page.get_by_label("Size").get_attribute("aria-invalid") == "true"
    shot(page, "desktop-error")
    page.get_by_label("Width in pixels").fill("512")
    error.wait_for(state="detached")
    page.get_by_text("The size is far from the model's own").wait_for()


def test_a_shorter_clip_than_its_pictures_is_refused_in_words(page: Any, picture: Write, server: FakeServer) -> None:
    choose(page, "Keyframes")
    files = [str(picture(f"{name}.png", "red")) for name in "abc"]
    page.locator("pusa-timeline input[type=file]").set_input_files(files)
    page.get_by_role("slider", name="c.png: place").wait_for()
    page.get_by_role("slider", name="Length", exact=True).fill("5")
    page.locator("#composer").get_by_text("c.png would be outside this length").wait_for()
    make(page)
    page.locator("#composer").get_by_text("c.png would be outside this length").wait_for()
    assert server.orders == []
    page.get_by_role("slider", name="c.png: place").focus()
    page.keyboard.press("Delete")
    page.locator("#composer").get_by_text("c.png would be outside this length").wait_for(state="hidden")
    make(page)
    finished(page)
    assert server.orders[0]["frames"] == 5
    assert [one["frame"] for one in server.orders[0]["conditions"]] == [0, 4]


def test_a_picture_is_pasted(page: Any) -> None:
    page.evaluate(
        """async () => {
          const blob = await (await fetch('/static/samples/cat.png')).blob();
          const data = new DataTransfer();
          data.items.add(new File([blob], 'pasted.png', { type: 'image/png' }));
          document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
        }"""
    )
    page.get_by_role("slider", name="pasted.png: place").wait_for()
    assert page.get_by_role("radio", name="From a picture").is_checked()


def test_restyling_and_its_recipe(page: Any, server: FakeServer, clip: Path, tmp_path: Path) -> None:
    choose(page, "Restyle a clip")
    make(page)
    page.locator("#init").get_by_text("Choose the clip to restyle.").wait_for()
    put_clip(page, "init", clip)
    page.get_by_label("How much may change").fill("0.4")
    make(page)
    finished(page)
    order = server.orders[0]
    assert (order["init"], order["strength"]) == ({"type": "clip", "src": {"part": "file_0"}}, 0.4)


def test_the_page_asks_for_the_key_of_the_server(open_page: Open, server: FakeServer) -> None:
    server.key = "secret"
    try:
        page = open_page()
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("This is not a key of this server").wait_for()
        page.get_by_label("Key", exact=True).fill("secret")
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("radio", name="From text").wait_for()
        make(page)
        finished(page)
    finally:
        server.key = ""


def test_text_of_others_stays_text(page: Any, server: FakeServer) -> None:
    page.get_by_label("What the clip shows", exact=True).fill("<img src=x onerror=alert(1)><b>bold</b>")
    make(page)
    stage = finished(page)
    assert stage.get_by_role("heading").inner_text() == "<img src=x onerror=alert(1)><b>bold</b>"
    assert page.locator("#results b, #results img[src=x]").count() == 0


def test_a_page_that_is_opened_before_the_server_waits_for_it(open_page: Open, server: FakeServer) -> None:
    page = open_page()
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    page.get_by_text("The server does not answer").wait_for()
    page.unroute("**/v1/models")
    page.get_by_role("radio", name="From text").wait_for()
    page.get_by_text("The server does not answer").wait_for(state="detached")


def test_numbers_that_are_none_are_refused_at_once(page: Any) -> None:
    page.get_by_text("More settings").click()
    guidance = page.get_by_label("Guidance by the words")
    guidance.press_sequentially("1e999")
    page.get_by_text("This is not a number: give one.").wait_for()
    guidance.fill("")
    page.get_by_label("Seed").fill("9223372036854775807")
    page.get_by_text("This page takes numbers up to 9007199254740991").wait_for()


def test_a_picture_in_the_place_of_a_clip_is_refused_in_words(page: Any, picture: Write, clip: Path) -> None:
    choose(page, "Restyle a clip")
    place = page.locator("#init input[type=file]")
    place.set_input_files(str(picture("cat.png", "orange")))
    page.get_by_text("cat.png is a picture: choose a clip here.").wait_for()
    page.wait_for_timeout(500)  # in which the form is checked
    assert page.get_by_text("cat.png is a picture: choose a clip here.").is_visible()
    place.set_input_files(str(clip))
    page.get_by_text("cat.png is a picture").wait_for(state="hidden")


def test_another_start_keeps_the_length(page: Any, server: FakeServer) -> None:
    length = page.get_by_role("slider", name="Length", exact=True)
    length.fill("33")
    choose(page, "Keyframes")
    assert length.input_value() == "33"
    choose(page, "Continue a clip")
    assert length.get_attribute("aria-valuetext") == "12 frames are added, 1.5 s"
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("() => document.querySelector('#frames').value === '17'")


@pytest.mark.parametrize(("viewport", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
def test_all_that_is_wrong_is_marked_at_once(
    open_page: Open, server: FakeServer, tmp_path: Path, shot: Shot, viewport: dict[str, int], name: str
) -> None:
    spoilt = tmp_path / "cat.png"
    spoilt.write_bytes(b"spoilt")
    page = open_page(viewport=viewport)
    choose(page, "Keyframes")
    page.locator("pusa-timeline input[type=file]").set_input_files(str(spoilt))
    page.get_by_text("the file cannot be read: give another picture or video.").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill("0")
    page.get_by_label("Seed", exact=True).fill("-5")
    page.get_by_label("Guidance by the words", exact=True).press_sequentially("1e999")
    make(page)
    for sentence in (
        "0 does not work here: give a whole number from 1 to 1000.",
        "-5 does not work here: give a whole number from 0 on.",
        "This is not a number: give one.",
        "the file cannot be read: give another picture or video.",
    ):
        page.locator("#composer").get_by_text(sentence).wait_for()
    for label in ("Steps", "Seed", "Guidance by the words"):
        assert page.get_by_label(label, exact=True).get_attribute("aria-invalid") == "true", label
    page.get_by_role("status").filter(has_text="give a whole number from 0 on").wait_for()
    shot(page, f"{name}-all-errors")
    assert server.orders == []
    page.get_by_label("Steps", exact=True).fill("2")
    page.locator("#problem-steps").wait_for(state="hidden")
    assert page.locator("#composer").get_by_text("-5 does not work here").is_visible()


@pytest.mark.parametrize("file", ["run.log", "notes.txt", "archive.zip"])
def test_a_file_that_is_neither_picture_nor_video_is_refused(
    page: Any, tmp_path: Path, picture: Write, file: str, shot: Shot
) -> None:
    (tmp_path / file).write_text("12:00 started")
    sentence = f"{file} is neither a picture nor a video: choose another file."
    choose(page, "Keyframes")
    page.locator("pusa-timeline input[type=file]").set_input_files(str(tmp_path / file))
    page.locator("pusa-timeline .refused").get_by_text(sentence).wait_for()
    both = [str(tmp_path / file), str(picture("cat.png", "orange"))]
    page.locator("pusa-timeline input[type=file]").set_input_files(both)
    page.locator("pusa-timeline").get_by_text(f"{sentence} None of the 2 files was added.").wait_for()
    assert page.locator("pusa-timeline .item").count() == 0
    choose(page, "Continue a clip")
    page.locator("#clip input[type=file]").set_input_files(str(tmp_path / file))
    page.locator("#clip").get_by_text(sentence).wait_for()
    choose(page, "From text")
    page.evaluate(
        """(name) => {
          const data = new DataTransfer();
          data.items.add(new File(['12:00 started'], name));
          document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true }));
        }""",
        file,
    )
    page.locator("#composer > .error").get_by_text(sentence).wait_for()
    shot(page, "desktop-dropped-log")


def test_a_picture_that_the_browser_cannot_show_is_taken(page: Any, tmp_path: Path) -> None:
    (tmp_path / "cat.heic").write_bytes(b"\0\0\0 ftypheic")
    choose(page, "Keyframes")
    page.locator("pusa-timeline input[type=file]").set_input_files(str(tmp_path / "cat.heic"))
    page.get_by_role("slider", name="cat.heic: place").wait_for()
