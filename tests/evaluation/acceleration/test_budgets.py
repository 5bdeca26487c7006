"""Budgets of tokens on a loaded pipeline: a clip is sampled again and again, and the best shares are found."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pusa.acceleration.search import evolve, greedy
from pusa.evaluation.acceleration.budgets import error_on, named, searched
from pusa.evaluation.acceleration.repeated import LEAST, Repeated, geometric_mean
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load

PROMPT = "a red circle moves left on a black background"
OPTIONS = {"steps": 5, "guidance": 2.0, "frames": 9}
pytestmark = pytest.mark.filterwarnings("ignore:Some frames are given, and the model has no LoRA")


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def clip(pipe: Pipeline) -> Repeated:
    return Repeated(pipe, PROMPT, [Image(np.full((32, 32, 3), 90, np.uint8))], seed=3, **OPTIONS)


def test_a_repeated_clip_is_the_generated_one(pipe: Pipeline, clip: Repeated) -> None:
    picture = Image(np.full((32, 32, 3), 90, np.uint8))
    for accelerate in (None, "tokens,share=0.4"):
        made = pipe.generate(PROMPT, [picture], seed=3, accelerate=accelerate, **OPTIONS)
        latents, accounting = clip.sample(accelerate)
        assert torch.equal(latents, made.latents)
        assert accounting.fraction == pytest.approx(made.recipe.get("acceleration", {}).get("computed", 1), abs=1e-4)
    assert torch.equal(clip.plain, clip.sample(None)[0])


def test_the_error_counts_the_frames_that_move(clip: Repeated) -> None:
    changed = clip.plain.clone()
    changed[:, :, 0] += 5.0
    assert clip.moving.tolist() == [False, True, True]
    assert clip.error(changed) == LEAST
    changed[:, :, 2] += 1.0
    variance = float(clip.plain[:, :, 1:].double().var())
    assert clip.error(changed) == pytest.approx(0.5 / variance, rel=1e-4)
    assert geometric_mean([1e-2, 1e-4]) == pytest.approx(1e-3)


def test_the_best_shares_of_steps_and_frames(clip: Repeated) -> None:
    steps = searched([clip], 0.5, search=partial(greedy, changes=(0.3,)))
    assert steps.error <= steps.uniform
    assert steps.error == error_on([clip])(steps.budget)
    assert steps.budget.shape == (5, 1)
    frames = searched([clip], 0.5, by_frame=True, search=partial(evolve, population=4, born=2, generations=1))
    assert frames.budget.shape == (5, 3)
    assert frames.budget[1:].mean() == pytest.approx(0.5)
    assert named(frames.budget).count(":") == 10
    assert named(steps.budget).startswith("tokens,share=1/")
