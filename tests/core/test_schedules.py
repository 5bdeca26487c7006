"""Each schedule against its published numbers or its definition; and they compose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pusa.core import TimestepMatrix, schedules, sigmas
from pusa.core.schedules import chunked, conditioned, in_context, renoising, sliding_window, staircase, synchronous
from pusa.errors import InputError

TEN = sigmas.grid(10)


def close(values: torch.Tensor, published: list[float], tolerance: float = 1e-6) -> bool:
    return bool((values - torch.tensor(published, dtype=torch.float64)).abs().max() < tolerance)


def test_two_noisy_conditions_follow_the_published_table() -> None:
    matrix = conditioned(synchronous(TEN, 21), {0: 0.2, 20: 0.5})
    f0 = [0.2, 0.195652, 0.190476, 0.184211, 0.176471, 0.166667, 0.153846, 0.136364, 0.111111, 0.071429]
    f20 = [0.5, 0.489130, 0.476190, 0.460526, 0.441176, 0.416667, 0.384615, 0.340909, 0.277778, 0.178571]
    d1 = [0.021739, 0.025880, 0.031328, 0.038700, 0.049020, 0.064103, 0.087413, 0.126263, 0.198413, 0.357143]
    d0 = [0.004348, 0.005176, 0.006266, 0.007740, 0.009804, 0.012821, 0.017483, 0.025253, 0.039683, 0.071429]
    d20 = [0.010870, 0.012940, 0.015664, 0.019350, 0.024510, 0.032051, 0.043706, 0.063131, 0.099206, 0.178571]
    assert close(matrix.sigma[:-1, 0], f0)
    assert close(matrix.sigma[:-1, 20], f20)
    assert torch.equal(matrix.sigma[:, 1:20], TEN[:, None].expand(-1, 19))
    deltas = matrix.sigma.diff(dim=0)
    for frame, published in ((0, d0), (1, d1), (20, d20)):
        assert close(-deltas[:, frame], published)
    assert close(deltas.sum(dim=0)[[0, 1, 20]], [-0.2, -1.0, -0.5], 1e-12)
    assert torch.equal(matrix.model_sigma, matrix.sigma[:-1])


def test_extension_follows_the_published_table() -> None:
    matrix = conditioned(synchronous(sigmas.grid(4), 21), {0: 0.2, 1: 0.4, 2: 0.4, 3: 0.4})
    deltas = -matrix.sigma.diff(dim=0)
    assert close(deltas[:, 0], [0.0125, 0.020833, 0.041667, 0.125])
    assert close(deltas[:, 2], [0.025, 0.041667, 0.083333, 0.25])
    assert close(deltas[:, 9], [0.0625, 0.104167, 0.208333, 0.625])
    published = [[200, 400, 1000], [187, 374, 936], [166, 332, 832], [125, 250, 625]]
    timesteps = 1000 * matrix.model_sigma[:, [0, 3, 4]]
    for row, truncated in zip(timesteps, published, strict=True):
        # the reference rounds the clip's timestep to bfloat16 (spacing 4), scales and truncates it
        assert (row - torch.tensor(truncated, dtype=torch.float64)).abs().max() < 3


def test_clean_condition_never_moves_and_one_means_none() -> None:
    plain = synchronous(TEN, 5)
    clean = conditioned(plain, {0: 0.0})
    assert not clean.moves[:, 0].any()
    assert clean.moves[:, 1:].all()
    assert conditioned(plain, {2: 1.0}) == plain
    assert conditioned(plain, {}) == plain


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 14), st.integers(0, 31))
def test_staircase_delays_whole_blocks_and_loses_no_frame(steps: int, frames: int, block: int, delay: int) -> None:
    grid = sigmas.grid(steps)
    matrix = staircase(grid, frames, block, delay)
    blocks = -(-frames // block)
    assert matrix.frames == frames
    assert matrix.steps == steps + (blocks - 1) * delay
    assert (matrix.sigma[0] == 1).all()
    assert (matrix.sigma[-1] == 0).all()
    for f in range(frames):
        start = delay * (f // block)
        assert torch.equal(matrix.sigma[start : start + steps + 1, f], grid)


def test_staircase_without_delay_is_synchronous() -> None:
    assert staircase(TEN, 7, 3, 0) == synchronous(TEN, 7)


def test_in_context_holds_each_buffer_until_the_targets_reach_it() -> None:
    grid = sigmas.grid(10, 1.0)
    matrix = in_context(grid, 1, 3, 9)
    assert matrix.frames == 13
    assert (matrix.sigma[:, 0] == 0).all()
    assert torch.equal(matrix.sigma[:, 4:], grid[:, None].expand(-1, 9))
    for frame, level in ((1, 0.25), (2, 0.5), (3, 0.75)):
        column = matrix.sigma[:, frame]
        assert (column[grid >= level] == level).all()
        assert torch.equal(column[grid < level], grid[grid < level])
    assert torch.equal(matrix.model_sigma, matrix.sigma[:-1])


def test_in_context_can_hold_its_buffers_to_the_end_and_hide_the_truth() -> None:
    held = in_context(TEN, 2, 3, 4, release=False)
    assert not held.moves[:, :5].any()
    assert close(held.sigma[-1], [0, 0, 0.25, 0.5, 0.75, 0, 0, 0, 0])
    hidden = in_context(TEN, 2, 3, 4, model_sigma="scalar")
    assert torch.equal(hidden.model_sigma, TEN[:-1, None].expand(-1, 9))
    assert torch.equal(hidden.sigma, in_context(TEN, 2, 3, 4).sigma)


@given(st.integers(1, 12), st.integers(1, 10), st.integers(1, 5), st.sampled_from([None, 0, 1, 3]))
def test_chunks_follow_one_another(steps: int, frames: int, block: int, context: int | None) -> None:
    matrix = chunked(sigmas.grid(steps), frames, block, context)
    assert matrix.steps == steps * -(-frames // block)
    for s in range(matrix.steps):
        now = s // steps
        for f in range(frames):
            chunk = f // block
            kept = chunk < now and (context is None or f >= now * block - context)
            assert bool(matrix.visible[s, f]) == (chunk == now or kept)
            assert bool(matrix.moves[s, f]) == (chunk == now)
            assert not (chunk < now and matrix.sigma[s, f] != 0), "a finished chunk carries noise"


@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 3), st.integers(1, 4), st.sampled_from([None, 0, 2]))
def test_window_holds_at_most_its_size_and_rolls_on(
    steps: int, frames: int, block: int, blocks: int, context: int | None
) -> None:
    matrix = sliding_window(sigmas.grid(steps), frames, block * blocks, block, context)
    assert (matrix.moves.sum(dim=1) <= block * blocks).all()
    assert (matrix.sigma[-1] == 0).all()
    done = matrix.sigma[:-1] == 0
    assert not (matrix.visible & ~matrix.moves & ~done).any(), "a frame in sight neither moves nor is done"
    kept = (matrix.visible & done).sum(dim=1)
    assert torch.equal(kept, done.sum(dim=1).clamp(max=frames if context is None else context))
    assert (done.int().diff(dim=1) <= 0).all(), "frames finish out of order"


def test_window_of_one_block_is_chunk_after_chunk() -> None:
    assert sliding_window(TEN, 7, 3, 3, context=None) == chunked(TEN, 7, 3)


def every_schedule(grid: torch.Tensor, frames: int) -> list[TimestepMatrix]:
    return [
        synchronous(grid, frames),
        staircase(grid, frames, 2, 3),
        in_context(grid, 1, 2, frames - 3),
        chunked(grid, frames, 3),
        sliding_window(grid, frames, 4, 2, context=1),
        renoising(staircase(grid, frames, 2, 1)),
    ]


@given(st.integers(1, 10), st.integers(4, 9), st.dictionaries(st.integers(0, 3), st.floats(0, 1)))
def test_conditions_compose_with_every_schedule(steps: int, frames: int, multipliers: dict[int, float]) -> None:
    for matrix in every_schedule(sigmas.grid(steps), frames):
        given_frames = conditioned(matrix, multipliers)
        for f in range(frames):
            m = multipliers.get(f, 1.0)
            assert torch.equal(given_frames.sigma[:, f], matrix.sigma[:, f] * m)
            assert torch.equal(given_frames.model_sigma[:, f], matrix.model_sigma[:, f] * m)
        assert torch.equal(given_frames.visible, matrix.visible)
        assert torch.equal(given_frames.renoise, matrix.renoise)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: synchronous(TEN, 0), "frames is 0; give at least 1"),
        (lambda: synchronous(TEN[:, None], 3), "list of at least two"),
        (lambda: synchronous(TEN[:1], 3), "list of at least two"),
        (lambda: synchronous(TEN * 1.1, 3), "between 0 and 1"),
        (lambda: conditioned(synchronous(TEN, 3), {3: 0.0}), "frames 0 to 2"),
        (lambda: conditioned(synchronous(TEN, 3), {-1: 0.0}), "frames 0 to 2"),
        (lambda: conditioned(synchronous(TEN, 3), {0: 1.1}), "between 0 and 1"),
        (lambda: conditioned(synchronous(TEN, 3), {0: float("nan")}), "between 0 and 1"),
        (lambda: staircase(TEN, 3, 0), "block is 0; give at least 1"),
        (lambda: staircase(TEN, 3, 1, -1), "delay is -1; give at least 0"),
        (lambda: sliding_window(TEN, 9, 4, 3), "multiple"),
        (lambda: sliding_window(TEN, 9, 4, 2, context=-1), "context"),
        (lambda: chunked(TEN, 9, 0), "blocks of 0"),
        (lambda: in_context(TEN, 1, 1, 0), "at least 1 target"),
        (lambda: schedules.in_context(TEN, -1, 1, 1), "negative"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
