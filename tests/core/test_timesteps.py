"""A matrix says what is wrong with it, travels through JSON unchanged, and can be looked at."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from pusa.core import TimestepMatrix, schedules, sigmas
from pusa.errors import InputError

PLAIN = schedules.synchronous(sigmas.grid(4), 3)


@st.composite
def matrices(draw: DrawFn) -> TimestepMatrix:
    """Random columns that never rise, with plateaus, hidden stretches, hidden noise and re-noising steps."""
    steps, frames, seed = draw(st.integers(1, 12)), draw(st.integers(1, 7)), draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    sigma = torch.rand(steps + 1, frames, generator=g, dtype=torch.float64).sort(dim=0, descending=True).values
    stay = torch.rand(steps, frames, generator=g) < draw(st.floats(0, 1))
    for s in range(steps):
        sigma[s + 1] = torch.where(stay[s], sigma[s], torch.minimum(sigma[s], sigma[s + 1]))
    visible = (sigma[1:] != sigma[:-1]) | (torch.rand(steps, frames, generator=g) < 0.8)
    visible[:, 0] = True
    visible[0] = True
    model_sigma = torch.rand(steps, frames, generator=g, dtype=torch.float64) if draw(st.booleans()) else None
    renoise = torch.rand(steps, generator=g) < draw(st.sampled_from([0.0, 0.5]))
    return TimestepMatrix.from_sigma(sigma, model_sigma, visible, renoise)


@given(matrices())
def test_json_round_trip_is_exact(matrix: TimestepMatrix) -> None:
    assert TimestepMatrix.from_dict(json.loads(json.dumps(matrix.to_dict()))) == matrix


@given(matrices())
def test_json_of_version_0_1_still_loads(matrix: TimestepMatrix) -> None:
    former = {"sigma": "state", "model_sigma": "told"}
    old = {former.get(name, name): rows for name, rows in matrix.to_dict().items()}
    assert "state" in old
    assert TimestepMatrix.from_dict(json.loads(json.dumps(old))) == matrix


@given(matrices(), st.integers(4, 20))
def test_every_matrix_prints_and_draws(matrix: TimestepMatrix, cell: int) -> None:
    assert str(matrix).count("\n") == min(matrix.steps, 17) + 2
    picture = matrix.image(cell)
    assert picture.dtype == torch.uint8
    assert picture.shape == (matrix.steps * cell, matrix.frames * cell, 3)


def test_plain_matrices_are_stored_as_their_sigma_alone() -> None:
    assert set(PLAIN.to_dict()) == {"sigma"}
    assert set(schedules.renoising(PLAIN).to_dict()) == {"sigma", "renoise"}


def test_equality_sees_every_field() -> None:
    assert schedules.renoising(PLAIN) != PLAIN
    assert dataclasses.replace(PLAIN, model_sigma=PLAIN.model_sigma * 0.5) != PLAIN
    assert PLAIN != "a matrix"
    assert schedules.synchronous(sigmas.grid(4), 3) == PLAIN


def test_a_matrix_is_float64_and_keeps_no_hold_on_its_input() -> None:
    sigma = sigmas.grid(3).float()[:, None].repeat(1, 2)
    matrix = TimestepMatrix.from_sigma(sigma)
    sigma.zero_()
    assert matrix.sigma.dtype == matrix.model_sigma.dtype == torch.float64
    assert matrix.sigma[0, 0] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        matrix.sigma = sigma  # type: ignore[misc]


@pytest.mark.parametrize(
    ("steps", "shift", "high"),
    [(4, 5, 2), (8, 5, 4), (10, 5, 5), (20, 5, 9), (30, 5, 13), (40, 5, 17), (50, 5, 21)]
    + [(4, 12, 3), (10, 12, 7), (20, 12, 13), (40, 12, 26)],
)
def test_experts_split_as_published(steps: int, shift: float, high: int) -> None:
    """The step's level decides, not that of a condition frame: the split is the same with a given first frame."""
    matrix = schedules.synchronous(sigmas.grid(steps, shift), 21)
    for m in (matrix, schedules.conditioned(matrix, {0: 0.0, 20: 0.3})):
        assert int((m.model_sigma.amax(dim=1) >= 0.875).sum()) == high


def test_the_table_shows_levels_holds_and_hidden_frames() -> None:
    text = str(schedules.conditioned(schedules.synchronous(sigmas.grid(4), 21), {0: 0.0, 20: 0.5}))
    head, *rows = [line.split() for line in text.splitlines()[1:]]
    assert head == ["step", "f0", "f1-19", "f20"]
    assert rows[1] == ["1", "0.000", "0.938", "0.469"]
    assert rows[-1] == ["out", "0.000", "0.000", "0.000"]
    assert str(schedules.chunked(sigmas.grid(2), 4, 2)).splitlines()[2].split() == ["0", "1.000", "."]
    assert "0.500/1.000" in str(schedules.in_context(sigmas.grid(2), 1, 1, 1, model_sigma="scalar"))
    assert "0~" in str(schedules.renoising(PLAIN))


def test_the_heat_map_darkens_with_noise_and_greys_what_is_hidden() -> None:
    middle = schedules.chunked(sigmas.grid(4), 2, 1).image(8)[4::8, 4::8].float()
    brightness = middle.mean(dim=-1)
    assert (brightness[:4, 0].diff() > 0).all()
    assert middle[0, 1].unique().numel() == 1
    hidden_noise = schedules.in_context(sigmas.grid(4), 1, 0, 1, model_sigma="scalar").image(8)
    assert not torch.equal(hidden_noise[0, 0], hidden_noise[4, 4])


def broken(**changes: torch.Tensor) -> TimestepMatrix:
    return dataclasses.replace(PLAIN, **changes)


def with_value(table: torch.Tensor, value: float, *at: int) -> torch.Tensor:
    table = table.clone()
    table[at] = value
    return table


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TimestepMatrix.from_sigma(torch.tensor(1.0)), "sigma has shape"),
        (lambda: TimestepMatrix.from_sigma(torch.ones(3)), "sigma has shape"),
        (lambda: TimestepMatrix.from_sigma(torch.ones(1, 3)), "sigma has shape"),
        (lambda: TimestepMatrix.from_sigma(torch.ones(3, 0)), "sigma has shape"),
        (lambda: broken(model_sigma=PLAIN.model_sigma[1:]), "model_sigma has shape"),
        (lambda: broken(visible=PLAIN.visible[:, 1:]), "visible has shape"),
        (lambda: broken(renoise=PLAIN.renoise[1:]), "renoise has shape"),
        (lambda: broken(sigma=with_value(PLAIN.sigma, 1.2, 2, 1)), "sigma is 1.2 at step 2, frame 1"),
        (lambda: broken(sigma=with_value(PLAIN.sigma, float("nan"), 0, 2)), "sigma is nan at step 0, frame 2"),
        (
            lambda: broken(model_sigma=with_value(PLAIN.model_sigma, -0.1, 3, 0)),
            "model_sigma is -0.1 at step 3, frame 0",
        ),
        (lambda: broken(visible=with_value(PLAIN.visible, False, 1, 2)), "hidden, at step 1, frame 2"),
        (lambda: TimestepMatrix.from_sigma(torch.ones(3, 2), visible=torch.tensor([[1, 1], [0, 0]])), "at step 1"),
        (
            lambda: TimestepMatrix.from_sigma(torch.ones(3, 2), visible=torch.tensor([[1, 0], [1, 0]])),
            "frame 1 is never",
        ),
        (lambda: TimestepMatrix.from_dict({"model_sigma": [[1.0]]}), "has 'sigma'"),
        (lambda: TimestepMatrix.from_dict({"sigma": [[1.0], [0.0]], "tolled": []}), "tolled"),
        (lambda: TimestepMatrix.from_dict({"sigma": [[1.0], [0.0]], "state": [[1.0], [0.0]]}), "'state'"),
        (lambda: TimestepMatrix.from_dict({"sigma": [[1.0], [0.0, 1.0]]}), "equal length"),
        (lambda: TimestepMatrix.from_dict({"sigma": [["a"], [0.0]]}), "numbers"),
        (lambda: PLAIN.image(2), "cell"),
    ],
)
def test_a_wrong_matrix_says_so_in_one_sentence(make, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
