"""What the page does with finished clips: the gallery, sources, recipes, comparisons, against the fake server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.page.conftest import (
    PROMPT,
    Open,
    Shot,
    Write,
    answer_chooser,
    choose,
    finished,
    make,
)

if TYPE_CHECKING:
    from tests.serving.page.fake_server import FakeServer


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


def test_older_clips_are_shown_on_request(page: Any, server: FakeServer) -> None:
    from tests.serving.page.fake_orders import Job

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


def test_a_clip_that_is_deleted_elsewhere_goes(open_page: Open, page: Any, server: FakeServer) -> None:
    make(page)
    finished(page)
    other = open_page()
    other.locator("#cards .open").click()
    other.locator("#stage").get_by_role("button", name="Delete").click()
    other.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.locator("#stage").wait_for(state="hidden")
    page.get_by_text("Clips that you make appear here").wait_for()


def test_a_page_that_was_out_of_sight_reads_the_list_again(page: Any, server: FakeServer) -> None:
    make(page)
    finished(page)
    server.jobs.clear()  # without an event
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#stage").wait_for(state="hidden")
