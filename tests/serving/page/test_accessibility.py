"""What the checker axe-core finds on the page, and what it cannot find: whether the keyboard is enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.page.conftest import DESKTOP, PHONE, Open, answer_chooser

if TYPE_CHECKING:
    from tests.serving.page.fake_server import FakeServer

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing: pip install pusa[dev]")
Write = Callable[[str, str], Path]


def findings(page: Any) -> list[str]:
    """The rules that axe-core finds broken, each with the first elements that break it."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']} ({one['impact']}): {[node['html'][:120] for node in one['nodes'][:3]]}" for one in found]


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    open_page: Open, server: FakeServer, picture: Write, clip: Path, viewport: dict[str, int], scheme: str
) -> None:
    page = open_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    assert findings(page) == []
    page.get_by_role("radio", name="Keyframes").check()
    files = [str(picture("a.png", "red")), str(clip)]
    page.locator("pusa-timeline input[type=file]").set_input_files(files)
    page.get_by_role("slider", name="walk.mp4: place").focus()
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill("0")
    page.locator("#more .error:visible").wait_for()
    assert findings(page) == []
    page.get_by_label("Steps", exact=True).fill("4")
    page.locator("#more .error:visible").wait_for(state="detached")
    server.waits = True
    for _ in range(2):
        page.get_by_role("button", name="Make the clip").click()
    page.locator("#queue li").nth(1).wait_for()
    assert findings(page) == []
    server.release()
    page.locator("#stage pusa-player").wait_for()
    page.get_by_text("How it was made").click()
    page.locator("#stage pusa-matrix").get_by_text("As a table").click()
    page.locator("#cards li").nth(1).wait_for()
    for box in page.get_by_role("checkbox", name="Choose").all():
        box.check()
    assert findings(page) == []
    for task in ("Continue a clip", "Fill a gap", "Restyle a clip"):
        page.get_by_role("radio", name=task).check()
        assert findings(page) == [], task


@pytest.mark.parametrize("opener", ["Several seeds…", "Compare settings…", "Delete"])
def test_axe_finds_nothing_in_a_dialog(page: Any, server: FakeServer, opener: str) -> None:
    page.get_by_role("button", name="Make the clip").click()
    page.locator("#stage pusa-player").wait_for()
    page.get_by_role("button", name=opener).click()
    page.get_by_role("dialog").wait_for()
    assert findings(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("() => document.activeElement.textContent") == opener


def test_a_clip_is_made_with_the_keyboard_alone(page: Any, server: FakeServer, picture: Write) -> None:
    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                """() => {
                  let element = document.activeElement;
                  while (element.shadowRoot?.activeElement) element = element.shadowRoot.activeElement;
                  return element.ariaLabel || element.labels?.[0]?.textContent.trim() || element.textContent.trim();
                }"""
            )
            if focused.startswith(name):
                return
        raise AssertionError(f"the Tab key does not reach {name}")

    tab_to("From text")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="From a picture").is_checked()
    tab_to("First frame")
    page.keyboard.press("Enter")
    answer_chooser(page, picture("cat.png", "orange"))
    page.get_by_role("slider", name="cat.png: place").wait_for()
    page.get_by_role("radio", name="From a picture").focus()
    tab_to("cat.png: place")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    tab_to("What the clip shows")
    page.keyboard.type("a cat")
    tab_to("Make the clip")
    page.keyboard.press("Enter")
    page.locator("#stage pusa-player").wait_for()
    (order,) = server.orders
    (condition,) = order["conditions"]
    assert (order["prompt"], condition["frame"], condition["noise"]) == ("a cat", 4, 0.1)
    page.locator("#stage video").focus()
    page.wait_for_function("() => document.querySelector('#stage video').readyState >= 2")
    if not page.locator("#stage video").evaluate("(video) => video.paused"):
        page.keyboard.press(" ")
    before = page.locator("#stage output").inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(before) => document.querySelector('#stage output').textContent !== before", arg=before)
