"""Compare models on the tasks of the synthetic world: the pipeline makes the clips, and all models get the same scenes.

Scores are stored in small files. Their names identify the model by its content and settings. So an interrupted run can
be continued, several processes can share the work, models of several runs can be compared, and results of different
settings are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.embedded import world
from pusa.errors import InputError
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.results_folder import make_missing
from pusa.evaluation.synthetic.tasks import MEASURES, TASKS, SceneTask, columns, score, summarise
from pusa.files import replacing, write_json
from pusa.generation.pipeline import Pipeline, load
from pusa.media.images import contact_sheet, write_image
from pusa.models.lora import header, runtime
from pusa.models.lora.header import LoraFile
from pusa.work.units import Unit
from pusa.work.workers import Worker

CHUNK = 8
"""scenes in one file"""
PICTURED = 4
"""scenes of each task whose clips are kept for the contact sheet"""
SHEET_FRAMES = (0, 4, 8, 12, 16)


@dataclass(frozen=True)
class Candidate:
    """A model and its sampling settings.

    loras: paths and strengths. steps, guidance, shift: None for the model's defaults.
    """

    name: str
    source: str
    loras: tuple[tuple[str, float], ...] = ()
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None

    @property
    def key(self) -> str:
        """The folder name of its scores: readable, and different if the content of a LoRA or a setting differs."""
        known = asdict(self) | {"loras": [(_content(path), scale) for path, scale in self.loras]}
        known.pop("name")
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:10]
        plain = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in self.name)
        return f"{plain[-60:]}-{digest}"


@lru_cache
def _content(path: str) -> str:
    return runtime.fingerprint(header.file_of(path))


@lru_cache(maxsize=1)
def _pipeline(candidate: Candidate) -> Pipeline:
    files = [LoraFile(path, scale) for path, scale in candidate.loras]
    return load(candidate.source, lora=files)


class Benchmark:
    """A folder of scores. scenes: the number of held-out scenes of each task, with the seeds 0, 1, …"""

    def __init__(self, folder: Path, candidates: Sequence[Candidate], tasks: Sequence[str], scenes: int) -> None:
        if unknown := [task for task in tasks if task not in TASKS]:
            raise InputError(f"The synthetic world has no task {unknown[0]!r}: choose among {', '.join(TASKS)}.")
        if len({one.name for one in candidates}) < len(candidates):
            raise InputError("A model is given twice: give each model once.")
        self.folder, self.candidates, self.tasks, self.scenes = folder, tuple(candidates), tuple(tasks), scenes

    def units(self) -> list[Unit]:
        """All clips, in chunks of scenes, one model after the other."""
        return [
            Unit(f"{one.key} {task} {seeds.start}", file, partial(self._make, one, task, seeds, file))
            for one in self.candidates
            for task in self.tasks
            for seeds, file in self._files(one, task)
        ]

    def _files(self, one: Candidate, task: str) -> list[tuple[range, Path]]:
        """Seeds and file of each chunk. Chunks are always whole, so that a later run with more scenes can use them."""
        chunks = [range(first, first + CHUNK) for first in range(0, self.scenes, CHUNK)]
        return [(seeds, self.folder / one.key / task / f"{seeds.start:05d}.json") for seeds in chunks]

    def _make(self, one: Candidate, task: str, seeds: range, file: Path) -> None:
        pipe = _pipeline(one)
        rows = []
        for seed in seeds:
            entry = SceneTask(task, seed)
            with warnings.catch_warnings():
                # A model without an adapter may take part, so the warning is not repeated for each clip.
                warnings.filterwarnings("ignore", message="Some frames are given, and the model has no LoRA")
                clip = pipe.generate(
                    entry.scene.caption,
                    TASKS[task].conditions(entry.truth()),
                    frames=world.FRAMES,
                    size=(world.SIZE, world.SIZE),
                    seed=seed,
                    steps=one.steps,
                    guidance=one.guidance,
                    shift=one.shift,
                )
            if clip.frames.shape != entry.truth().shape:
                raise InputError(
                    f"{one.name} makes clips of {clip.frames.shape}, but the world has clips of 17 frames of 64x64; "
                    "leave it out."
                )
            rows.append(score(entry, clip.frames))
            if seed < PICTURED:
                with replacing(file.with_name(f"{seed:05d}.npy")) as part, part.open("wb") as opened:
                    np.save(opened, clip.frames[list(SHEET_FRAMES)])
        write_json(file, {"model": asdict(one), "task": task, "rows": rows})

    def rows(self, one: Candidate, task: str) -> list[dict[str, Any]]:
        """The scores of a model on a task, one row for each scene."""
        found: list[dict[str, Any]] = []
        for _, file in self._files(one, task):
            found += json.loads(file.read_text(encoding="utf-8"))["rows"]
        return found[: self.scenes]

    def results(self) -> dict[str, Any]:
        """Every measure of every task and model, with its interval and its difference from the first model, as JSON."""
        record: dict[str, Any] = {"scenes": self.scenes, "models": [asdict(one) for one in self.candidates]}
        record["tasks"] = {task: self._of(task) for task in self.tasks}
        return record

    def _of(self, task: str) -> dict[str, Any]:
        reference = self.rows(self.candidates[0], task)
        found = {}
        for one in self.candidates:
            rows = self.rows(one, task)
            found[one.name] = {
                measure: {**interval.record(), "over_first": _record(difference(rows, reference, measure))}
                for measure, interval in summarise(rows).items()
            }
        return found

    def sheet(self, file: Path) -> Path:
        """Frames 0, 4, 8, 12 and 16 of the first scenes of each task: of the truth and of each model's clip."""
        pictures, labels = [], []
        for task in self.tasks:
            for seed in range(min(PICTURED, self.scenes)):
                shown = [("truth", SceneTask(task, seed).truth()[list(SHEET_FRAMES)])]
                for one in self.candidates:
                    shown.append((one.name, np.load(self.folder / one.key / task / f"{seed:05d}.npy")))
                for name, frames in shown:
                    pictures += list(frames)
                    labels += [f"{task} {seed}: {name}", *[""] * (len(SHEET_FRAMES) - 1)]
        width = len(SHEET_FRAMES) * (len(self.candidates) + 1)
        write_image(file, contact_sheet(pictures, width, labels))
        return file


def difference(rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], measure: str) -> Interval | None:
    """The difference of a measure from the reference on the same scenes; None if a task does not have the measure."""
    first, second = columns(rows, measure), columns(reference, measure)
    if first is None or second is None:
        return None
    statistic = MEASURES[measure][1]

    def more(both: NDArray[Any]) -> float:
        return statistic(both[..., 0]) - statistic(both[..., 1])

    return bootstrap(np.stack([first, second], axis=-1), more)


def _record(found: Interval | None) -> dict[str, float | None] | None:
    return None if found is None else found.record()


def make(folder: Path, candidates: Sequence[Candidate], tasks: Sequence[str], scenes: int, worker: Worker) -> None:
    """Make the missing scores, together with the other processes that fill the folder."""
    make_missing(Benchmark(folder, candidates, tasks, scenes).units(), folder, progress=worker.progress)
