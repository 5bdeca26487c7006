"""The folder of a study: where its clips, trainings, scores and inspections are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.evaluation.paper.experiments import Experiment


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study."""

    path: Path

    @property
    def captions(self) -> Path:
        """The encoded captions of the training clips; the latents of the clips are in the same folder."""
        return self.path / "clips" / "texts.safetensors"

    @property
    def runs(self) -> Path:
        """The folder of all trainings."""
        return self.path / "runs"

    def run(self, method: str, seed: int) -> Path:
        """The folder of a training."""
        return self.runs / f"{method}.{seed}"

    def finished(self, method: str, seed: int) -> Path:
        """The file that a training writes when it has finished."""
        return self.run(method, seed) / "done.json"

    def needs(self, experiment: Experiment) -> tuple[Path, ...]:
        """The files that must exist before an experiment: the end of its training, and nothing for the base model."""
        return () if experiment.method == "base" else (self.finished(experiment.method, experiment.seed),)

    def scores(self, experiment: Experiment) -> Path:
        """The scores of an experiment."""
        return self.path / "scores" / f"{experiment.name}.json"

    def inspection(self, experiment: Experiment) -> Path:
        """The attention and the weight drift of an experiment's model."""
        return self.path / "inside" / f"{experiment.method}.{experiment.seed}.json"

    def rows(self, experiment: Experiment) -> list[dict[str, Any]]:
        """The scores of a finished experiment, one row for each scene."""
        rows: list[dict[str, Any]] = json.loads(self.scores(experiment).read_text(encoding="utf-8"))["rows"]
        return rows
