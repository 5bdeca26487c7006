"""A browser, the fake server, and pages of both sizes for the tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serving.page.fake_server import FakeServer

ROOT = Path(__file__).parents[3]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PROMPT = "a green circle moves right on a white background"
"""an example of the fake server"""
PATIENCE = 60_000
"""milliseconds that a test waits for something to appear"""
Open = Callable[..., Any]
Write = Callable[[str, str], Path]
Shot = Callable[[Any, str], None]


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One headless Chromium. It ends with the folder, because its event loop runs in this thread until then."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install pusa[dev]")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = shutil.which("chromium") or (str(own) if own.exists() else None)
        if found is None:
            pytest.skip("there is no Chromium: install Debian's package chromium, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    pytest.importorskip("uvicorn", reason="the server is not installed: pip install pusa[serve]")
    from tests.serving.page.fake_server import FakeServer

    with FakeServer(tmp_path_factory.mktemp("clips")) as server:
        yield server


@pytest.fixture
def server(running: FakeServer) -> Iterator[FakeServer]:
    """The server without clips."""
    running.reset()
    yield running
    running.release()


@pytest.fixture
def open_page(browser: Any, server: FakeServer) -> Iterator[Open]:
    """Opens a page of the server. Every error that its scripts or the security policy report fails the test."""
    contexts, problems = [], []

    def opened(path: str = "/", viewport: dict[str, int] = DESKTOP, **options: Any) -> Any:
        context = browser.new_context(viewport=viewport, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.choosers = []
        page.on(
            "filechooser", lambda chooser: page.choosers.append(chooser)
        )  # from the start: later, the first chooser may be missed
        page.goto(server.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [one for one in problems if "Failed to load resource" not in one] == []


def answer_chooser(page: Any, file: Path) -> None:
    """Give a file to the file chooser that the page has opened or is about to open."""
    for _ in range(PATIENCE // 50):
        if page.choosers:
            page.choosers.pop(0).set_files(str(file))
            return
        page.wait_for_timeout(50)
    raise AssertionError("the page opened no file chooser")


def make(page: Any) -> None:
    """Order the clip of the form."""
    page.get_by_role("button", name="Make the clip").click()


def choose(page: Any, preset: str) -> None:
    """Choose what to start from."""
    page.get_by_role("radio", name=preset).check()


def finished(page: Any) -> Any:
    """The stage, when its clip is finished and its player has loaded it."""
    page.locator("#stage pusa-player").wait_for()
    page.wait_for_function("() => document.querySelector('#stage video')?.readyState >= 2")
    return page.locator("#stage")


def put_clip(page: Any, place: str, file: Path) -> None:
    """Give a file to the place of a whole clip."""
    page.locator(f"#{place} input[type=file]").set_input_files(str(file))
    page.locator(f"#{place}").get_by_text(file.name).wait_for()


@pytest.fixture
def page(open_page: Open) -> Any:
    """The page of the server, at the size of a desktop."""
    page = open_page()
    page.get_by_role("radio", name="From text").wait_for()
    return page


@pytest.fixture
def shot() -> Callable[[Any, str], None]:
    """Keeps a picture of a page, to be looked at."""
    folder = Path(os.environ.get("PUSA_SCREENSHOTS", ROOT / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)

    def taken(page: Any, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return taken


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a small picture of a colour."""
    from PIL import Image

    def written(name: str, colour: str) -> Path:
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
        return tmp_path / name

    return written


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 17 frames at 8 frames per second."""
    import numpy as np

    from pusa.media.videos import write_video

    frames = np.linspace(0, 255, 17)[:, None, None, None] * np.ones((1, 48, 64, 3))
    path = tmp_path_factory.mktemp("footage") / "walk.mp4"
    write_video(path, frames.astype(np.uint8), 8)
    return path
