"""Compare the videos of a folder, one by one. Each result is stored under a hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.evaluation.physics_iq.dataset import Dataset, Scene, scenes
from pusa.evaluation.physics_iq.scores import Summary, View, compare
from pusa.evaluation.results_folder import make_missing
from pusa.files import write_json
from pusa.work.units import Unit
from pusa.work.workers import Worker

VERSION = 2
"""the version of the measures"""


def units(videos: Path, descriptions: Path, data: Path, out: Path) -> list[Unit]:
    """A unit of work for each existing video."""
    dataset = Dataset(data)
    found = [(scene, _video(videos, scene)) for scene in scenes(descriptions)]
    return [
        Unit(scene.file, file, partial(_compare, scene, video, dataset, file))
        for scene, video in found
        if video is not None
        for file in [_result_file(out, scene, video, dataset)]
    ]


def _video(videos: Path, scene: Scene) -> Path | None:
    """The video of a scene, by its name or, as in the official code, by the number at the start of its name."""
    if (videos / scene.file).is_file():
        return videos / scene.file
    numbered = sorted(videos.glob(f"{scene.id}_*.mp4"))
    return numbered[0] if numbered else None


def _result_file(out: Path, scene: Scene, video: Path, dataset: Dataset) -> Path:
    known = f"{scene} {dataset.takes(scene)} {VERSION}"
    content = hashlib.sha256(video.read_bytes() + known.encode()).hexdigest()[:16]
    return out / "views" / f"{scene.id}-{content}.json"


def _compare(scene: Scene, video: Path, dataset: Dataset, file: Path) -> None:
    try:
        record = compare(scene, video, dataset).record()
    except InputError as error:
        record = {"error": str(error)}
    write_json(file, record)


def make(videos: Path, descriptions: Path, data: Path, out: Path, worker: Worker) -> None:
    """Make the missing comparisons, together with the other processes that fill the folder."""
    make_missing(units(videos, descriptions, data, out), out, progress=worker.progress)


def results(videos: Path, descriptions: Path, data: Path, out: Path) -> tuple[list[View], dict[str, str]]:
    """The comparisons, and what is wrong with the other videos, by file. The next run tries failed videos again."""
    views: list[View] = []
    problems: dict[str, str] = {}
    dataset = Dataset(data)
    for scene in scenes(descriptions):
        video = _video(videos, scene)
        if video is None:
            problems[scene.file] = "is missing"
            continue
        file = _result_file(out, scene, video, dataset)
        record = json.loads(file.read_text(encoding="utf-8"))
        if "error" in record:
            file.unlink()
            problems[scene.file] = record["error"]
        else:
            views.append(View.read(record))
    return views, problems


def summary_record(found: Summary) -> dict[str, Any]:
    """A summary as JSON."""
    return {
        "verified": found.verified.record(),
        "original": found.original.record(),
        "parts": {name: one.record() for name, one in found.parts.items()},
        "categories": {name: one.record() for name, one in found.categories.items()},
    }
