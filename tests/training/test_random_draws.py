"""Noise levels of training: their law, their patterns, their range, and what they are a function of.

Distances between distributions are Kolmogorov-Smirnov at a significance of 1e-4 and several seeds; each such test has a
control that is wrong by little and must be found out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pusa.core import schedules, sigmas
from pusa.errors import InputError
from pusa.training import random_draws
from pusa.training.config.sections import SigmaConfig
from pusa.training.random_draws import LEAST_FRAMES, dropped, noise_of, sigmas_of

FRAMES, SEEDS = 5, (0, 1, 2)
LAWS: dict[str, tuple[SigmaConfig, sigmas.Law]] = {
    "uniform": (SigmaConfig(), sigmas.uniform),
    "shifted": (SigmaConfig(law="shifted", shift=5.0), sigmas.shifted(5.0)),
    "grid": (SigmaConfig(law="shifted", shift=3.0, levels=1000), sigmas.shifted(3.0, 1000)),
    "logit-normal": (SigmaConfig(law="logit-normal", mean=0.5, std=1.2), sigmas.logit_normal(0.5, 1.2)),
}


def sample(config: SigmaConfig, seed: int, *, batch: int = 4, steps: int = 500, frames: int = FRAMES) -> Tensor:
    return torch.cat([sigmas_of(step, 0, batch, frames, config, seed).sigma for step in range(steps)])


def distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov-Smirnov distance of two samples over what chance allows at 1e-4: above 1 they differ."""
    both = torch.cat([a, b]).double().sort().values
    gap = torch.searchsorted(a.double().sort().values, both, right=True) / len(a) - torch.searchsorted(
        b.double().sort().values, both, right=True
    ) / len(b)
    return float(gap.abs().max()) / (math.sqrt(-math.log(1e-4 / 2) / 2) * math.sqrt(1 / len(a) + 1 / len(b)))


def same(a: Tensor, b: Tensor) -> bool:
    return distance(a, b) < 1


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("seed", SEEDS)
def test_independent_frames_follow_the_law_and_know_nothing_of_each_other(name: str, seed: int) -> None:
    config, law = LAWS[name]
    drawn = sample(config, seed)
    truth = sigmas.ptss(20_000, FRAMES, 1.0, law=law, generator=torch.Generator().manual_seed(99))
    for frame in range(FRAMES):
        assert same(drawn[:, frame], truth[:, frame])
    assert same(drawn.max(dim=1).values, truth.max(dim=1).values)
    assert same((drawn[:, 0] - drawn[:, 3]).abs(), (truth[:, 0] - truth[:, 3]).abs())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_law_that_is_wrong_by_little_is_found_out(seed: int) -> None:
    drawn = sample(SigmaConfig(law="shifted", shift=1.3), seed)
    truth = sigmas.ptss(20_000, FRAMES, 1.0, generator=torch.Generator().manual_seed(99))
    assert not same(drawn[:, 0], truth[:, 0])
    shared = sample(SigmaConfig(pattern="shared"), seed)
    assert same(shared[:, 0], truth[:, 0])
    assert not same((shared[:, 0] - shared[:, 3]).abs(), (truth[:, 0] - truth[:, 3]).abs())


@given(batch=st.integers(1, 24), frames=st.integers(1, 9), step=st.integers(0, 10**6), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_a_batch_has_one_level_in_each_part_of_the_law(batch: int, frames: int, step: int, seed: int) -> None:
    drawn = sigmas_of(step, 3, batch, frames, SigmaConfig(), seed).sigma
    parts = (drawn.double() * batch * (1 - 1e-7)).long().sort(dim=0).values
    assert (parts == torch.arange(batch)[:, None]).all()


def test_levels_drawn_without_strata_would_not_have_that() -> None:
    drawn = sigmas.ptss(24, 9, 1.0, generator=torch.Generator().manual_seed(0))
    parts = (drawn.double() * 24).long().sort(dim=0).values
    assert not (parts == torch.arange(24)[:, None]).all()


@given(
    seed=st.integers(0, 2**63 - 1), lane=st.integers(0, 99), step=st.integers(0, 10**6), pattern=st.sampled_from(
        ["independent", "ptss", "shared", "first-clean", "tasks"]
    )
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_a_draw_is_a_function_of_seed_lane_and_step(seed: int, lane: int, step: int, pattern: str) -> None:
    config = SigmaConfig(pattern=pattern)  # type: ignore[arg-type]
    first = sigmas_of(step, lane, 3, 5, config, seed)
    torch.rand(7)
    again = sigmas_of(step, lane, 3, 5, config, seed)
    assert torch.equal(first.sigma, again.sigma)
    assert first.kinds == again.kinds
    assert first.sigma.dtype == torch.float32
    assert first.sigma.shape == (3, 5)
    for other in ((step + 1, lane, seed), (step, lane + 1, seed), (step, lane, seed ^ 1)):
        assert not torch.equal(first.sigma, sigmas_of(other[0], other[1], 3, 5, config, other[2]).sigma)


def test_noise_and_dropped_captions_are_functions_of_the_clip_too() -> None:
    large, small = noise_of(4, 1, (6, 2, 3, 4, 4), 7), noise_of(4, 1, (2, 2, 3, 4, 4), 7)
    assert torch.equal(large[:2], small)
    assert len({float(each.sum()) for each in large}) == 6
    assert same(noise_of(0, 0, (20, 4, 5, 8, 8), 0).flatten(), torch.randn(30_000, generator=torch.Generator()))
    many = dropped(4, 1, 64, 0.5, 7)
    assert torch.equal(many[:5], dropped(4, 1, 5, 0.5, 7))
    share = torch.cat([dropped(step, 0, 8, 0.1, 0) for step in range(400)]).float().mean()
    assert abs(float(share) - 0.1) < 4 * math.sqrt(0.09 / 3200)
    assert not dropped(0, 0, 64, 0.0, 0).any()
    assert dropped(0, 0, 64, 1.0, 0).all()


def test_shared_first_clean_and_ptss_look_as_they_are_called() -> None:
    shared = sigmas_of(0, 0, 16, 6, SigmaConfig(pattern="shared"), 0).sigma
    assert (shared == shared[:, :1]).all()
    ablation = sigmas_of(0, 0, 16, 6, SigmaConfig(pattern="first-clean"), 0).sigma
    assert (ablation[:, 0] == 0).all()
    assert (ablation[:, 1:] == ablation[:, 1:2]).all()
    assert (ablation[:, 1] > 0).all()
    mixed = sigmas_of(0, 0, 16, 6, SigmaConfig(pattern="ptss", p=0.25), 0)
    assert mixed.kinds.count("independent") == 4
    for row, kind in zip(mixed.sigma, mixed.kinds, strict=True):
        assert bool((row == row[0]).all()) == (kind == "shared")


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("low", "high"), [(0.875, 1.0), (0.0, 0.875), (0.6, 0.9)])
def test_the_range_is_that_of_the_noisiest_frame_and_the_draw_is_conditioned_on_it(
    name: str, low: float, high: float
) -> None:
    config, law = LAWS[name]
    drawn = sample(config.model_copy(update={"low": low, "high": high}), 0)
    noisiest = drawn.max(dim=1).values
    assert (noisiest >= low - 1e-6).all()
    assert (noisiest <= high + 1e-6).all()
    free = sigmas.ptss(300_000, FRAMES, 1.0, law=law, generator=torch.Generator().manual_seed(5))
    top = free.max(dim=1).values
    kept = free[(top >= low) & (top <= high)][:20_000]
    assert len(kept) > 1000
    assert same(noisiest, kept.max(dim=1).values)
    for frame in range(FRAMES):
        assert same(drawn[:, frame], kept[:, frame])
    assert same(drawn.min(dim=1).values, kept.min(dim=1).values)


def test_frames_restricted_one_by_one_would_be_another_distribution() -> None:
    drawn = sample(SigmaConfig(low=0.875), 0)
    each = 0.875 + 0.125 * torch.rand(20_000, FRAMES, generator=torch.Generator().manual_seed(0))
    assert not same(drawn[:, 0], each[:, 0])
    assert drawn.min() < 0.05


def test_levels_of_a_grid_keep_to_their_range() -> None:
    config = SigmaConfig(law="shifted", shift=5.0, levels=10, low=0.714, high=0.9)
    grid = sigmas.shifted(5.0, 10)(torch.arange(10, dtype=torch.float64) / 10 + 0.01).float()
    drawn = sample(config, 0, steps=200)
    assert torch.isin(drawn, grid).all()
    inside = grid[(grid >= 0.714) & (grid <= 0.9)]
    assert torch.isin(drawn.max(dim=1).values, inside).all()
    assert set(drawn.max(dim=1).values.tolist()) == set(inside.tolist())


# ------------------------------------------------------------------------------------------------------------- tasks


def given_frames(row: Tensor) -> set[int]:
    return set((row < row.max()).nonzero().flatten().tolist())


SHAPES: dict[str, Callable[[set[int], int], bool]] = {
    "text-to-video": lambda clean, last: clean == set(),
    "image-to-video": lambda clean, last: clean == {0},
    "last-frame": lambda clean, last: clean == {last},
    "start-end": lambda clean, last: clean == {0, last},
    "keyframes": lambda clean, last: 2 <= len(clean) <= 4,
    "extension": lambda clean, last: len(clean) >= 2 and clean == set(range(len(clean))),
    "backward-extension": lambda clean, last: len(clean) >= 2 and clean == set(range(last + 1 - len(clean), last + 1)),
    "completion": lambda clean, last: {0, 1, last - 1, last} <= clean and len(clean) < last + 1,
}


@pytest.mark.parametrize("frames", [5, 21])
@pytest.mark.parametrize("task", SHAPES)
def test_a_task_has_its_conditions_clean_and_the_rest_at_one_level(task: str, frames: int) -> None:
    config = SigmaConfig(pattern="tasks", tasks={task: 1.0})  # type: ignore[dict-item]
    for step in range(20):
        drawn = sigmas_of(step, 0, 4, frames, config, 0)
        assert drawn.kinds == [task] * 4
        for row in drawn.sigma:
            clean = given_frames(row)
            assert SHAPES[task](clean, frames - 1)
            assert (row[sorted(clean)] == 0).all()
            assert len(set(row.tolist()) - {0.0}) == 1


def test_a_staircase_draw_is_a_row_of_a_staircase() -> None:
    config = SigmaConfig(pattern="tasks", tasks={"staircase": 1.0})
    grid = sigmas.grid(random_draws.STAIRCASE_STEPS, 5.0)
    rows = {
        tuple(row)
        for delay in range(1, random_draws.STAIRCASE_DELAY + 1)
        for row in schedules.staircase(grid, 5, delay=delay).model_sigma.float().tolist()
    }
    drawn = sample(config, 0, steps=50)
    assert {tuple(row) for row in drawn.tolist()} <= rows
    assert len({tuple(row) for row in drawn.tolist()}) > 60


def test_tasks_come_as_often_as_asked_and_only_where_they_leave_a_frame_to_make() -> None:
    tasks = {"text-to-video": 0.5, "image-to-video": 0.25, "completion": 0.125, "independent": 0.125}
    config = SigmaConfig(pattern="tasks", tasks=tasks)  # type: ignore[arg-type]
    counts = Counter(sigmas_of(0, 0, 16, 7, config, 0).kinds)
    assert counts == {"text-to-video": 8, "image-to-video": 4, "completion": 2, "independent": 2}
    many = Counter(kind for step in range(600) for kind in sigmas_of(step, 0, 1, 7, config, 1).kinds)
    for task, share in tasks.items():
        assert abs(many[task] / 600 - share) < 4 * math.sqrt(share * (1 - share) / 600)
    assert set(Counter(sigmas_of(0, 0, 64, 4, config, 0).kinds)) == {"text-to-video", "image-to-video", "independent"}
    assert set(sigmas_of(0, 0, 8, 1, config, 0).kinds) == {"text-to-video", "independent"}


@given(frames=st.integers(1, 30), seed=st.integers(0, 99), task=st.sampled_from(sorted(LEAST_FRAMES)))
@settings(max_examples=60, deadline=None)
def test_a_task_always_leaves_a_frame_to_make(frames: int, seed: int, task: str) -> None:
    config = SigmaConfig(pattern="tasks", tasks={task: 1.0}, law="shifted")  # type: ignore[dict-item]
    if frames < LEAST_FRAMES[task]:
        with pytest.raises(InputError, match="text-to-video"):
            sigmas_of(0, 0, 2, frames, config, seed)
    else:
        assert (sigmas_of(0, 0, 2, frames, config, seed).sigma.max(dim=1).values > 0).all()


def test_condition_noise_is_a_share_of_the_clips_level() -> None:
    config = SigmaConfig(pattern="tasks", tasks={"image-to-video": 1.0}, condition_noise=0.4)
    drawn = sample(config, 0, steps=200)
    share = drawn[:, 0] / drawn[:, 1]
    assert (share <= 0.4 + 1e-6).all()
    assert same(share / 0.4, torch.rand(20_000, generator=torch.Generator().manual_seed(3)))


def test_the_expert_for_high_noise_still_sees_clean_conditions() -> None:
    config = SigmaConfig(pattern="tasks", low=0.875)
    drawn = [sigmas_of(step, 0, 8, 9, config, 0) for step in range(50)]
    rows = torch.cat([draw.sigma for draw in drawn])
    assert (rows.max(dim=1).values >= 0.875 - 1e-6).all()
    conditioned = [i for i, kind in enumerate(k for draw in drawn for k in draw.kinds) if kind == "image-to-video"]
    assert len(conditioned) > 50
    assert (rows[conditioned, 0] == 0).all()


def test_what_cannot_be_drawn_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="at least 1 of each"):
        sigmas_of(0, 0, 0, 5, SigmaConfig(), 0)
    with pytest.raises(InputError, match="1 latent frame"):
        sigmas_of(0, 0, 1, 1, SigmaConfig(pattern="first-clean"), 0)
    with pytest.raises(InputError, match="No noise level is between"):
        sigmas_of(0, 0, 1, 5, SigmaConfig(law="shifted", levels=2, low=0.1, high=0.2), 0)
    with pytest.raises(InputError, match="No row of a staircase"):
        sigmas_of(0, 0, 1, 5, SigmaConfig(pattern="tasks", tasks={"staircase": 1.0}, high=0.01), 0)
