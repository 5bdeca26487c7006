"""The page as a person uses it, on a desktop and on a phone, against the fake server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.conftest import DESKTOP, PHONE, Open, answer_chooser
from tests.serving.page.fake_orders import Job
from tests.serving.page.fake_server import FakeServer

Write = Callable[[str, str], Path]
Shot = Callable[[Any, str], None]
PROMPT = "a green circle moves right on a white background"


def make(page: Any) -> None:
    page.get_by_role("button", name="Make the clip").click()


def choose(page: Any, preset: str) -> None:
    page.get_by_role("radio", name=preset).check()


def finished(page: Any) -> Any:
    """The stage, when its clip is finished and its player has loaded it."""
    page.locator("#stage pusa-player").wait_for()
    page.wait_for_function("() => document.querySelector('#stage video')?.readyState >= 2")
    return page.locator("#stage")


def put_clip(page: Any, place: str, file: Path) -> None:
    page.locator(f"#{place} input[type=file]").set_input_files(str(file))
    page.locator(f"#{place}").get_by_text(file.name).wait_for()


@pytest.mark.parametrize(("viewport", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
def test_a_clip_from_a_picture(
    open_page: Open, server: FakeServer, picture: Write, shot: Shot, viewport: dict[str, int], name: str
) -> None:
    page = open_page(viewport=viewport, color_scheme="light" if name == "desktop" else "dark")
    choose(page, "From a picture")
    shot(page, f"{name}-empty")
    make(page)
    page.get_by_text("Add a picture to start from").wait_for()
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


def test_the_gallery_survives_a_restart_of_the_server(page: Any, server: FakeServer) -> None:
    page.get_by_role("button", name=PROMPT).click()
    make(page)
    finished(page)
    server.__exit__()
    page.get_by_text("The server does not answer").wait_for()
    server.__enter__()
    page.get_by_text("The server does not answer").wait_for(state="detached")
    assert page.locator("#cards li").count() == 1
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")


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
    error = page.locator("#more .error")
    error.wait_for()
    assert error.inner_text() == "The size 100x64 cannot be made: both sides must be multiples of 16."
    assert page.get_by_label("Size").get_attribute("aria-invalid") == "true"
    shot(page, "desktop-error")
    page.get_by_label("Width in pixels").fill("512")
    error.wait_for(state="hidden")
    page.get_by_text("The size is far from the model's own").wait_for()


def test_a_shorter_clip_than_its_pictures_is_refused_in_words(page: Any, picture: Write, server: FakeServer) -> None:
    choose(page, "Keyframes")
    files = [str(picture(f"{name}.png", "red")) for name in "abc"]
    page.locator("pusa-timeline input[type=file]").set_input_files(files)
    page.get_by_role("slider", name="c.png: place").wait_for()
    page.get_by_role("slider", name="Length", exact=True).fill("5")
    page.get_by_text("c.png would be outside this length").wait_for()
    make(page)
    page.get_by_text("c.png would be outside this length").wait_for()
    assert server.orders == []
    page.get_by_role("slider", name="c.png: place").focus()
    page.keyboard.press("Delete")
    page.get_by_text("c.png would be outside this length").wait_for(state="hidden")
    make(page)
    finished(page)
    assert server.orders[0]["frames"] == 5
    assert [one["frame"] for one in server.orders[0]["conditions"]] == [0, 4]


def test_a_clip_is_continued_and_remade(page: Any, server: FakeServer, shot: Shot) -> None:
    page.get_by_role("button", name=PROMPT).click()
    make(page)
    stage = finished(page)
    first = next(iter(server.jobs))
    stage.get_by_role("button", name="Continue it").click()
    page.locator("#clip").get_by_text("17 frames").wait_for()
    page.get_by_label("before the clip").check()
    page.get_by_label("How firmly your clip is held").fill("80")
    shot(page, "desktop-continue")
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")
    order = server.orders[1]
    assert (order["task"], order["clip"], order["direction"]) == ("extend", {"video": first}, "backward")
    assert order["noise"] == pytest.approx(0.2)
    assert order["frames"] == 12
    finished(page).get_by_role("button", name="New seed").click()
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 3")
    again = server.orders[2]
    assert again["seed"] != order.get("seed")
    assert again["clip"] == {"source": "source_0", "of": list(server.jobs)[1]}
    assert {key: again[key] for key in ("direction", "frames", "prompt")} == {
        key: order[key] for key in ("direction", "frames", "prompt")
    }


def test_results_become_sources(page: Any, server: FakeServer) -> None:
    for prompt in ("one", "two"):
        page.get_by_label("What the clip shows", exact=True).fill(prompt)
        make(page)
        page.locator("#cards").get_by_role("button", name=re.compile(prompt)).wait_for()
    stage = finished(page)
    page.wait_for_function("() => !document.querySelector('#stage').textContent.includes('Waiting')")
    stage.get_by_role("button", name="Pause").click()
    stage.get_by_role("slider", name="Frame").fill("6")
    page.wait_for_function("() => document.querySelector('#stage output').textContent.startsWith('Frame 6')")
    stage.get_by_role("button", name="Use this frame").click()
    page.get_by_role("slider", name="frame 6 of two: place").wait_for()
    page.get_by_text("From your clips").first.click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("one")).click()
    page.get_by_role("slider", name="one: place").wait_for()
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 3")
    ids = list(server.jobs)
    sources = [one["src"] for one in server.orders[2]["conditions"]]
    assert sources == [{"video": ids[1], "frame": 6}, {"video": ids[0]}]

    for prompt in ("one", "two"):
        page.get_by_role("checkbox", name=re.compile(f"Choose “{prompt}”")).last.check()
    page.get_by_role("button", name="Fill the gap between them").click()
    page.locator("#b").get_by_text("two").wait_for()
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 4")
    assert server.orders[3]["task"] == "transition"


def test_a_result_is_dragged_onto_the_timeline(page: Any, server: FakeServer) -> None:
    page.get_by_role("button", name=PROMPT).click()
    make(page)
    finished(page)
    choose(page, "Keyframes")
    page.locator("#cards li").drag_to(page.locator("pusa-timeline .cell").nth(2))
    page.get_by_role("slider", name=f"{PROMPT}: place").wait_for()
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")
    (condition,) = server.orders[1]["conditions"]
    assert (condition["type"], condition["at"], condition["src"]) == ("clip", 5, {"video": next(iter(server.jobs))})


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
    page.get_by_text("Choose the clip to restyle.").wait_for()
    put_clip(page, "init", clip)
    page.get_by_label("How much may change").fill("0.4")
    make(page)
    finished(page)
    order = server.orders[0]
    assert (order["init"], order["strength"]) == ({"type": "clip", "src": {"part": "file_0"}}, 0.4)


def test_a_recipe_fills_the_form_and_asks_for_its_pictures(
    page: Any, server: FakeServer, picture: Write, shot: Shot
) -> None:
    choose(page, "Start and end")
    files = [str(picture("start.png", "red")), str(picture("end.png", "blue"))]
    page.locator("pusa-timeline input[type=file]").set_input_files(files)
    page.get_by_role("slider", name="end.png: firmness").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_label("What the clip shows", exact=True).fill(PROMPT)
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill("4")
    make(page)
    stage = finished(page)
    with page.expect_download() as download:
        stage.get_by_role("link", name="Recipe").click()
    recipe = Path(download.value.path())
    assert json.loads(recipe.read_text())["steps"] == 4

    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("() => document.querySelector('#prompt').value === ''")
    named = {"name": "clip.json", "mimeType": "application/json", "buffer": recipe.read_bytes()}
    page.locator("#recipe").set_input_files(named)
    page.get_by_text("Add start.png again").wait_for()
    shot(page, "desktop-recipe")
    for name in ("start.png", "end.png"):
        page.get_by_role("button", name=name).click()
        answer_chooser(page, Path(files[0 if name == "start.png" else 1]))
        page.get_by_role("slider", name=f"{name}: place").wait_for()
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")
    first, second = server.orders
    same = ("prompt", "steps", "frames", "conditions")
    assert {name: second[name] for name in same} == {name: first[name] for name in same}


def test_the_settings_of_a_clip_come_back_with_its_pictures(page: Any, server: FakeServer, picture: Write) -> None:
    choose(page, "Start and end")
    files = [str(picture("start.png", "red")), str(picture("end.png", "blue"))]
    page.locator("pusa-timeline input[type=file]").set_input_files(files)
    page.get_by_role("slider", name="end.png: place").wait_for()
    make(page)
    stage = finished(page)
    page.get_by_role("button", name="Clear").click()
    choose(page, "From text")
    stage.get_by_role("button", name="Edit and remake").click()
    page.get_by_role("slider", name="end.png: place").wait_for()
    assert page.get_by_role("radio", name="Start and end").is_checked()
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")
    first, second = server.orders
    assert [one["frame"] for one in second["conditions"]] == [one["frame"] for one in first["conditions"]]
    assert second["conditions"][0]["src"] == {"source": "source_0", "of": next(iter(server.jobs))}


def test_a_file_that_is_no_recipe(page: Any) -> None:
    page.locator("#recipe").set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": b"[1]"})
    page.get_by_text("This file is no recipe of a clip").wait_for()


def test_seeds_side_by_side_survive_a_reload(page: Any, server: FakeServer, shot: Shot) -> None:
    page.get_by_role("button", name=PROMPT).click()
    page.get_by_role("button", name="Several seeds…").click()
    page.get_by_label("How many clips").fill("3")
    page.get_by_role("button", name="Make them").click()
    page.wait_for_function("() => document.querySelectorAll('#stage td video').length === 3")
    seeds = [order["seed"] for order in server.orders]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    shot(page, "desktop-seeds")
    page.reload()
    page.get_by_role("button", name=re.compile("^Compare seed")).click()
    page.wait_for_function("() => document.querySelectorAll('#stage td video').length === 3")


def test_a_grid_of_noise_and_another_setting(page: Any, server: FakeServer, picture: Write, shot: Shot) -> None:
    choose(page, "From a picture")
    page.locator("pusa-timeline input[type=file]").set_input_files(str(picture("cat.png", "orange")))
    page.get_by_role("slider", name="cat.png: place").wait_for()
    page.get_by_role("button", name="Compare settings…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Rows: values").fill("0, 2")
    dialog.get_by_role("button", name="Make the clips").click()
    dialog.get_by_text("Noise on what is given: give numbers from 0 to 1.").wait_for()
    dialog.get_by_label("Rows: values").fill("0, 0.3")
    dialog.get_by_label("Columns: setting").select_option(label="Steps")
    dialog.get_by_label("Columns: values").fill("2 4")
    shot(page, "desktop-grid-dialog")
    dialog.get_by_role("button", name="Make the clips").click()
    page.wait_for_function("() => document.querySelectorAll('#stage td video').length === 4")
    made = [(order["conditions"][0]["noise"], order["steps"]) for order in server.orders]
    assert made == [(0, 2), (0, 4), (0.3, 2), (0.3, 4)]
    assert len({order["seed"] for order in server.orders}) == 1
    shot(page, "desktop-grid")


def test_clips_are_deleted_after_a_question(page: Any, server: FakeServer) -> None:
    make(page)
    finished(page).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep").click()
    assert len(server.jobs) == 1
    page.locator("#stage").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text("Clips that you make appear here").wait_for()
    assert server.jobs == {}


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


def test_older_clips_are_shown_on_request(page: Any, server: FakeServer) -> None:
    make(page)
    finished(page)
    (job,) = server.jobs.values()
    for number in range(70):
        id = f"video_{number:032x}"
        server.jobs[id] = Job({**job.video, "id": id, "created_at": number}, {}, job.sigma, job.folder)
    server.jobs = dict(sorted(server.jobs.items(), key=lambda item: item[1].video["created_at"]))
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 60")
    page.get_by_role("button", name="Show older clips").click()
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 71")
    assert page.get_by_role("button", name="Show older clips").count() == 0


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
