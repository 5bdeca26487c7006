"""`pusa calibrate`, and the commands that use what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pusa import cli
from pusa.cli import calibrate as command
from pusa.errors import InputError
from pusa.evaluation.acceleration import calibrate as measuring


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSA_CACHE", str(tmp_path / "cache"))


def test_measured_once_and_chosen_by_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CANDIDATES", ("steps,threshold=9",))
    report = cli.run(
        ["calibrate", "tiny", "--steps", "4", "--prompt", "a red circle", "--plot", f"{tmp_path}/plot.png"]
    )
    assert report is not None
    assert Path(report.record["calibration"]).is_file()
    assert Path(report.record["plot"]).is_file()
    assert [one["accelerate"] for one in report.record["settings"]] == ["steps,threshold=9"]
    assert "steps,threshold=9" in report.text
    made = cli.run(["generate", "a red circle", "--steps", "4", "--min-psnr", "1", "--out", f"{tmp_path}/clip.mp4"])
    assert made is not None
    assert made.clips[0].recipe["accelerate"] == "steps,threshold=9,first=0.2"


def test_a_budget_that_was_searched_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CANDIDATES", ("tokens,share=1",))
    report = cli.run(["calibrate", "tiny", "--steps", "4", "--prompt", "a red circle", "--search", "0.5"])
    assert report is not None
    exact, best = sorted(report.record["settings"], key=lambda one: -one["computed"])
    assert exact["accelerate"] == "tokens,share=1"
    first, *others = map(float, best["accelerate"].removeprefix("tokens,share=").split("/"))
    assert first == 1
    assert sum(others) / 3 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["tiny", "--model", "tiny"], "The model is given twice"),
        (["tiny", "--preset", "pusa-wan22"], "--preset pusa-wan22 names a model, too: leave tiny out"),
        (["--steps", "3"], "with fewer than 4 steps there is nothing to leave out"),
        (["--search", "40"], "--search 40: give a mean share of the tokens between 0 and 1"),
        (["--plot", "plot.jpg"], "written as .png or .svg; use plot.png"),
    ],
)
def test_refusals(flags: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        cli.run(["calibrate", *flags])
    assert sentence in str(error.value)
    assert command.__doc__
