"""What every table needs: which trainings, and which clips; two tables share what both need."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.evaluation.paper import inside
from pusa.evaluation.paper.methods import METHODS, SEEDS, STRENGTH, STRENGTHS, scalable
from pusa.evaluation.paper.scoring import Job, Maker
from pusa.evaluation.paper.training import STEPS, load, parts, prepare, prepare_texts, train
from pusa.evaluation.pieces import Piece, Told, make_all, untold

SAVED = (50, 100, 200, 400)
LONG = (400, 800, 1600)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
ZERO_SHOT = ("start-end", "extension", "completion", "transition")
PTSS = ("ptss-0.2", "ptss-0.5", "ptss-0.8")
RANKS = ("rank-4", "rank-16", "vta", "rank-64")
TABLES: dict[str, str] = {
    "a": "ways of training, at equal steps",
    "b": "steps of training × strength of the LoRA",
    "c": "steps of inference",
    "d": "rank",
    "e": "text to video before and after",
    "f": "tasks that were not trained for",
    "g": "noise on the given frame",
    "h": "noise levels in training: even, or the official code's",
    "i": "what training with image channels needs to reach the adapter",
    "j": "inside: who looks at the first frame, which weights moved",
}


def saved(method: str) -> Sequence[int]:
    """The steps after which a method's weights are kept."""
    return LONG if METHODS[method].constant else SAVED


def jobs(table: str) -> list[Job]:
    """The clips that a table is made of."""
    full = Job("vta", 0, STEPS, strength=STRENGTH)
    ours = [dataclasses.replace(full, seed=seed) for seed in SEEDS]
    base = Job("base", 0, 0)

    def with_seeds(method: str, strengths: Iterable[float] = STRENGTHS[:3], trained: int = STEPS) -> list[Job]:
        every = tuple(strengths) if scalable(method) else (1.0,)
        return [Job(method, seed, trained, strength=s) for seed in SEEDS for s in every]

    if table == "a":
        methods = ("vta", "vta-full", "first-clean", *PTSS, "i2v")
        return [base, *(job for method in methods for job in with_seeds(method))]
    if table == "b":
        return [base, *(job for step in SAVED for job in with_seeds("vta", STRENGTHS, step))]
    if table == "c":
        return [dataclasses.replace(job, steps=n) for job in ours for n in (2, 5, 10, 20)]
    if table == "d":
        return [job for method in RANKS for job in with_seeds(method)]
    if table == "e":
        weak = [dataclasses.replace(job, strength=1.0) for job in ours]
        return [dataclasses.replace(job, task="text-to-video") for job in (base, *weak, *ours)]
    if table == "f":
        clean = [dataclasses.replace(job, method="first-clean") for job in ours]
        return [dataclasses.replace(job, task=task) for task in ZERO_SHOT for job in (base, *ours, *clean)]
    if table == "g":
        return [dataclasses.replace(job, noise=m) for job in ours for m in NOISES]
    if table == "h":
        return [job for method in ("vta", "vta-shifted") for job in with_seeds(method)]
    if table == "i":
        return [*ours, *(job for step in LONG for job in with_seeds("i2v-long", trained=step))]
    if table == "j":
        return []
    raise InputError(f"There is no table {table!r}: choose among {', '.join(TABLES)}.")


class Study:
    """One folder of trainings and scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = folder / "clips" / "texts.safetensors"
        self._maker: Maker | None = None

    def pieces(self, tables: Sequence[str]) -> list[Piece]:
        """All that the tables need, each once, in an order that can be followed."""
        wanted = list(dict.fromkeys(job for table in tables for job in jobs(table)))
        looked = [job for method in inside.COMPARED for job in inside.jobs(method)] if "j" in tables else []
        runs = list(dict.fromkeys((job.method, job.seed) for job in [*wanted, *looked] if job.method != "base"))
        trainings = [self._training(method, seed) for method, seed in runs]
        clips = [Piece(f"clips {part.stem}", part, partial(prepare, part)) for part in parts(self.texts.parent)]
        texts = Piece("captions", self.texts, partial(prepare_texts, self.texts))
        last = inside.pieces(self) if looked else []
        return [*clips, texts, *trainings, *map(self._scoring, wanted), *last]

    def run(self, method: str, seed: int) -> Path:
        """The folder of a training."""
        return self.folder / "runs" / f"{method}.{seed}"

    def _training(self, method: str, seed: int) -> Piece:
        folder = self.run(method, seed)

        def make() -> None:
            train(METHODS[method], seed, load(self.texts), folder, checkpoints_at=saved(method))

        return Piece(f"training {folder.name}", folder / "done.json", make, (self.texts, *parts(self.texts.parent)))

    def _scoring(self, job: Job) -> Piece:
        file = self.folder / "scores" / f"{job.name}.json"

        def make() -> None:
            self._maker = self._maker or Maker(self.folder / "runs")
            self._maker.run(job, file)

        return Piece(job.name, file, make, self.needs(job))

    def needs(self, job: Job) -> tuple[Path, ...]:
        """What must be there before a job can begin."""
        return () if job.method == "base" else (self.run(job.method, job.seed) / "done.json",)

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """The rows of a job that is done."""
        found = json.loads((self.folder / "scores" / f"{job.name}.json").read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = found["rows"]
        return rows


def make(folder: Path, tables: Sequence[str], told: Told = untold) -> None:
    """Make what the tables need and is missing, beside other processes that do the same in the folder."""
    make_all(Study(folder).pieces(tables), folder, told)
