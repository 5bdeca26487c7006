"""The page about noise shows what the benchmark wrote, and the benchmark measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pusa.generation.pipeline import load

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_of_the_page_are_those_of_the_record() -> None:
    from choosing_noise import CASES, tables

    record = json.loads((DOCS / "results" / "choosing_noise.json").read_text(encoding="utf-8"))
    page = (DOCS / "choosing_noise.md").read_text(encoding="utf-8")
    for table in tables(record).split("\n\n"):
        assert table.strip() in page
    assert len(record["cases"]) == len(CASES)


def test_rows_are_made_once_and_a_cut_line_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    import noise_cases
    from noise_cases import Case, made, summary

    case = Case("image to video", "shape", (0.0,))
    monkeypatch.setattr(noise_cases, "CASES", [case])
    pipe = load("tiny", device="cpu")
    (row,) = made(pipe, range(1), file)
    whole = file.read_text()
    assert made(pipe, range(1), file) == [row]
    assert file.read_text() == whole
    file.write_text(whole[:-20])
    assert made(pipe, range(1), file) == [row]
    assert file.read_text() == whole
    assert summary(case, [row])["first_psnr"].value == row["first_psnr"] > 30


def test_a_cut_stands_out_and_a_pair_is_compared_by_scene() -> None:
    from noise_cases import gain, seam

    rng = np.random.default_rng(0)
    steady = np.repeat(rng.integers(0, 256, (1, 8, 8, 3)), 12, axis=0).astype(np.uint8)
    cut = steady.copy()
    cut[6:] = 255 - cut[6:]
    assert seam(cut, 6) > 50 > abs(seam(steady, 6))
    clean = [{"seed": seed, "error": 10.0 + seed} for seed in range(6)]
    worse = [{"seed": row["seed"], "error": 10 * row["error"]} for row in reversed(clean)]
    assert round(gain(worse, clean).value, 6) == round(gain(worse, clean).low, 6) == -10
