"""Results of the official code, or plain numbers, into scores: complete sets only, and never two runs in one.

An official result file has, for a dimension, a pair: the score of the set, and a score for each video. A plain one has
a number. Percent and fractions are told apart by the file as a whole; one that could be either is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.errors import InputError
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.vbench.protocol import DIMENSIONS, UNWEIGHED, Total, share_of_total, total
from pusa.files import existing_file

SETTINGS = "settings"
"""Key under which `pusa vbench score` records how the videos were made and scored."""
_SAMPLE = re.compile(r"-(\d+)\.mp4$")


@dataclass(frozen=True)
class Results:
    """What is known of a run. values: by dimension, in [0, 1]; videos: by dimension and file name."""

    name: str
    values: Mapping[str, float]
    videos: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Dimensions of the total without a value."""
        return [name for name in DIMENSIONS if name not in self.values]

    def entry_scores(self) -> dict[str, Interval]:
        """Each dimension's interval over entries, where there are scores for videos: an entry's samples are one."""
        found = {}
        for name, videos in self.videos.items():
            entries = [_SAMPLE.sub("", video) for video in videos]
            found[name] = bootstrap(list(videos.values()), groups=entries)
        return found


def read(paths: Sequence[Path]) -> Results:
    """The results in one or several files, each of which may hold some dimensions.

    Raises InputError for what is no result, for a dimension that two files give, and for files of two runs.
    """
    parts = [_read(path) for path in paths]
    values: dict[str, float] = {}
    videos: dict[str, Mapping[str, float]] = {}
    owner: dict[str, Path] = {}
    for path, part in zip(paths, parts, strict=True):
        if part.settings != parts[0].settings:
            raise InputError(
                f"{paths[0]} and {path} are of two runs ({_first_difference(parts[0], part)}); total each."
            )
        for name in part.values:
            if name in owner:
                raise InputError(f"{name} is in {owner[name]} and in {path}; give each dimension once.")
            owner[name] = path
        values |= part.values
        videos |= part.videos
    name = paths[0].stem if len(paths) == 1 else paths[0].parent.name or paths[0].stem
    return Results(name, values, videos, parts[0].settings)


def _first_difference(one: Results, other: Results) -> str:
    keys = sorted(set(one.settings) | set(other.settings))
    key = next(key for key in keys if one.settings.get(key) != other.settings.get(key))
    return f"{key} is {one.settings.get(key)!r} and {other.settings.get(key)!r}"


def _read(path: Path) -> Results:
    existing_file(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f'{path} is no JSON ({error}); give a result file or {{"i2v_subject": 0.97, …}}.') from error
    if not isinstance(found, dict):
        raise InputError(f'{path} holds no object; give a result file or {{"i2v_subject": 0.97, …}}.')
    settings = found.pop(SETTINGS, {})
    unavailable = {name for name, value in found.items() if isinstance(value, dict) and value.get("unavailable")}
    numbers: dict[str, float] = {}
    videos: dict[str, dict[str, float]] = {}
    for name, value in found.items():
        if name in unavailable:
            continue
        if name not in DIMENSIONS and name != UNWEIGHED:
            raise InputError(f"{path} has {name!r}, which is no dimension; there are {', '.join(DIMENSIONS)}.")
        score = value[0] if isinstance(value, list) and value else value
        if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
            raise InputError(f"{path}: {name} is {score!r}; give a number.")
        numbers[name] = float(score)
        if isinstance(value, list) and len(value) > 1:
            videos[name] = _per_video(path, name, value[1])
    numbers.pop(UNWEIGHED, None)
    videos.pop(UNWEIGHED, None)
    if not numbers:
        raise InputError(f"{path} has a value for no dimension; there are {', '.join(DIMENSIONS)}.")
    scale = _scale(path, numbers)
    return Results(
        path.stem,
        {name: value / scale for name, value in numbers.items()},
        {name: {video: score / scale for video, score in each.items()} for name, each in videos.items()},
        settings,
    )


def _per_video(path: Path, name: str, rows: Any) -> dict[str, float]:
    """Scores by file name; those of motion that the official code gives as truth values become 0 and 1."""
    try:
        return {Path(row["video_path"]).name: float(row["video_results"]) for row in rows}
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the videos of {name} are not as the official code writes them (video_path, video_results)."
        ) from error


def _scale(path: Path, numbers: Mapping[str, float]) -> float:
    """1 for fractions, 100 for percent. Values of both kinds in one file could be a slip, and are refused."""
    above = [name for name, value in numbers.items() if value > 1]
    if odd := [name for name, value in numbers.items() if value < 0 or value > 100]:
        raise InputError(f"{path}: {odd[0]} is {numbers[odd[0]]:g}; give a fraction from 0 to 1, or percent.")
    if not above:
        return 1.0
    if below := [name for name, value in numbers.items() if 0 < value <= 1]:
        raise InputError(
            f"{path}: {below[0]} is {numbers[below[0]]:g} and {above[0]} is {numbers[above[0]]:g}, so percent and "
            "fractions may be mixed; give all as fractions."
        )
    return 100.0


@dataclass(frozen=True)
class Verdict:
    """What can be said of a run. scores: None unless all dimensions are there; without_camera: all but that one."""

    scores: Total | None
    without_camera: Total | None
    intervals: Mapping[str, Interval]
    missing: Sequence[str]

    def record(self) -> dict[str, Any]:
        """As JSON, scores in percent."""
        return {
            "total": _percent(self.scores),
            "without_camera": _percent(self.without_camera),
            "missing": list(self.missing),
            "intervals": {name: interval.record() for name, interval in self.intervals.items()},
        }


def _percent(scores: Total | None) -> dict[str, float] | None:
    if scores is None:
        return None
    return {"total": 100 * scores.total, "i2v": 100 * scores.i2v, "quality": 100 * scores.quality}


def verdict(results: Results) -> Verdict:
    """Scores of a complete set, and of one that lacks camera motion alone; the intervals that its videos allow."""
    missing = results.missing
    whole = None if missing else total(results.values)
    without = total(results.values, camera=False) if set(missing) <= {"camera_motion"} else None
    intervals = results.entry_scores()
    if whole is not None and set(results.videos) >= set(DIMENSIONS):
        intervals["total"] = _interval_of_total(results)
    return Verdict(whole, without, intervals, missing)


def _interval_of_total(results: Results) -> Interval:
    """The total when each dimension's entries are drawn anew: dimensions have other videos, and are drawn apart."""
    rng_seed, draws = 0, 2000
    samples: list[NDArray[np.float64]] = []
    for name, videos in results.videos.items():
        if name not in DIMENSIONS:
            continue
        members: dict[str, list[float]] = {}
        for video, score in videos.items():
            members.setdefault(_SAMPLE.sub("", video), []).append(score)
        sums = np.array([[sum(scores), len(scores)] for scores in members.values()])
        picks = np.random.default_rng([rng_seed, len(samples)]).integers(len(sums), size=(draws, len(sums)))
        drawn = sums[picks].sum(axis=1)
        samples.append(share_of_total(name) * (drawn[:, 0] / drawn[:, 1] - sums[:, 0].sum() / sums[:, 1].sum()))
    spread = np.sum(samples, axis=0)
    value = total(results.values).total
    low, high = np.quantile(spread, [0.025, 0.975])
    return Interval(value, value + float(low), value + float(high))


def contributions(first: Results, second: Results) -> dict[str, float]:
    """How much each dimension adds to second − first, in points of the total; their sum is the difference."""
    shared = [name for name in DIMENSIONS if name in first.values and name in second.values]
    return {name: 100 * share_of_total(name) * (second.values[name] - first.values[name]) for name in shared}
