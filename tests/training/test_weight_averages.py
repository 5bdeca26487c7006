"""Averages of the weights: the plain one, EDM2's power functions, and any length afterwards from snapshots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pusa.errors import InputError
from pusa.training import weight_averages
from pusa.training.weight_averages import Averages

STEPS = 400


def path_of_weights(step: int) -> torch.Tensor:
    """A smooth made-up training, [3]."""
    t = step / STEPS
    return torch.tensor([t, np.exp(-5 * t), np.sin(6 * t)], dtype=torch.float32)


def trained(kind: float | str | None, every: int = 25, folder: Path | None = None) -> Averages:
    weight = nn.Parameter(torch.zeros(3))
    kept = Averages({"w": weight}, kind)
    for step in range(1, STEPS + 1):
        weight.data.copy_(path_of_weights(step))
        kept.update({"w": weight}, step)
        if folder and step % every == 0:
            weight_averages.write_snapshot(folder / f"step_{step:06d}.safetensors", kept.values, step)
    return kept


def power_average(sigma_rel: float) -> torch.Tensor:
    """The definition: weights proportional to tau ** gamma over all steps."""
    tau = torch.arange(1, STEPS + 1, dtype=torch.float64)
    shares = (tau / STEPS) ** weight_averages.gamma(sigma_rel)
    values = torch.stack([path_of_weights(step) for step in range(1, STEPS + 1)]).double()
    return (shares[:, None] * values).sum(0) / shares.sum()


@given(st.floats(0.01, 0.27))
def test_gamma_has_the_relative_deviation_asked_for(sigma_rel: float) -> None:
    g = weight_averages.gamma(sigma_rel)
    assert np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(sigma_rel, rel=1e-6)


def test_the_tracked_averages_are_power_functions() -> None:
    kept = trained("post-hoc")
    for name, sigma_rel in zip(kept.values, weight_averages.POST_HOC, strict=True):
        torch.testing.assert_close(kept.values[name]["w"].double(), power_average(sigma_rel), atol=0.01, rtol=0)
    assert kept.best({"w": nn.Parameter(torch.zeros(3))})["w"] is kept.values["0.10"]["w"]


@pytest.mark.parametrize("sigma_rel", [0.05, 0.075, 0.1, 0.15])
def test_any_length_can_be_had_afterwards(sigma_rel: float, tmp_path: Path) -> None:
    trained("post-hoc", folder=tmp_path)
    made = weight_averages.reconstruct(sorted(tmp_path.iterdir()), sigma_rel).weights["w"]
    wrong = (power_average(0.05 if sigma_rel > 0.07 else 0.15) - power_average(sigma_rel)).abs().max()
    distance = (made.double() - power_average(sigma_rel)).abs().max()
    assert distance < 0.01
    assert distance < 0.2 * wrong


def test_a_tracked_length_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = trained("post-hoc", folder=tmp_path)
    made = weight_averages.reconstruct(sorted(tmp_path.iterdir()), 0.10).weights["w"]
    torch.testing.assert_close(made, kept.values["0.10"]["w"], atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="no snapshots"):
        weight_averages.reconstruct([], 0.1)
    with pytest.raises(InputError, match=r"between 0 and 0\.28"):
        weight_averages.reconstruct(sorted(tmp_path.iterdir()), 0.5)


def test_what_did_not_change_comes_out_as_it_was_from_few_snapshots(tmp_path: Path) -> None:
    kept = Averages({"w": nn.Parameter(torch.tensor([1.0, -3.0]))}, "post-hoc")
    for step in (45, 90, 135, 180):
        weight_averages.write_snapshot(tmp_path / f"step_{step:06d}.safetensors", kept.values, step)
    made = weight_averages.reconstruct(sorted(tmp_path.iterdir()), 0.2)
    torch.testing.assert_close(made.weights["w"], torch.tensor([1.0, -3.0]), atol=1e-6, rtol=0)
    assert (made.step, made.snapshots) == (180, 4)
    assert 0.1 < made.misfit < weight_averages.MISFIT


def test_a_length_that_the_snapshots_cannot_give_is_refused_with_those_that_they_can(tmp_path: Path) -> None:
    trained("post-hoc", every=100, folder=tmp_path)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(
        InputError, match=r"too far apart for an average of relative length 0\.01; .* allow (\S+) to (\S+)\.$"
    ):
        weight_averages.reconstruct(there, 0.01)
    earlier = weight_averages.reconstruct(there, 0.08, 300)
    assert (earlier.step, earlier.snapshots) == (300, 3)
    with pytest.raises(InputError, match="no snapshot of step 250; the nearest are those of steps 100, 200, 300"):
        weight_averages.reconstruct(there, 0.08, 250)


def test_a_snapshot_that_does_not_belong_is_named(tmp_path: Path) -> None:
    trained("post-hoc", every=100, folder=tmp_path)
    there = sorted(tmp_path.iterdir())
    weight_averages.write_snapshot(there[1], {"0.05": {"v": torch.zeros(3)}, "0.10": {"v": torch.zeros(3)}}, 200)
    with pytest.raises(InputError, match=r"step_000200\.safetensors contains other parameters"):
        weight_averages.reconstruct(there, 0.08)
    for damage in (lambda: there[1].write_bytes(b"cut"), lambda: save_file({"w": torch.zeros(3)}, there[1])):
        damage()
        with pytest.raises(InputError, match=r"step_000200\.safetensors is damaged"):
            weight_averages.reconstruct(there, 0.08)


def test_the_plain_average_forgets_at_its_decay_and_begins_short() -> None:
    weight = nn.Parameter(torch.ones(1))
    kept = Averages({"w": weight}, 0.9)
    weight.data.zero_()
    kept.update({"w": weight}, 1)
    assert kept.values["ema"]["w"].item() == pytest.approx(2 / 11)
    for step in range(1000, 1010):
        kept.update({"w": weight}, step)
    assert kept.values["ema"]["w"].item() == pytest.approx(2 / 11 * 0.9**10)


def test_without_an_average_the_weights_are_handed_out() -> None:
    weight = nn.Parameter(torch.ones(2))
    kept = Averages({"w": weight}, None)
    kept.update({"w": weight}, 1)
    assert torch.equal(kept.best({"w": weight})["w"], weight)
