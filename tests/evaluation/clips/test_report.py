"""What a report of clips shows of its numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pusa.evaluation.clips import report

CLIP: dict[str, Any] = {
    "clip": "a.mp4",
    "frames": 5,
    "size": [64, 64],
    "fps": 8,
    "notes": [],
    "measures": dict.fromkeys(report.COLUMNS),
}


@pytest.mark.parametrize(("camera", "shown"), [(["unknown"], "–"), (["pans left", "zooms in"], "pans left, zooms in")])
def test_an_unknown_camera_is_a_dash(camera: list[str], shown: str) -> None:
    record = CLIP | {"camera": camera}
    assert report.lines([record])[1].split("  ")[1].strip() == shown
    assert f"<td class=camera>{shown}</td>" in report._summary([record])


def test_a_curve_is_labelled_from_its_first_to_its_last_value() -> None:
    figure = report._curve("sharpness", [3.0, 9.0, 1.0, 2.0], [], 4)
    caption = re.sub(r"<[^>]+>", "", figure.split("<figcaption>")[1])
    assert caption == "sharpness: from 3 to 2 (lowest 1, highest 9)"


def test_the_readme_has_the_row_that_the_adapter_loses() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").split("<!-- results -->")[1]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| text to video")]
    assert len(rows) == 2
    assert any(float(adapter.rstrip(" %")) < float(base.rstrip(" %")) for _, adapter, base, _ in rows)
