"""The page and the contact sheet of several clips, and `--open`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pusa.cli import main
from pusa.media.images import read_image

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were opened in a browser, on a machine with a display."""
    addresses: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda address: addresses.append(address) or True)
    return addresses


@pytest.fixture
def ask(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`pusa generate` with --json in an empty folder; returns its JSON."""
    monkeypatch.chdir(tmp_path)

    def call(*tokens: str, code: int = 0) -> dict[str, Any]:
        usual = ["--frames", "5", "--steps", "1", "--model", str(tiny_folder), "--json"]
        assert main(["generate", *tokens, *usual]) == code
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return call


def sources(page: Path) -> list[Path]:
    return [page.parent / unquote(name) for name in re.findall(r'src="([^"]+)"', page.read_text())]


def test_several_seeds_have_a_page_and_a_contact_sheet(ask: Ask, opened: list[str]) -> None:
    said = ask("a <b> & c", "--count", "3", "--open")
    page, sheet = Path(said["page"]), Path(said["sheet"])
    assert [path.resolve() for path in sources(page)] == [Path(clip["path"]).resolve() for clip in said["clips"]]
    assert "a &lt;b&gt; &amp; c" in page.read_text()
    assert re.findall(r"seed (\d)", page.read_text()) == ["0", "1", "2"]
    height, width, _ = read_image(sheet).shape
    assert width > 5 * 32
    assert height > 3 * 32
    assert opened == [page.resolve().as_uri()]


def test_one_clip_has_no_page_and_is_opened_itself(ask: Ask, opened: list[str]) -> None:
    said = ask("x", "--out", "one.mp4", "--open")
    assert "page" not in said
    assert opened == [Path("one.mp4").resolve().as_uri()]
    ask("x", "--out", "two.mp4")
    assert len(opened) == 1


@pytest.mark.parametrize(("out", "source"), [("y.gif", "y_0.gif"), ("y.png", "y_0/0000.png")])
def test_other_forms_are_pictures_on_the_page(ask: Ask, out: str, source: str) -> None:
    page = Path(ask("x", "--count", "2", "--out", out)["page"])
    assert sources(page)[0].name == Path(source).name
    assert all(path.is_file() for path in sources(page))
    assert "<video" not in page.read_text()


def test_a_batch_has_a_page_of_all_its_clips_also_of_those_that_were_there(ask: Ask) -> None:
    Path("shots.jsonl").write_text('{"prompt": "a", "name": "a"}\n')
    assert "page" not in ask("--prompts", "shots.jsonl", "--out", "made")
    Path("shots.jsonl").write_text('{"prompt": "a", "name": "a"}\n{"prompt": "b", "name": "b", "size": "48x32"}\n')
    said = ask("--prompts", "shots.jsonl", "--out", "made")
    assert said["page"] == "made/shots.html"
    assert [path.name for path in sources(Path(said["page"]))] == ["a.mp4", "b.mp4"]
    assert ask("--prompts", "shots.jsonl", "--out", "made")["page"] == "made/shots.html"


def test_a_page_of_somebody_else_is_not_replaced(ask: Ask) -> None:
    Path("made").mkdir()
    Path("made/shots.png").write_bytes(b"mine")
    Path("shots.txt").write_text("a\nb\n")
    said = ask("--prompts", "shots.txt", "--out", "made")
    assert "page" not in said
    assert len(said["made"]) == 2
    assert Path("made/shots.png").read_bytes() == b"mine"


def test_without_a_display_open_says_so(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("a browser was started"))
    out = tmp_path / "x.mp4"
    command = ["generate", "x", "--frames", "5", "--steps", "1", "--model", str(tiny_folder), "--out", str(out)]
    assert main([*command, "--open"]) == 0
    assert f"no display here, so --open cannot show {out}" in capsys.readouterr().err
