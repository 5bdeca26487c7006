"""The demo on a random model: the page and the pictures, and that the commands on the page are the ones that ran."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from safetensors.torch import load_file

from pusa.cli import main, run
from pusa.media.images import read_image
from pusa.media.videos import read_video


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random pipeline with the embedded model's clip size."""
    folder = tmp_path_factory.mktemp("model") / "tiny64"
    shutil.copytree(tiny_folder, folder)
    defaults = json.loads((folder / "pusa.json").read_text())
    (folder / "pusa.json").write_text(json.dumps(defaults | {"size": [64, 64]}))
    return folder


@pytest.fixture(scope="module")
def demo(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "demo"
    report = run(["demo", "--model", str(model), "--out", str(out), "--quiet"])
    assert report is not None
    return out


class Page(HTMLParser):
    """The page's commands, titles and every address that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = re.findall(r"url\('?([^')]+)", text)
        self.text: dict[str, list[str]] = {"h2": [], "code": []}
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in self.text:
            self.inside.append(tag)
            self.text[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.text:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.text[self.inside[-1]][-1] += data


def test_the_page_needs_nothing_but_itself_and_the_clips(demo: Path) -> None:
    page = Page((demo / "index.html").read_text(encoding="utf-8"))
    clips = {path.name for path in demo.glob("*.mp4")}
    assert len(clips) == len(page.text["h2"]) == len(page.text["code"]) == 16
    assert {address for address in page.addresses if not address.startswith("data:image/png;base64,")} == clips


def test_every_clip_has_its_sidecar_and_latents(demo: Path) -> None:
    for clip in demo.glob("*.mp4"):
        assert clip.with_suffix(".json").is_file()
        assert clip.with_suffix(".latents.safetensors").is_file()


def test_the_pictures_show_every_task(demo: Path) -> None:
    sheet = PILImage.open(demo / "contact_sheet.png")
    assert sheet.width > 9 * 3 * 64
    assert sheet.height > 16 * 3 * 64
    clip, _ = read_video(sorted(demo.glob("*.mp4"))[0])
    row = np.asarray(sheet)[40 : 40 + 192, 6 : 6 + 192]
    assert np.abs(row[1::3, 1::3].astype(int) - clip[0]).mean() < 16
    assert PILImage.open(demo / "matrix_beside_clip.png").width > 1000
    animation = PILImage.open(demo / "matrix_above_clip.webp")
    assert animation.n_frames == 17  # type: ignore[attr-defined]


def test_the_photographs_are_given_and_their_truth_moves(tmp_path: Path) -> None:
    from pusa.cli.demo.tasks import tasks

    shown = {task.title: task for task in tasks(tmp_path)}
    for title in ("Image to video, panning right", "Image to video, panning up", "Start and end, a photograph"):
        task = shown[title]
        assert task.truth is not None
        first, _ = task.given[0]
        assert np.array_equal(first[0], task.truth[0])
        assert np.array_equal(read_image(Path(task.tokens[3])), first[0])
        assert np.abs(np.diff(task.truth.astype(int), axis=0)).mean((1, 2, 3)).min() > 1
    right = shown["Image to video, panning right"].truth
    assert right is not None
    assert np.abs(right[8, :, :48].astype(int) - right[0, :, 8:56]).mean() < 1  # a pixel a frame


def test_a_command_on_the_page_remakes_its_clip(demo: Path, tmp_path: Path) -> None:
    commands = {clip["task"]: clip for clip in json.loads((demo / "demo.json").read_text())["clips"]}
    for task in ("Keyframes", "Transition"):
        tokens = shlex.split(commands[task]["command"])
        assert tokens[0] == "pusa"
        assert main([*tokens[1:], "--out", str(tmp_path / "again.mp4"), "--overwrite", "--quiet"]) == 0
        again = load_file(tmp_path / "again.latents.safetensors")["latents"]
        assert again.equal(load_file(Path(commands[task]["path"]).with_suffix(".latents.safetensors"))["latents"])


def test_a_second_run_renews_its_own_folder_and_no_other(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "index.html").write_text("mine")
    assert main(["demo", "--out", str(foreign)]) == 2
    assert "contains other files" in capsys.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["index.html"]
    from pusa.cli.demo import prepare_folder

    prepare_folder(demo)
