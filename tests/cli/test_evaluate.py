"""`pusa evaluate`: clips of any program, and clips of ours with their recipes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pusa
from pusa.cli import main
from pusa.media.images import Frames, write_image
from pusa.media.videos import write_video

Ask = Callable[..., tuple[int, Any]]


def moving(count: int = 12, size: tuple[int, int] = (64, 48), seed: int = 0) -> Frames:
    """A smooth random picture that moves by a pixel a frame."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (size[1] // 8, (size[0] + 64) // 8, 3)).astype(np.uint8)
    wide = cv2.resize(cells, (size[0] + 64, size[1]), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, t : t + size[0]] for t in range(count)])


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*tokens: str | Path, out: str = "out") -> tuple[int, Any]:
        code = main(["evaluate", *map(str, tokens), "--out", str(tmp_path / out), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "clips"
    place.mkdir()
    write_video(place / "long.mp4", moving(12), 16)
    write_video(place / "wide.mp4", moving(9, (96, 48), 1), 8)
    return place


def test_clips_of_different_lengths_and_sizes_in_one_table(folder: Path, ask: Ask, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    code, found = ask(folder)
    assert code == 0
    assert [(clip["frames"], clip["size"], clip["fps"]) for clip in found["clips"]] == [
        (12, [64, 48], 16),
        (9, [96, 48], 8),
    ]
    assert (folder / "notes.txt").read_text() == "mine"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article>") == page.count("data:video/mp4;base64,") == page.count("data:image/png;base64,") == 2
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == found["clips"]


def test_what_stillness_wins_is_never_shown_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(folder), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    table = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    for shown in (table, page[page.index("<table>") :]):
        places = [shown.index(word) for word in ("dynamic degree", "sharpness", "flicker", "warp error", "smoothness")]
        assert places == sorted(places)
    for clip in json.loads((tmp_path / "out" / "scores.json").read_text()):
        assert {"flicker", "warp_error", "smoothness", "dynamic", "sharpness_kept"} <= set(clip["measures"])


def test_a_second_run_measures_only_what_is_new(folder: Path, ask: Ask, tmp_path: Path) -> None:
    ask(folder)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "clips").glob("*.json")}
    write_video(folder / "new.mp4", moving(8, seed=2), 8)
    (folder / "long.mp4").rename(folder / "renamed.mp4")
    _, found = ask(folder)
    assert [Path(clip["clip"]).name for clip in found["clips"]] == ["new.mp4", "renamed.mp4", "wide.mp4"]
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    times = (tmp_path / "out" / ".times.jsonl").read_text().splitlines()
    assert len(times) == 3


def test_a_clip_of_ours_is_compared_with_what_its_recipe_says(tmp_path: Path, ask: Ask) -> None:
    write_image(tmp_path / "start.png", moving()[0][:48, :48])
    pipe = pusa.load("tiny")
    clip = pipe.generate("", [pusa.Image(tmp_path / "start.png")], frames=9, size=(48, 48), steps=1, guidance=1)
    clip.save(tmp_path / "made" / "clip.mp4")
    longer = pusa.extend(pipe, str(tmp_path / "made" / "clip.mp4"), "", frames=4, steps=1, guidance=1)
    longer.save(tmp_path / "made" / "longer.mp4")
    code, found = ask(tmp_path / "made")
    assert code == 0
    first, second = found["clips"]
    assert [one["frame"] for one in first["given"]] == [0]
    assert first["given"][0]["psnr"] > 12
    assert [one["join"] for one in second["seams"]] == [9]
    write_video(tmp_path / "made" / "other.mp4", moving(12), 16)
    shutil.copy(tmp_path / "made" / "clip.json", tmp_path / "made" / "other.json")
    write_video(tmp_path / "made" / "broken.mp4", moving(12), 16)
    (tmp_path / "made" / "broken.json").write_text("{")
    _, found = ask(tmp_path / "made", out="more")
    notes = {Path(clip["clip"]).name: clip["notes"] for clip in found["clips"]}
    assert notes["clip.mp4"] == []
    assert notes["other.mp4"] == ["other.json describes another clip, so it is ignored"]
    assert notes["broken.mp4"] == ["broken.json is damaged, so the given frames are unknown"]
    assert sum("given" in clip for clip in found["clips"]) == 1
    (tmp_path / "start.png").unlink()
    _, found = ask(tmp_path / "made" / "clip.mp4", out="again")
    assert "given" not in found["clips"][0]
    assert "is missing or has changed" in found["clips"][0]["notes"][0]


def test_pictures_and_joins_may_be_said(folder: Path, tmp_path: Path, ask: Ask) -> None:
    write_image(tmp_path / "first.png", moving(12)[0])
    write_image(tmp_path / "last.png", moving(12)[11])
    clip = folder / "long.mp4"
    _, found = ask(clip, "--given", f"{tmp_path}/first.png@0", "--given", f"{tmp_path}/last.png@-1", "--join", "6")
    given = found["clips"][0]["given"]
    assert [one["frame"] for one in given] == [0, 11]
    assert min(one["psnr"] for one in given) > 25
    assert found["clips"][0]["seams"][0]["join"] == 6
    _, found = ask(clip, "--given", f"{tmp_path}/last.png@0.5s", "--join", "-6", "--join", "-6", "--join", "30")
    assert found["clips"][0]["given"][0]["frame"] == 8  # of 16 a second
    assert [one["join"] for one in found["clips"][0]["seams"]] == [6]
    assert "the join 30: frame 30 is outside the clip" in found["clips"][0]["notes"][0]
    assert "measures" in found["clips"][0]


def test_a_truth_is_compared_frame_by_frame(folder: Path, tmp_path: Path, ask: Ask) -> None:
    truth = Path(shutil.copytree(folder, tmp_path / "truth"))
    _, found = ask(folder, "--truth", truth)
    assert all(clip["truth"]["psnr"] == 100 for clip in found["clips"])
    write_video(truth / "long.mp4", moving(12)[::-1], 16)
    _, found = ask(folder, "--truth", truth)
    assert found["clips"][0]["truth"]["psnr"] < 25
    write_video(truth / "long.mp4", moving(8), 16)
    code, found = ask(folder, "--truth", truth)
    assert code == 1
    assert "has 12 frames of 64x48 and" in found["clips"][0]["error"]
    (truth / "long.mp4").unlink()
    code, found = ask(folder, "--truth", truth)
    assert code == 1
    assert "has no clip named long" in found["clips"][0]["error"]
    assert found["clips"][1]["truth"]["psnr"] == 100


@pytest.mark.parametrize("count", [1, 4])
def test_of_a_short_clip_it_is_said_what_cannot_be_measured(tmp_path: Path, ask: Ask, count: int) -> None:
    write_video(tmp_path / "short.mp4", moving(count), 8)
    code, found = ask(tmp_path / "short.mp4")
    assert code == 0
    assert "measures" not in found["clips"][0]
    assert "no motion is measured below 5" in found["clips"][0]["notes"][0]


def test_a_damaged_clip_fails_alone_and_is_tried_again(folder: Path, ask: Ask) -> None:
    whole = (folder / "long.mp4").read_bytes()
    (folder / "long.mp4").write_bytes(whole[:400])
    code, found = ask(folder)
    assert code == 1
    assert "long.mp4" in found["clips"][0]["error"]
    assert "measures" in found["clips"][1]
    (folder / "long.mp4").write_bytes(whole)
    assert ask(folder)[0] == 0


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ((), "There is no clip to measure"),
        (("nowhere",), "no file or folder nowhere"),
        (("EMPTY",), "contains no clip"),
        (("CLIP", "--given", "photo.png"), "give a picture and its frame"),
        (("CLIP", "--given", "gone.png@0"), "there is no file gone.png"),
        (("CLIP", "--given", "CLIP@first"), "'first' is not a frame"),
        (("CLIP", "--given", "CLIP@0", "--given", "CLIP@0"), "is given for this frame, too"),
        (("CLIP", "--join", "end"), "'end' is not a frame"),
        (("CLIP", "--workers", "0"), "give 1 or more"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, ask: Ask, tokens: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "CLIP": str(folder / "long.mp4")}
    code, found = ask(*(token.replace(word, path) for token in tokens for word, path in [_place(token, places)]))
    assert code == 2
    assert sentence in found["error"]["message"]
    assert found["error"]["message"].count(". ") == 0


def _place(token: str, places: dict[str, str]) -> tuple[str, str]:
    return next(((word, path) for word, path in places.items() if token.startswith(word)), ("", ""))


def test_scores_of_other_measures_are_not_mixed_in(folder: Path, tmp_path: Path, ask: Ask) -> None:
    ask(folder)
    (tmp_path / "out" / "evaluation.json").write_text('{"version": 0}')
    code, found = ask(folder)
    assert code == 2
    assert "scores of version 0" in found["error"]["message"]
