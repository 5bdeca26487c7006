"""The page with the real server and the embedded model: whether the fake server behaves like it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.conftest import choose, finished, make

pytest.importorskip("dbos", reason="the server is not installed: pip install pusa[serve]")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "pusa", "serve", "--data", str(tmp_path / "data"), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said = process.stderr.readline()
    try:
        yield next(word for word in said.split() if word.startswith("http"))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_clip_is_made_continued_and_found_again(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(300_000)
    problems: list[str] = []
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.goto(address)
    choose(page, "From a picture")
    page.get_by_role("button", name="A sample picture").click()
    page.get_by_role("slider", name="circle-left.png: place").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill("2")
    plan = page.locator("#plan").get_by_role("img")
    plan.wait_for()
    assert "over 2 steps: frame 0 clean from the start" in (plan.get_attribute("aria-label") or "")
    make(page)
    page.wait_for_function("() => document.querySelector('#stage .preview')?.naturalWidth > 0")
    finished(page).get_by_role("button", name="Continue it").click()
    page.locator("#clip").get_by_text("17 frames").wait_for()
    make(page)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 2")
    page.locator("#stage").get_by_text("29 frames").wait_for()
    page.reload()
    page.locator("#cards").get_by_role("button", name=re.compile("a green circle")).last.click()
    finished(page).get_by_role("button", name="Edit and remake").click()
    page.get_by_role("slider", name="circle-left.png: place").wait_for()
    assert page.get_by_label("Steps", exact=True).input_value() == "2"

    def reopen(frames: int) -> None:
        """Open the recipe of a clip."""
        page.locator("#cards .open").nth(0 if frames == 29 else 1).click()
        page.locator("#stage").get_by_text(f"{frames} frames").first.wait_for()
        with page.expect_download() as download:
            page.locator("#stage").get_by_role("link", name="Recipe").click()
        page.locator("#recipe").set_input_files(download.value.path())

    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("() => document.querySelector('#timeline').empty")
    reopen(29)
    page.locator("#clip").get_by_text("17 frames").wait_for()
    reopen(17)
    page.locator("#composer").get_by_text("Add circle-left.png again").wait_for()
    page.get_by_text("More settings").click()
    page.get_by_label("Steps", exact=True).fill("0")
    page.get_by_label("Seed", exact=True).fill("-5")
    page.locator("#problem-steps").get_by_text("give a whole number from 1 to 1000").wait_for()
    page.locator("#problem-seed").get_by_text("give a whole number from 0 on").wait_for()
    assert problems == []
    page.close()
