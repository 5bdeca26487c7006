from __future__ import annotations

import numpy as np
import pytest

from pusa.embedded import world
from pusa.evaluation.synthetic.tasks import MEASURES, TASKS, SceneTask, columns, psnr_of, score, summarise
from pusa.generation.given import Image

SEEDS = range(12)


@pytest.mark.parametrize("task", list(TASKS))
def test_the_truth_is_right_and_the_baseline_is_its_own_baseline(task: str) -> None:
    entries = [SceneTask(task, seed) for seed in SEEDS]
    truth = [score(entry, entry.truth()) for entry in entries]
    simple = [score(entry, TASKS[task].baseline(entry.truth())) for entry in entries]
    if TASKS[task].given:
        assert all(row["error"] == 0 and row["held"] == 0 for row in truth)
        assert all(row["error"] == row["baseline_error"] for row in simple)
        assert summarise(simple)["over_baseline"].value == pytest.approx(0)
        assert summarise(truth)["over_baseline"].value > 50
    right = "direction" if task == "camera" else "motion"
    assert summarise(truth)[right].value > 0.9
    if task in ("image-to-video", "camera"):
        assert summarise(simple)[right].value < 0.5


def test_what_is_given_is_what_conditions_hold_and_nothing_that_is_judged() -> None:
    for name, task in TASKS.items():
        judged = set(np.arange(world.FRAMES)[task.scored].tolist())
        assert not judged & set(task.given), name
        truth = SceneTask(name, 0).truth()
        pictures = [c for c in task.conditions(truth) if isinstance(c, Image)]
        assert {int(c.frame) for c in pictures} <= set(task.given)


def test_the_scenes_are_held_out_and_pure_functions_of_their_seed() -> None:
    assert SceneTask("extension", 3).scene == SceneTask("completion", 3).scene == world.sample(3, "heldout", "shape")
    assert np.array_equal(SceneTask("camera", 3).truth(), SceneTask("camera", 3).truth())


def test_a_scene_that_stands_still_says_nothing_about_a_repeated_frame() -> None:
    still = [{"error": 90.0, "baseline_error": 0.0}]
    moving = [{"error": 90.0, "baseline_error": 180.0}] * 9
    assert np.isnan(summarise(still)["over_baseline"].value)
    found = summarise(still + moving)["over_baseline"]
    assert 1 < found.low < found.value < found.high < 3.1


def test_pooled_psnr_is_that_of_the_mean_error() -> None:
    rows = [{"error": 0.0}, {"error": 200.0}]
    found = columns(rows, "db")
    assert found is not None
    assert MEASURES["db"][1](found) == pytest.approx(psnr_of(100.0))
    assert columns([{"seed": 0}], "db") is None
