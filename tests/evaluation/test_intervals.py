from __future__ import annotations

import math

import numpy as np

from pusa.evaluation.intervals import bootstrap


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = bootstrap(rng.normal(3.0, 1.0, 40), resamples=300)
        covered += found.low <= 3.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_samples_of_one_prompt_make_the_interval_wider_when_prompts_are_what_is_drawn() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(rng.normal(0, 1, 20), 5)
    values = prompts + rng.normal(0, 0.1, 100)
    alone = bootstrap(values)
    grouped = bootstrap(values, groups=np.repeat(np.arange(20), 5).tolist())
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 1.7 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval_and_one_group_has_none() -> None:
    values = np.random.default_rng(2).normal(size=10)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    for groups in (1, 4):
        assert math.isnan(bootstrap(values, groups=[i % groups for i in range(10)]).low)
    assert not math.isnan(bootstrap(values, groups=[i % 5 for i in range(10)]).low)


def test_any_statistic_of_the_rows() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 6.0]] * 3)
    found = bootstrap(rows, lambda r: float(r[:, 1].sum() / r[:, 0].sum()))
    assert found.value == 2.0
    assert (found.low, found.high) == (2.0, 2.0)
    assert found.text(1) == "2.0 (2.0 to 2.0)"
