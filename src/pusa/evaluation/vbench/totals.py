"""Turn results of the official code, or plain numbers, into scores.

Only complete sets are scored, and runs are never mixed. In an official result file, each dimension has a list: first
the score of the set, last a score for each video. In a plain file, each dimension has a number. Whether a file contains
percent or fractions is decided for the whole file; an ambiguous file is refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pusa.errors import InputError
from pusa.evaluation.intervals import FEWEST, RESAMPLES, Interval, bootstrap
from pusa.evaluation.vbench.protocol import DIMENSIONS, UNWEIGHED, Total, share_of_total, total
from pusa.files import existing_file, replacing

SETTINGS, CONTENT = "settings", "content"
"""keys under which `pusa vbench score` stores how the videos were made and scored, and which files they were"""
PER_VIDEO = {"imaging_quality": 100.0}
"""the factor between the unit of a video's score and that of the set, where the official code uses two units"""
AGREE = 0.005
"""the largest difference of a score from the mean of its videos; some scores are means over frames"""
_SAMPLE = re.compile(r"-(\d+)\.mp4$")


@dataclass(frozen=True)
class Results:
    """The results of a run.

    values: in [0, 1], by dimension. videos: in [0, 1], by dimension and file name. folder: the folder of the videos.
    """

    name: str
    values: Mapping[str, float]
    videos: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None

    @property
    def missing(self) -> list[str]:
        """The dimensions of the total that have no value."""
        return [name for name in DIMENSIONS if name not in self.values]

    @property
    def short(self) -> dict[str, tuple[int, int]]:
        """The dimensions that were not measured on all their videos: how many were measured, and how many there are."""
        counts = {name: (len(videos), DIMENSIONS[name].videos) for name, videos in self.videos.items()}
        return {name: both for name, both in counts.items() if both[0] != both[1]}


def read(paths: Sequence[Path]) -> Results:
    """Read the results in one or several files; each file may contain some dimensions.

    Raises InputError if a file is not a result, if two files have the same dimension, or if the files are of different
    runs.
    """
    parts = [_read(path) for path in paths]
    values: dict[str, float] = {}
    videos: dict[str, Mapping[str, float]] = {}
    owner: dict[str, Path] = {}
    for path, part in zip(paths, parts, strict=True):
        if part.settings != parts[0].settings:
            raise InputError(
                f"{paths[0]} and {path} are of two runs ({_first_difference(parts[0], part)}); total each run on its "
                "own."
            )
        if part.folder != parts[0].folder and None not in (part.folder, parts[0].folder):
            raise InputError(
                f"{paths[0]} is of videos in {parts[0].folder}, and {path} is of videos in {part.folder}; total each "
                "run on its own."
            )
        for name in part.values:
            if name in owner:
                raise InputError(
                    f"{name} is in {owner[name]} and in {path}; give each dimension once, or another run as --against."
                )
            owner[name] = path
        values |= part.values
        videos |= part.videos
    home = paths[0].absolute().parent
    called = home.parent.name if home.name == "scores" else home.name  # the name results.json does not identify a run
    name = paths[0].stem if len(paths) == 1 and paths[0].stem != "results" else called
    return Results(name, values, videos, parts[0].settings, parts[0].folder)


def _first_difference(one: Results, other: Results) -> str:
    keys = sorted(set(one.settings) | set(other.settings))
    key = next(key for key in keys if one.settings.get(key) != other.settings.get(key))
    return f"{key} is {one.settings.get(key)!r} and {other.settings.get(key)!r}"


def _read(path: Path) -> Results:
    existing_file(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); give a result file or {{"i2v_subject": 0.97, …}}.') from error
    if not isinstance(found, dict):
        raise InputError(f'{path} does not contain an object; give a result file or {{"i2v_subject": 0.97, …}}.')
    settings, _ = found.pop(SETTINGS, {}), found.pop(CONTENT, None)
    unavailable = {name for name, value in found.items() if isinstance(value, dict) and value.get("unavailable")}
    numbers: dict[str, float] = {}
    videos: dict[str, dict[str, float]] = {}
    folders: set[str] = set()
    for name, value in found.items():
        if name in unavailable:
            continue
        if name not in DIMENSIONS and name != UNWEIGHED:
            raise InputError(
                f"{path} has {name!r}, which is not a dimension; the dimensions are {', '.join(DIMENSIONS)}."
            )
        score = value[0] if isinstance(value, list) and value else value
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e9:
            raise InputError(f"{path}: {name} is {score!r}; give a number.")
        numbers[name] = float(score)
        if isinstance(value, list) and len(value) > 1:
            try:
                videos[name] = official(name, value)[1]
                folders |= {str(Path(row["video_path"]).parent) for row in value[-1]}
            except InputError as error:
                raise InputError(f"{path}: {error}.") from error
    if len(folders) > 1:
        raise InputError(f"{path} is of videos in {' and '.join(sorted(folders)[:2])}; total each run on its own.")
    numbers.pop(UNWEIGHED, None)
    videos.pop(UNWEIGHED, None)
    if not numbers:
        raise InputError(f"{path} does not have a value for any dimension; the dimensions are {', '.join(DIMENSIONS)}.")
    scale = _scale(path, numbers)
    return Results(
        path.stem,
        {name: value / scale for name, value in numbers.items()},
        {name: {video: score / scale for video, score in each.items()} for name, each in videos.items()},
        settings,
        next(iter(folders), None),
    )


def official(name: str, result: Any) -> tuple[float, dict[str, float]]:
    """The score of the set, and the scores of the videos by file name, from a result of the official code.

    result: [score, videos]; for camera motion, the scores by kind of motion are between the two. Booleans become 0 and
    1. Raises InputError if the result has another form, or if the mean of the videos is not the score.
    """
    try:
        score, *_, rows = result
        videos = {Path(row["video_path"]).name: float(row["video_results"]) / PER_VIDEO.get(name, 1) for row in rows}
        mean = sum(videos.values()) / len(videos)
    except (TypeError, KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"the videos of {name} do not have the form of the official code (video_path, video_results); score it "
            "again"
        ) from error
    if not abs(mean - score) <= AGREE:
        raise InputError(f"{name} is {score:g}, but its videos have a mean of {mean:g}; score it again")
    return float(score), videos


def _scale(path: Path, numbers: Mapping[str, float]) -> float:
    """1 for fractions, 100 for percent. A file that seems to contain both is refused."""
    above = [name for name, value in numbers.items() if value > 1]
    if wrong := [name for name, value in numbers.items() if value < 0 or value > 100]:
        raise InputError(f"{path}: {wrong[0]} is {numbers[wrong[0]]:g}; give a fraction from 0 to 1, or percent.")
    if not above:
        return 1.0
    if below := [name for name, value in numbers.items() if 0 < value <= 1]:
        raise InputError(
            f"{path}: {below[0]} is {numbers[below[0]]:g} and {above[0]} is {numbers[above[0]]:g}, so percent and "
            "fractions may be mixed; give all as fractions."
        )
    return 100.0


@dataclass(frozen=True)
class RunScores:
    """The scores of a run.

    scores: None unless all dimensions have values for all their videos. without_camera: the same without camera motion.
    part: the scores of the existing videos, if some dimensions have too few; this is not a score of the benchmark.
    """

    scores: Total | None
    without_camera: Total | None
    part: Total | None
    intervals: Mapping[str, Interval]
    missing: Sequence[str]
    short: Mapping[str, tuple[int, int]]

    def record(self) -> dict[str, Any]:
        """As JSON, with scores in percent."""
        return {
            "total": _percent(self.scores),
            "without_camera": _percent(self.without_camera),
            "part": _percent(self.part),
            "missing": list(self.missing),
            "videos": {name: list(both) for name, both in self.short.items()},
            "intervals": {
                name: {end: value and 100 * value for end, value in interval.record().items()}
                for name, interval in self.intervals.items()
            },
        }


def _percent(scores: Total | None) -> dict[str, float] | None:
    if scores is None:
        return None
    return {"total": 100 * scores.total, "i2v": 100 * scores.i2v, "quality": 100 * scores.quality}


def run_scores(results: Results) -> RunScores:
    """The scores of a complete set, or of a set that lacks only camera motion, and the intervals."""
    missing, short = results.missing, results.short
    whole = None if missing else total(results.values)
    without = total(results.values, camera=False) if set(missing) <= {"camera_motion"} else None
    return RunScores(
        scores=None if short else whole,
        without_camera=None if short else without,
        part=whole if short else None,
        intervals=intervals(results),
        missing=missing,
        short=short,
    )


def intervals(results: Results) -> dict[str, Interval]:
    """The interval of each dimension that has scores of videos, and of "total" if all dimensions have.

    The samples of a prompt are one entry, and whole entries are drawn. For the total, an entry is drawn with all its
    scores, among the entries of its kind (those that measure a subject, a background or a camera motion).
    """
    found = {}
    entries: dict[str, dict[str, list[float]]] = {}
    for name, videos in results.videos.items():
        labels = [_SAMPLE.sub("", video) for video in videos]
        found[name] = bootstrap(list(videos.values()), groups=labels)
        for label, score in zip(labels, videos.values(), strict=True):
            entries.setdefault(label, {}).setdefault(name, []).append(score)
    if set(results.videos) >= set(DIMENSIONS):
        found["total"] = _of_total(total(results.values).total, list(entries.values()))
    return found


def _of_total(value: float, entries: Sequence[Mapping[str, Sequence[float]]]) -> Interval:
    """The total is linear in the dimensions, so only the deviation of each dimension from its mean is drawn."""
    kinds: dict[frozenset[str], list[Mapping[str, Sequence[float]]]] = {}
    for entry in entries:
        kinds.setdefault(frozenset(entry), []).append(entry)
    if any(len(members) < FEWEST for members in kinds.values()):
        return Interval(value, np.nan, np.nan)
    rng = np.random.default_rng(0)
    sums, counts = (np.zeros((RESAMPLES + 1, len(DIMENSIONS))) for _ in range(2))
    for members in kinds.values():
        each = np.array([[sum(entry.get(name, ())) for name in DIMENSIONS] for entry in members])
        samples = np.array([[len(entry.get(name, ())) for name in DIMENSIONS] for entry in members])
        drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES)
        times = np.vstack([np.ones(len(members)), drawn])
        sums, counts = sums + times @ each, counts + times @ samples
    totals = sums / counts @ np.array([share_of_total(name) for name in DIMENSIONS])
    low, high = value + np.quantile(totals[1:] - totals[0], [0.025, 0.975])
    return Interval(value, float(low), float(high))


def contributions(first: Results, second: Results) -> dict[str, float]:
    """The contribution of each dimension to second − first, in points of the total; their sum is the difference.

    Raises InputError if the two runs have different videos.
    """
    shared = [name for name in DIMENSIONS if name in first.values and name in second.values]
    for name in shared:
        if name in first.videos and name in second.videos and first.videos[name].keys() != second.videos[name].keys():
            raise InputError(
                f"{second.name} has {len(second.videos[name]):,} videos of {name} and {first.name} has "
                f"{len(first.videos[name]):,}, and the videos differ; compare runs of one suite."
            )
    return {name: 100 * share_of_total(name) * (second.values[name] - first.values[name]) for name in shared}


def submit(results: Results, path: Path) -> None:
    """Write the zip file for the leaderboard: the official results of the nine dimensions, by video.

    Raises InputError if a dimension does not have a score for each of its videos, or if the file exists.
    """
    if path.exists() or path.suffix != ".zip":
        why = "exists" if path.exists() else "does not end in .zip"
        raise InputError(f"--submission {path} {why}; give another name.")
    for name, dimension in DIMENSIONS.items():
        if (have := len(results.videos.get(name, ()))) != dimension.videos:
            raise InputError(
                f"--submission needs official results of all videos, but {name} has {have:,} of {dimension.videos:,}."
            )
    found = {}
    for name in DIMENSIONS:
        unit = PER_VIDEO.get(name, 1)
        rows = [{"video_path": file, "video_results": unit * score} for file, score in results.videos[name].items()]
        found[name] = [results.values[name], rows]
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eval_results.json", json.dumps(found))
