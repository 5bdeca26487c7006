"""The tasks of the synthetic benchmark, on held-out scenes, scored against the truth and by the judge.

A scene is a function of its seed, and the first frame and the caption of a shape clip determine all later frames. So
the generated frames of such a task are compared with the truth pixel by pixel, and with a simple baseline. The judge
decides from the pixels whether colour, shape and motion are those of the caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pusa.embedded import judge, world
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.generation.given import Clip, Image
from pusa.media.images import Frames

LAST = world.FRAMES - 1
EXACT = 1e-4
"""the mean squared error, in levels², below which clips count as equal: 88 dB"""


@dataclass(frozen=True)
class Task:
    """What is given of a clip of 17 frames, and what is scored.

    kind: of the scenes. given: the given pixel frames. scored: the frames that are compared with the truth. conditions:
    what the model gets, from the true clip. baseline: a simple clip, from the true clip; baseline_title: its name.
    """

    title: str
    kind: Literal["shape", "camera"]
    given: tuple[int, ...]
    scored: slice | list[int]
    conditions: Callable[[Frames], list[Image | Clip]]
    baseline: Callable[[Frames], Frames]
    baseline_title: str


def _hold(frame: int) -> Callable[[Frames], Frames]:
    return lambda truth: np.repeat(truth[frame : frame + 1], len(truth), axis=0)


def _fade(first: int, last: int) -> Callable[[Frames], Frames]:
    """The frames between two given frames as their mixture."""

    def made(truth: Frames) -> Frames:
        weight = np.clip((np.arange(len(truth)) - first) / (last - first), 0, 1)[:, None, None, None]
        mixed: Frames = np.rint((1 - weight) * truth[first] + weight * truth[last]).astype(np.uint8)
        return mixed

    return made


def _keyframes(truth: Frames) -> Frames:
    return np.concatenate([_fade(0, 8)(truth)[:8], _fade(8, LAST)(truth)[8:]])


TASKS: dict[str, Task] = {
    "text-to-video": Task(
        "Text to video", "shape", (), slice(0, 0), lambda truth: [], _hold(0), "the first frame repeated"
    ),
    "image-to-video": Task(
        "Image to video", "shape", (0,), slice(1, None), lambda truth: [Image(truth[0])], _hold(0),
        "the first frame repeated",
    ),
    "start-end": Task(
        "Start and end", "shape", (0, LAST), slice(4, 13), lambda truth: [Image(truth[0]), Image(truth[LAST], LAST)],
        _fade(0, LAST), "a cross-fade",
    ),
    "keyframes": Task(
        "Keyframes 0, 8 and 16", "shape", (0, 8, LAST), [1, 2, 3, 4, 9, 10, 11, 12],
        lambda truth: [Image(truth[0]), Image(truth[8], 8), Image(truth[LAST], LAST)], _keyframes, "cross-fades",
    ),
    "extension": Task(
        "Extension of 9 frames", "shape", tuple(range(9)), slice(9, None), lambda truth: [Clip(truth, frames=9)],
        _hold(8), "the last given frame repeated",
    ),
    "completion": Task(
        "Completion between 5 and 4 frames", "shape", (*range(5), *range(13, 17)), slice(5, 13),
        lambda truth: [Clip(truth, frames=5), Clip(truth, at=13, start=13, frames=4)], _fade(4, 13), "a cross-fade",
    ),
    "transition": Task(
        "Transition between two clips", "shape", (*range(5), *range(13, 17)), slice(5, 13),
        lambda truth: [Clip(truth[:5]), Clip(truth[13:], at=13)], _fade(4, 13), "a cross-fade",
    ),
    "camera": Task(
        "Image to video, moving camera", "camera", (0,), slice(1, None), lambda truth: [Image(truth[0])], _hold(0),
        "the first frame repeated",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SceneTask:
    """A clip to make: a task on the held-out scene of a seed."""

    task: str
    seed: int

    @property
    def scene(self) -> world.Scene:
        """The scene that the clip should show."""
        return world.sample(self.seed, "heldout", TASKS[self.task].kind)

    def truth(self) -> Frames:
        """The rendered clip of the scene, uint8 [17, 64, 64, 3]."""
        return world.render(self.scene)


def score(entry: SceneTask, frames: Frames) -> dict[str, Any]:
    """Score a generated clip, uint8 [17, 64, 64, 3]: a row of JSON.

    "error", "baseline_error": mean squared error over the scored frames, in levels². "held": the same over the given
    frames. "colour", "shape", "motion": whether the judge finds those of the caption (shape clips). "direction":
    whether it finds the motion of the camera (camera clips).
    """
    task, scene, truth = TASKS[entry.task], entry.scene, entry.truth()
    row: dict[str, Any] = {"seed": entry.seed}
    if task.given:
        row["error"] = _error(frames, truth, task.scored)
        row["baseline_error"] = _error(task.baseline(truth), truth, task.scored)
        row["held"] = _error(frames, truth, list(task.given))
    if isinstance(scene, world.CameraScene):
        return row | {"direction": judge.judge_camera(frames) == scene.motion}
    verdict = judge.judge(frames)
    row |= {key: getattr(verdict, key) == getattr(scene, key) for key in ("colour", "shape", "motion")}
    return row | {"speed": verdict.speed if scene.motion in world.DIRECTIONS else None}


def _error(clip: Frames, truth: Frames, frames: slice | list[int]) -> float:
    return float(np.square(clip[frames].astype(np.float64) - truth[frames]).mean())


def psnr_of(error: float | NDArray[Any]) -> Any:
    """The PSNR in dB of a mean squared error, in levels² of 255.

    For the mean error over clips, this is the pooled PSNR. A mean of PSNRs would be dominated by clips without motion,
    where a repeated frame is exact.
    """
    return 20 * np.log10(255) - 10 * np.log10(np.maximum(error, EXACT))


def _over_baseline(rows: NDArray[Any]) -> float:
    """PSNR above that of the baseline in dB; NaN if the baseline is exact, as for a scene without motion."""
    made, simple = rows[..., 0].mean(), rows[..., 1].mean()
    return float(psnr_of(made) - psnr_of(simple)) if simple > EXACT else float("nan")


MEASURES: dict[str, tuple[str, Callable[[NDArray[Any]], float], tuple[str, ...]]] = {
    "db": ("PSNR against the truth, dB", lambda rows: float(psnr_of(rows[..., 0].mean())), ("error",)),
    "over_baseline": ("over the baseline, dB", _over_baseline, ("error", "baseline_error")),
    "held_db": ("PSNR of the given frames, dB", lambda rows: float(psnr_of(rows[..., 0].mean())), ("held",)),
    **{
        key: (f"{key} right", lambda rows: float(rows[..., 0].mean()), (key,))
        for key in ("motion", "colour", "shape", "direction")
    },
}
"""by name: the title, the statistic over rows [..., columns], and the columns"""


def columns(rows: Sequence[Mapping[str, Any]], measure: str) -> NDArray[Any] | None:
    """The values that a measure is computed from, [clips, columns]; None if the task does not have the measure."""
    names = MEASURES[measure][2]
    if not rows or any(name not in row for row in rows for name in names):
        return None
    return np.array([[float(row[name]) for name in names] for row in rows])


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Every measure that the rows of one task have, with its bootstrap interval over scenes."""
    found = {}
    for name, (_, statistic, _) in MEASURES.items():
        if (values := columns(rows, name)) is not None:
            found[name] = bootstrap(values, statistic)
    return found
