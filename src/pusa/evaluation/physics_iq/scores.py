"""Scores relative to natural variation: the similarity of a video to one real take, divided by that of the other take.

Verified: for each view of each scene, the three overlaps divided by those of the two takes, and the squared error of
the takes divided by that of the video, each clipped to [0, 1]. Their mean is the score of the view; the mean over views
is that of the benchmark. Original: the means over all scenes first, then (the sum of the three ratios) / 3 − (error −
error of the takes), clipped to [0, 1]. A video that differs from a take no more than the other take does has the best
score, 1.
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
from pusa.evaluation.physics_iq.measures import ComparedVideo, Similarity, similarity, size_of
from pusa.media.images import Frames
from pusa.media.videos import nearest, read_video

OVERLAPS = ("spatial", "spatiotemporal", "weighted")
MEASURES = (*OVERLAPS, "mse")
TINY = 1e-8
"""keeps a ratio finite, as in the official code"""


@dataclass(frozen=True)
class View:
    """One view of one scene. video: compared with the first take. takes: compared with each other.

    still: neither take has any motion, so the overlaps have no meaning.
    """

    scene: str
    view: str
    category: str
    video: Similarity
    takes: Similarity
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
        similarities = {key: Similarity(**record[key]) for key in ("video", "takes")}
        return cls(**{**record, **similarities})


def compare(scene: Scene, video: Path, dataset: Dataset) -> View:
    """Read and compare one video. Raises InputError if it is not five seconds long, or if a real take is missing."""
    frames, fps = read_video(video)
    count = round(SECONDS * fps)
    if len(frames) != count:
        seconds = len(frames) / fps
        raise InputError(
            f"{video} has {len(frames)} frames, {seconds:.2f} s; give a video of {SECONDS} s, {count} frames "
            f"at {fps:g} per second."
        )
    real = []
    for number in (1, 2):
        path = dataset.take(scene, number, fps)
        if path is None:
            raise InputError(
                f"The dataset has no take {number} of {scene.id} ({scene.name}, {scene.view}); download all of it."
            )
        real.append(_first_seconds(path, count, fps))
    size = size_of(real[0])
    first, second, made = (ComparedVideo.of(clip, size) for clip in (*real, frames))
    still = not (first.masks.any() or second.masks.any())
    return View(scene.name, scene.view, scene.category, similarity(first, made), similarity(first, second), still)


def _first_seconds(take: Path, count: int, fps: float) -> Frames:
    """Return the frames of a real take that are shown at k / fps seconds, for k below `count`.

    The last frame is shown until the end of the take, also at a rate just below or above that of the take. Raises
    InputError if the take ends more than half a frame before its five seconds.
    """
    frames, own = read_video(take)
    if len(frames) < SECONDS * own - 0.5:
        raise InputError(
            f"{take} has {len(frames)} frames, {len(frames) / own:.2f} s, but {SECONDS} s are needed; download it "
            "again."
        )
    return frames[nearest(np.arange(len(frames)) / own, np.arange(count) / fps)]


def _table(views: Sequence[View]) -> NDArray[np.float64]:
    """[views, 12]: the verified parts, then the measures of the video, then those of the takes."""
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
    """The Physics-IQ Verified score in [0, 1]: the mean over views of the mean of their parts."""
    return float(table[:, :4].mean())


def original(table: NDArray[np.float64]) -> float:
    """The original Physics-IQ score in [0, 1]."""
    video, takes = table[:, 4:8].mean(axis=0), table[:, 8:12].mean(axis=0)
    overlaps = (video[:3] / takes[:3]).sum() / 3
    return float(np.clip(overlaps - (video[3] - takes[3]), 0, 1))


@dataclass(frozen=True)
class Summary:
    """Scores in [0, 1] with intervals over scenes.

    parts: of the verified score. categories: the verified score of each category.
    """

    verified: Interval
    original: Interval
    parts: Mapping[str, Interval]
    categories: Mapping[str, Interval]


def summarise(views: Sequence[View]) -> Summary:
    """All scores. The views of a scene are drawn together. Raises InputError if there are no views."""
    if not views:
        raise InputError("No video could be compared, so there is no score; check the missing videos.")
    table, groups = _table(views), [view.scene for view in views]
    parts = {name: bootstrap(table[:, i], groups=groups) for i, name in enumerate(MEASURES)}
    categories = {}
    for category in sorted({view.category for view in views}):
        rows = [i for i, view in enumerate(views) if view.category == category]
        categories[category] = bootstrap(table[rows], verified, groups=[groups[i] for i in rows])
    return Summary(
        bootstrap(table, verified, groups=groups), bootstrap(table, original, groups=groups), parts, categories
    )
