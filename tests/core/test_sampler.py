"""The walk itself: what the model is given, what moves and what does not, guidance and callbacks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pusa.core import Call, Step, TimestepMatrix, Velocity, add_noise, by_noise, guided, sample, schedules, sigmas, walk
from pusa.errors import Cancelled, InputError, PusaError

FRAMES = 6
TEN = sigmas.grid(10)
SYNC = schedules.synchronous(TEN, FRAMES)
IMAGE = schedules.conditioned(SYNC, {0: 0.0})


def latents(batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, FRAMES, 2, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(values: Tensor) -> Tensor:
    return values[:, None, :, None, None]


def coupled(x: Tensor, sigma: Tensor, context: Any = 0.0, call: Call | None = None) -> Tensor:
    """A nonlinear velocity in which frames see each other and their levels matter."""
    return 0.5 * x + 0.2 * x * x.roll(1, dims=2) * wide(sigma).to(x.dtype) - 0.3 * x.roll(-1, dims=2) + context


def alone(x: Tensor, sigma: Tensor, context: Any = None, call: Call | None = None) -> Tensor:
    """A nonlinear velocity of each frame by itself."""
    return (0.7 * x + 0.2 * x * x) * wide(0.5 + sigma * sigma).to(x.dtype)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


# ---------------------------------------------------------------------------------------------------------- Euler walk


def test_equal_levels_are_the_ordinary_scalar_sampler_bit_for_bit() -> None:
    def scalar(x: Tensor, sigma: float) -> Tensor:
        return 0.5 * x - x.roll(1, dims=2) * torch.tensor(sigma, dtype=torch.float32)

    def vector(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        return 0.5 * x - x.roll(1, dims=2) * wide(sigma)

    x = latents()
    for now, then in pairwise(TEN.tolist()):
        x = x + scalar(x, now) * torch.tensor(then - now, dtype=torch.float32)
    assert torch.equal(sample(vector, latents(), SYNC), x)
    other = sample(vector, latents(), schedules.conditioned(SYNC, {0: 0.2}))
    assert (other[:, :, 1] - x[:, :, 1]).abs().max() > 1e-3, "another level of frame 0 must reach its neighbour"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_model_is_called_once_a_step_in_the_dtype_of_the_latents_with_its_levels(dtype: torch.dtype) -> None:
    calls: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor, context: str, call: Call | None = None) -> Tensor:
        assert x.dtype == dtype
        assert sigma.dtype == torch.float32
        assert context == "words"
        calls.append(sigma)
        return x

    start = latents(dtype=dtype)
    before = start.clone()
    out = sample(model, start, IMAGE, "words")
    assert out.dtype == dtype
    assert torch.equal(start, before), "the input was changed"
    assert torch.equal(torch.stack(calls, dim=1), IMAGE.model_sigma.float().expand(2, -1, -1))


def test_the_walk_keeps_float32_between_calls_in_bfloat16() -> None:
    """A thousand steps of 0.001 would all be lost to rounding in bfloat16."""
    matrix = schedules.synchronous(sigmas.grid(1000, 1.0), FRAMES)
    out = sample(
        lambda x, sigma, context, call: torch.full_like(x, -1), torch.full((1, 1, FRAMES, 1, 1), 8.0).bfloat16(), matrix
    )
    assert (out == 9).all()


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_held_frames_are_bit_identical_even_under_nan(dtype: torch.dtype, solver: str) -> None:
    start = latents(dtype=dtype)
    start[0, 0, 0, 0, 0], start[0, 0, 0, 0, 1] = -0.0, torch.finfo(dtype).tiny / 2

    def model(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        v = alone(x, sigma)
        v[:, :, 0] = float("nan")
        v[:, :, 1] = float("inf")
        return v

    matrix = schedules.renoising(schedules.conditioned(SYNC, {0: 0.0, 1: 0.0}))
    for m in (schedules.conditioned(SYNC, {0: 0.0, 1: 0.0}), matrix):
        out = sample(model, start, m, solver=solver, noise=lambda step: latents(seed=step))
        assert torch.equal(bits(out[:, :, :2]), bits(start[:, :, :2]))
        assert torch.isfinite(out).all()
        assert (out[:, :, 2:] != start[:, :, 2:]).any()


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_nan_in_a_frame_that_waits_does_not_reach_it_later(solver: str) -> None:
    matrix = schedules.staircase(TEN, FRAMES, block=3, delay=4)

    def waiting_nan(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        step.append(0)
        v = alone(x, sigma)
        if len(step) <= 4:
            v[:, :, 3:] = float("nan")
        return v

    step: list[int] = []
    assert torch.equal(
        sample(waiting_nan, latents(), matrix, solver=solver), sample(alone, latents(), matrix, solver=solver)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_moving_frame_names_the_step(value: float) -> None:
    calls = []

    def model(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        calls.append(0)
        v = x.clone()
        if len(calls) == 4:
            v[1, 0, 5] = value
        return v

    with pytest.raises(PusaError, match="step 4 of 10, clip 1, latent frame 5") as caught:
        sample(model, latents(), IMAGE)
    assert not isinstance(caught.value, InputError), "the model's fault, not the user's"


def test_gradients_flow_through_the_walk() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    sample(lambda x, sigma, context, call: scale * x, latents(), IMAGE, solver="dpm++2m").sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


# --------------------------------------------------------------------------------------------------- batches of tasks


TASKS: list[TimestepMatrix] = [
    IMAGE,
    schedules.conditioned(schedules.staircase(TEN, FRAMES, 4, 3), {5: 0.3}),
    schedules.chunked(sigmas.grid(4), FRAMES, 4),
    schedules.sliding_window(sigmas.grid(3), FRAMES, 4, 2, context=1),
    schedules.in_context(sigmas.grid(6), 1, 2, 3, model_sigma="scalar"),
    schedules.chunked(sigmas.grid(5), FRAMES, 4),
    schedules.renoising(schedules.synchronous(sigmas.grid(2), FRAMES)),
]


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(len(TASKS))),
    st.sampled_from(["euler", "dpm++2m"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_batch_of_different_matrices_equals_separate_runs_bit_for_bit(
    order: list[int], solver: str, dtype: torch.dtype
) -> None:
    batch = len(TASKS)
    x, words, noise = (
        latents(batch, dtype=dtype),
        torch.linspace(-0.1, 0.1, batch)[:, None, None, None, None],
        latents(batch, 9),
    )
    context = {"words": (words.to(dtype), "kept"), "shared": torch.ones(1)}

    def model(x: Tensor, sigma: Tensor, context: dict[str, Any], call: Call | None = None) -> Tensor:
        assert context["words"][1] == "kept"
        return coupled(x, sigma, context["words"][0]) * context["shared"].to(x.dtype)

    def pick(i: int) -> dict[str, Any]:
        return {"words": (words[i : i + 1].to(dtype), "kept"), "shared": torch.ones(1)}

    apart = [
        sample(model, x[i : i + 1], TASKS[i], pick(i), solver=solver, noise=lambda s, i=i: noise[i : i + 1] + s)
        for i in order
    ]
    context["words"] = (words[order].to(dtype), "kept")
    together = sample(
        model, x[order], [TASKS[i] for i in order], context, solver=solver, noise=lambda s: noise[order] + s
    )
    assert torch.equal(together, torch.cat(apart))


def test_one_matrix_serves_the_whole_batch() -> None:
    assert torch.equal(sample(coupled, latents(), IMAGE, 0.0), sample(coupled, latents(), [IMAGE, IMAGE], 0.0))


# ------------------------------------------------------------------------------------------------------ hidden frames


def test_the_model_sees_the_visible_frames_only() -> None:
    matrix = schedules.chunked(sigmas.grid(3), FRAMES, block=2, context=1)
    start = latents()
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        seen.append((x, sigma))
        return alone(x, sigma)

    states: list[Tensor] = [start]
    sample(model, start, matrix, callback=lambda step: states.append(step.latents))
    assert len(seen) == matrix.steps == 9
    for s, (x, sigma) in enumerate(seen):
        frames = matrix.visible[s].nonzero()[:, 0]
        assert torch.equal(x, states[s][:, :, frames])
        assert torch.equal(sigma, matrix.model_sigma[s, frames].float().expand(2, -1))
        assert torch.equal(states[s + 1][:, :, ~matrix.moves[s]], states[s][:, :, ~matrix.moves[s]])
    assert [x.shape[2] for x, _ in seen] == [2, 2, 2, 3, 3, 3, 3, 3, 3]


def test_hiding_frames_from_each_other_changes_the_clip() -> None:
    chunks = schedules.chunked(TEN, FRAMES, 3, context=0)
    all_in_sight = TimestepMatrix.from_sigma(chunks.sigma)
    a, b = (sample(coupled, latents(), m, 0.0) for m in (chunks, all_in_sight))
    assert (a - b).abs().max() > 1e-3
    whole = latents()
    first = sample(coupled, whole[:, :, :3], schedules.synchronous(TEN, 3), 0.0)
    assert torch.equal(a[:, :, :3], first)


# -------------------------------------------------------------------------------------------------------- re-noising


def test_renoising_predicts_the_clip_and_noises_it_afresh() -> None:
    matrix = schedules.renoising(schedules.synchronous(sigmas.grid(3), FRAMES))
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return latents(seed=100 + step)

    x = latents()
    for s in range(3):
        now, then = (matrix.sigma[i].float().expand(2, -1) for i in (s, s + 1))
        clean = x - wide(now) * alone(x, now)
        x = wide(1 - then) * clean + wide(then) * latents(seed=100 + s)
    assert torch.allclose(sample(alone, latents(), matrix, noise=noise), x, atol=1e-6)
    assert asked == [0, 1, 2]


def test_renoising_without_noise_is_refused_before_the_model_runs() -> None:
    def never(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(InputError, match="pass noise"):
        sample(never, latents(), schedules.renoising(SYNC))


# --------------------------------------------------------------------------------------------------------- guidance


def counted(calls: list[int]) -> Velocity:
    def model(x: Tensor, sigma: Tensor, context: Any, call: Call | None = None) -> Tensor:
        calls.append(len(x))
        return coupled(x, sigma, context["words"][0])

    return model


def prompt(value: float, rows: int = 2) -> dict[str, Any]:
    return {"words": (torch.full((rows, 1, 1, 1, 1), value),)}


def test_guidance_makes_two_calls() -> None:
    pair = (prompt(0.3), prompt(-0.1))
    calls: list[int] = []
    two = sample(guided(counted(calls), 3.0), latents(), IMAGE, pair)
    assert calls == [2] * 20
    by_hand = sample(
        lambda x, s, c, call: coupled(x, s, -0.1) + 3 * (coupled(x, s, 0.3) - coupled(x, s, -0.1)), latents(), IMAGE
    )
    assert torch.allclose(two, by_hand, atol=1e-5)


def test_guidance_one_makes_one_call() -> None:
    calls: list[int] = []
    out = sample(guided(counted(calls), 1.0), latents(), IMAGE, (prompt(0.3), None))
    assert calls == [2] * 10
    assert torch.equal(out, sample(coupled, latents(), IMAGE, 0.3))


def test_guidance_in_a_batch_whose_clips_go_separate_ways() -> None:
    pair = tuple({"words": (torch.tensor(w)[:, None, None, None, None],)} for w in ([0.3, 0.1], [-0.1, 0.2]))
    out = sample(guided(counted([]), 2.0), latents(), [TASKS[2], TASKS[0]], pair)
    alone_again = sample(guided(counted([]), 2.0), latents()[1:], TASKS[0], (prompt(0.1, 1), prompt(0.2, 1)))
    assert torch.equal(out[1:], alone_again)


def test_guidance_in_an_interval_is_decided_by_the_noisiest_frame() -> None:
    pair = (prompt(0.3), prompt(-0.1))
    grid = TEN[:10].tolist()
    calls: list[int] = []
    walked = [step.latents for step in walk(guided(counted(calls), 3.0, interval=(0.5, 0.9)), latents(), IMAGE, pair)]
    assert len(calls) == 10 + sum(0.5 <= level <= 0.9 for level in grid)
    first = next(walk(counted([]), latents(), IMAGE, pair[0])).latents
    assert torch.equal(walked[0], first)


def test_guidance_in_an_interval_leaves_the_other_clips_of_a_batch_alone() -> None:
    pair = (prompt(0.3), prompt(-0.1))
    low = schedules.synchronous(sigmas.grid(10, strength=0.4), FRAMES)
    out = sample(guided(counted([]), 3.0, interval=(0, 0.4)), latents(), [SYNC, low], pair)
    alone_again = sample(
        guided(counted([]), 3.0, interval=(0, 0.4)), latents()[:1], SYNC, (prompt(0.3, 1), prompt(-0.1, 1))
    )
    torch.testing.assert_close(out[:1], alone_again)


def test_both_velocities_can_come_from_one_function() -> None:
    pair = (prompt(0.3), prompt(-0.1))

    def both(x: Tensor, sigma: Tensor, context: Any, call: Call) -> tuple[Tensor, Tensor]:
        return coupled(x, sigma, context[0]["words"][0]), coupled(x, sigma, context[1]["words"][0])

    calls: list[int] = []
    assert torch.equal(
        sample(guided(counted(calls), 3.0, both=both), latents(), IMAGE, pair),
        sample(guided(counted([]), 3.0), latents(), IMAGE, pair),
    )
    assert calls == []


# --------------------------------------------------------------------------------------------------------- callbacks


def test_callback_sees_every_step() -> None:
    steps: list[Step] = []
    out = sample(alone, latents(), IMAGE, callback=steps.append)
    assert [step.index for step in steps] == list(range(10))
    assert {step.steps for step in steps} == {10}
    assert torch.equal(steps[-1].latents, out)
    assert torch.equal(steps[-1].denoised, out)
    for s, step in enumerate(steps):
        assert torch.equal(step.sigma, IMAGE.sigma[s + 1].float().expand(2, -1))
    previous, step = steps[3].latents, steps[4]
    now = IMAGE.sigma[4].float().expand(2, -1)
    assert torch.allclose(step.denoised, previous - wide(now) * alone(previous, now), atol=1e-6)


def test_callback_stops_the_run_by_returning_false_and_by_nothing_else() -> None:
    calls: list[int] = []
    with pytest.raises(Cancelled, match="step 3 of 10"):
        sample(counted(calls), latents(), IMAGE, prompt(0.0), callback=lambda step: step.index < 2)
    assert len(calls) == 3
    for answer in (None, True):
        sample(alone, latents(), IMAGE, callback=lambda step, answer=answer: answer)


def test_a_walk_can_be_watched_and_left() -> None:
    calls: list[int] = []
    steps = walk(counted(calls), latents(), IMAGE, prompt(0.1))
    assert calls == [], "nothing runs before the first step is wanted"
    for step in steps:
        if step.index == 3:
            break
    assert len(calls) == 4
    seen: list[Step] = []
    sample(coupled, latents(), IMAGE, 0.1, callback=seen.append)
    assert torch.equal(step.latents, seen[3].latents)
    whole = list(walk(coupled, latents(), IMAGE, 0.1))
    assert torch.equal(whole[-1].latents, seen[-1].latents)


# ------------------------------------------------------------------------------------------------ what a call knows


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_a_walk_goes_on_behind_a_step_with_the_same_bits(solver: Any) -> None:
    matrix = schedules.conditioned(SYNC, {0: 0.3})
    whole = list(walk(coupled, latents(), matrix, 0.0, solver=solver))

    rest = list(walk(coupled, torch.zeros_like(latents()), matrix, 0.0, solver=solver, after=whole[5]))

    assert [step.index for step in rest] == [6, 7, 8, 9]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(rest, whole[6:], strict=True))
    assert torch.equal(sample(coupled, latents(), matrix, 0.0, solver=solver, after=whole[-1]), whole[-1].latents)
    with pytest.raises(InputError, match="cannot go on after Step"):
        walk(coupled, latents(), schedules.synchronous(sigmas.grid(9), FRAMES), after=whole[5])


def test_a_call_knows_its_step_its_frames_and_which_of_them_are_held() -> None:
    matrix = schedules.conditioned(schedules.chunked(sigmas.grid(3), FRAMES, block=2, context=1), {2: 0.0})
    calls: list[Call] = []

    def model(x: Tensor, sigma: Tensor, context: None, call: Call) -> Tensor:
        calls.append(call)
        return alone(x, sigma)

    sample(model, latents(), matrix)
    assert [call.step for call in calls] == list(range(9))
    assert {call.steps for call in calls} == {9}
    for call in calls:
        assert call.frames.dtype == torch.int64
        assert call.frames.tolist() == matrix.visible[call.step].nonzero()[:, 0].tolist()
        assert torch.equal(call.held, ~matrix.moves[call.step, call.frames].expand(2, -1))
    calls.clear()
    sample(model, latents(), IMAGE)
    assert all(call.frames.tolist() == list(range(FRAMES)) for call in calls)
    assert all(call.held.tolist() == [[True, *[False] * (FRAMES - 1)]] * 2 for call in calls)


def test_clips_that_see_different_frames_get_calls_of_their_own() -> None:
    one, other = schedules.chunked(sigmas.grid(3), FRAMES, 3, 0), schedules.chunked(sigmas.grid(3), FRAMES, 2, 0)
    calls: list[tuple[int, Call]] = []

    def model(x: Tensor, sigma: Tensor, context: None, call: Call) -> Tensor:
        calls.append((len(x), call))
        return alone(x, sigma)

    sample(model, latents(3), [one, other, one])
    for clips, call in calls:
        assert call.held.shape == (clips, len(call.frames))
    first = [(clips, call.frames.tolist()) for clips, call in calls if call.step == 0]
    assert first == [(2, [0, 1, 2]), (1, [0, 1])]
    assert {call.step for clips, call in calls if clips == 1} == set(range(9))
    assert {call.step for clips, call in calls if clips == 2} == set(range(6))


def test_each_expert_knows_the_held_frames_of_its_own_clips() -> None:
    held: dict[str, list[list[bool]]] = {}

    def expert(name: str) -> Velocity:
        def model(x: Tensor, sigma: Tensor, context: None, call: Call) -> Tensor:
            held.setdefault(name, call.held.tolist())
            return alone(x, sigma)

        return model

    late = schedules.conditioned(schedules.synchronous(sigmas.grid(10, strength=0.3), FRAMES), {1: 0.0})
    sample(by_noise(expert("high"), expert("low"), 0.9), latents(), [IMAGE, late])
    assert held["high"][0] == [True, *[False] * (FRAMES - 1)]
    assert held["low"][0] == [False, True, *[False] * (FRAMES - 2)]


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample(alone, latents()[0], SYNC), "B, C, F, H, W"),
        (lambda: sample(alone, latents().int(), SYNC), "floating point"),
        (lambda: sample(alone, latents(), schedules.synchronous(TEN, 5)), "has 5 frames and the latents have 6"),
        (lambda: sample(alone, latents(), [SYNC]), "1 matrices for 2 clips"),
        (lambda: sample(alone, latents(), SYNC, solver="heun"), "'heun'"),
        (lambda: sample(lambda x, s, c, call: x[:, :1], latents(), SYNC), "velocity"),
        (lambda: sample(coupled, latents(3), [TASKS[2], TASKS[0], SYNC], torch.zeros(2)), "context of shape"),
        (lambda: guided(alone, float("nan")), "guidance"),
        (lambda: guided(alone, 2.0, interval=(0.9, 0.2)), "guidance interval"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_condition_noise_matches_the_column_it_is_for() -> None:
    """add_noise with a matrix's first row puts every frame where the walk expects it."""
    matrix = schedules.conditioned(SYNC, {0: 0.0, 3: 0.25})
    z0, eps = latents(seed=1), latents(seed=2)
    start = add_noise(z0, eps, matrix.sigma[0].expand(2, -1))
    assert torch.equal(start[:, :, 0], z0[:, :, 0])
    assert torch.equal(start[:, :, 1], eps[:, :, 1])
    assert torch.allclose(start[:, :, 3], 0.75 * z0[:, :, 3] + 0.25 * eps[:, :, 3])


def test_a_step_has_the_levels_before_and_after_it_and_what_is_written_into_it_counts() -> None:
    steps = list(walk(alone, latents(), IMAGE))
    for index, step in enumerate(steps):
        assert torch.equal(step.sigma_before, IMAGE.sigma[index].float().expand(2, -1))
        assert torch.equal(step.sigma, IMAGE.sigma[index + 1].float().expand(2, -1))
    plain = steps[-1].latents
    for step in walk(alone, latents(), IMAGE):
        if step.index == 4:
            step.latents.mul_(0.5)
    assert not torch.equal(step.latents, plain)
    assert torch.equal(step.latents[:, :, 0], 0.5 * plain[:, :, 0])
