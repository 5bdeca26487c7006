"""`pusa benchmark`: models on the tasks of the synthetic world, compared on the same scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pusa.cli import main

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*tokens: str) -> tuple[int, Any]:
        code = main(["benchmark", *tokens, "--out", str(tmp_path / "out"), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_models_are_compared_on_the_same_scenes_and_a_run_goes_on(tmp_path: Path, ask: Ask) -> None:
    flags = ("--tasks", "image-to-video", "text-to-video", "--steps", "2", "--guidance", "1")
    code, alone = ask("tiny-base", *flags, "--scenes", "2")
    assert code == 0
    times = (tmp_path / "out" / ".times.jsonl").read_text().splitlines()
    assert alone["tasks"]["image-to-video"]["tiny-base"]["db"]["low"] is None  # two scenes say nothing of a spread
    _, both = ask("tiny-base", "tiny", *flags, "--scenes", "8")
    again = (tmp_path / "out" / ".times.jsonl").read_text().splitlines()
    assert again[: len(times)] == times
    assert len(again) == 2 * len(times)
    found = both["tasks"]["image-to-video"]
    assert set(found) == {"tiny-base", "tiny"}
    assert set(found["tiny"]) == {"db", "over_baseline", "held_db", "motion", "colour", "shape"}
    assert found["tiny-base"]["db"]["over_first"] == {"value": 0, "low": 0, "high": 0}
    assert found["tiny"]["db"]["over_first"]["value"] == pytest.approx(
        found["tiny"]["db"]["value"] - found["tiny-base"]["db"]["value"]
    )
    assert found["tiny-base"]["held_db"]["value"] > 25
    assert set(both["tasks"]["text-to-video"]["tiny"]) == {"motion", "colour", "shape"}
    assert (tmp_path / "out" / "world.png").exists()
    assert alone["scenes"] == 2


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ((), "There is no model to score"),
        (("tiny", "--scenes", "0"), "--scenes 0: give 1 or more"),
        (("tiny", "--workers", "0"), "--workers 0: give 1 or more"),
        (("tiny", "--tasks", "juggling"), "no task 'juggling'"),
        (("+x.safetensors",), "there is no model before"),
        (("tiny", "tiny"), "given twice"),
    ],
)
def test_bad_input_is_one_sentence(ask: Ask, tokens: tuple[str, ...], sentence: str) -> None:
    code, found = ask(*tokens)
    assert code == 2
    assert sentence in found["error"]["message"]
    assert found["error"]["message"].count(". ") == 0


def test_the_former_spelling(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--world", "tiny", "--scenes", "0", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "`pusa evaluate --world MODEL` is now `pusa benchmark MODEL`." in said
    assert "--scenes 0" in said
