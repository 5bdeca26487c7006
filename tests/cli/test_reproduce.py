"""`pusa reproduce` on a folder in which everything has been trained and scored already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pusa.cli import main
from pusa.evaluation.paper import experiments, study
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.results_folder import TIMES
from pusa.media.images import read_image


def filled(folder: Path, letters: str) -> Path:
    """Scores as a training would have left them: better with more steps of inference, the same scenes for all."""
    rng = np.random.default_rng(0)
    scenes = rng.uniform(100, 900, 32)
    (folder / "scores").mkdir(parents=True)
    for unit in study.units(StudyFolder(folder), letters):
        if unit.name.startswith(("clips", "captions")):
            unit.file.parent.mkdir(exist_ok=True)
            unit.file.touch()
    for one in {one for letter in letters for one in experiments.experiments_of(letter)}:
        (folder / "runs" / f"{one.method}.{one.seed}").mkdir(parents=True, exist_ok=True)
        (folder / "runs" / f"{one.method}.{one.seed}" / "done.json").touch()
        factor = 1 + 1 / one.sampling_steps + one.noise + 0.02 * rng.normal(size=32)
        rows: list[dict[str, Any]] = [
            {"seed": i, "error": e, "baseline_error": 500.0, "held": 40.0 * (1 + one.noise), "motion": e < 500}
            for i, e in enumerate((scenes * factor).tolist())
        ]
        (folder / "scores" / f"{one.name}.json").write_text(json.dumps({"rows": rows}))
    (folder / TIMES).write_text(json.dumps({"unit": experiments.experiments_of("c")[0].name, "seconds": 7200.0}) + "\n")
    return folder


def test_tables_with_intervals_orderings_figures_and_what_they_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = filled(tmp_path / "paper", "cg")
    assert main(["reproduce", "c", "g", "--out", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == 7200
    rows = found["tables"]["c"]["rows"]
    assert [row["paper"] for row in rows] == ["79.92", "86.03", "87.69", "87.84"]
    assert all(row["db"]["low"] < row["db"]["value"] < row["db"]["high"] for row in rows)
    outcomes = {one["claim"]: one["outcome"] for one in found["tables"]["c"]["orderings"]}
    assert outcomes["5 steps are better than 2"] == "holds"
    text = (folder / "paper.md").read_text()
    assert "## c. Sampling steps" in text
    assert "## g. Noise on the given frame" in text
    assert "## d." not in text
    assert "`pusa reproduce c`" in text
    assert "took 2.0 hours of one CPU thread" in text
    for letter in "cg":
        assert f"(images/paper_{letter}.png)" in text
        assert read_image(folder / "images" / f"paper_{letter}.png").std() > 1


@pytest.mark.parametrize(
    ("tokens", "sentence"), [(("z",), "no table 'z'"), (("c", "--workers", "0"), "give 1 or more")]
)
def test_bad_input(tokens: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *tokens, "--out", str(tmp_path / "paper"), "--json"]) == 2
    assert sentence in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (tmp_path / "paper").exists()
