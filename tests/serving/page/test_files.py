"""The files of the page: everything that they name is there, and nothing is inline, from elsewhere, or too long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pusa

PAGE = Path(pusa.__file__).parent / "serving" / "page"
SCRIPTS = sorted(PAGE.rglob("*.js"))
TEXTS = [*SCRIPTS, *sorted(PAGE.rglob("*.css")), PAGE / "index.html"]
HTML = (PAGE / "index.html").read_text(encoding="utf-8")


def called(path: Path) -> str:
    return str(path.relative_to(PAGE))


@pytest.mark.parametrize("script", SCRIPTS, ids=called)
def test_imports_exist(script: Path) -> None:
    for target in re.findall(r"(?:from|import|new URL\() ?'([^']+)'", script.read_text(encoding="utf-8")):
        assert (script.parent / target).is_file(), target


def test_what_the_page_links_exists_and_every_script_is_used() -> None:
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', HTML):
        assert (PAGE / address.removeprefix("/static/")).is_file(), address
    imported = {
        (script.parent / target).resolve()
        for script in SCRIPTS
        for target in re.findall(r"(?:from|import) '([^']+)'", script.read_text(encoding="utf-8"))
    }
    assert set(SCRIPTS) - imported == {PAGE / "app.js"}


@pytest.mark.parametrize("text", TEXTS, ids=called)
def test_nothing_is_inline_or_from_elsewhere(text: Path) -> None:
    content = text.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", content)
    assert set(re.findall(r"https?://[^'\"/]+", content)) <= {"http://www.w3.org"}
    if text.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", content)


@pytest.mark.parametrize("text", TEXTS, ids=called)
def test_files_are_short(text: Path) -> None:
    lines = text.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400
    assert max(map(len, lines)) <= 120


def test_every_element_that_the_scripts_look_up_is_in_the_page() -> None:
    ids = set(re.findall(r'\sid="([^"]+)"', HTML))
    for script in SCRIPTS:
        looked_up = re.findall(r"\bid\('([\w-]+)'\)|getElementById\('([\w-]+)'\)", script.read_text(encoding="utf-8"))
        assert {one or other for one, other in looked_up} <= ids, called(script)
