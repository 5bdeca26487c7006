"""Scores against what nature itself varies: how a video compares with one real take, over how the other take does.

Verified: for each view of each scene the three overlaps over those of the takes, and the takes' squared error over the
video's; each is cut to [0, 1], their mean is the view's score, and the mean over views the benchmark's.
Original: the means over all scenes first; (the three ratios) / 3 − (error − the takes' error), cut to [0, 1].
The best possible score is 1, of a video that differs from a take no more than the other take does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.errors import InputError
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.physics_iq.dataset import SECONDS, Dataset, Scene
from pusa.evaluation.physics_iq.measures import Likeness, Seen, likeness, size_of
from pusa.videos import read_video

OVERLAPS = ("spatial", "spatiotemporal", "weighted")
MEASURES = (*OVERLAPS, "mse")
TINY = 1e-8
"""keeps a ratio finite, as the official code does"""


@dataclass(frozen=True)
class View:
    """One view of one scene: the video against the first take, and the takes against each other.

    still: no motion is found in either take, so that the overlaps say nothing.
    """

    scene: str
    view: str
    category: str
    video: Likeness
    takes: Likeness
    still: bool = False

    def parts(self) -> dict[str, float]:
        """The four parts of the verified score, each in [0, 1]."""
        ratios = {name: getattr(self.video, name) / (getattr(self.takes, name) + TINY) for name in MEASURES}
        ratios["mse"] = 1 / max(ratios["mse"], TINY)
        return {name: float(np.clip(value, 0, 1)) for name, value in ratios.items()}

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> View:
        """From JSON."""
        likenesses = {key: Likeness(**record[key]) for key in ("video", "takes")}
        return cls(**{**record, **likenesses})


def compare(scene: Scene, video: Path, dataset: Dataset) -> View:
    """Read and compare one video; InputError when it is not five seconds long or a real take is not there."""
    frames, fps = read_video(video)
    count = round(SECONDS * fps)
    if len(frames) != count:
        seconds = len(frames) / fps
        raise InputError(f"{video} has {len(frames)} frames, {seconds:.2f} s; cut it to {SECONDS} s, {count} frames.")
    real = []
    for number in (1, 2):
        path = dataset.take(scene, number, fps)
        if path is None:
            raise InputError(f"The dataset has no take {number} of {scene.id} ({scene.name}, {scene.view}).")
        take, _ = read_video(path, fps)
        if len(take) < count:
            raise InputError(f"{path} has {len(take)} frames at {fps:g} per second and {count} are needed.")
        real.append(take[:count])
    size = size_of(real[0])
    first, second, made = (Seen.of(clip, size) for clip in (*real, frames))
    still = not (first.masks.any() or second.masks.any())
    return View(scene.name, scene.view, scene.category, likeness(first, made), likeness(first, second), still)


def _table(views: Sequence[View]) -> NDArray[np.float64]:
    """[views, 12]: the verified parts, then the video's measures, then the takes'."""
    return np.array(
        [
            [
                *view.parts().values(),
                *(getattr(view.video, m) for m in MEASURES),
                *(getattr(view.takes, m) for m in MEASURES),
            ]
            for view in views
        ]
    )


def verified(table: NDArray[np.float64]) -> float:
    """The mean over views of the mean of their parts."""
    return float(table[:, :4].mean())


def original(table: NDArray[np.float64]) -> float:
    """The original Physics-IQ score."""
    video, takes = table[:, 4:8].mean(axis=0), table[:, 8:12].mean(axis=0)
    overlaps = (video[:3] / takes[:3]).sum() / 3
    return float(np.clip(overlaps - (video[3] - takes[3]), 0, 1))


@dataclass(frozen=True)
class Summary:
    """Scores in [0, 1] with intervals over scenes. parts: of the verified score; categories: its value in each."""

    verified: Interval
    original: Interval
    parts: Mapping[str, Interval]
    categories: Mapping[str, Interval]


def summarise(views: Sequence[View]) -> Summary:
    """All scores; the views of a scene are drawn together."""
    if not views:
        raise InputError("No video could be compared, so there is no score; see what is missing.")
    table, groups = _table(views), [view.scene for view in views]
    parts = {name: bootstrap(table[:, i], groups=groups) for i, name in enumerate(MEASURES)}
    categories = {}
    for category in sorted({view.category for view in views}):
        rows = [i for i, view in enumerate(views) if view.category == category]
        categories[category] = bootstrap(table[rows], verified, groups=[groups[i] for i in rows])
    return Summary(
        bootstrap(table, verified, groups=groups), bootstrap(table, original, groups=groups), parts, categories
    )
