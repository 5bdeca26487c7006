"""Feed-forward layers with merged frames: never across noise levels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.merging import Likeness, Merged, calibrating, changes, leaders, merging
from pusa.generation.pipeline import Pipeline

PROMPT = "a red circle moves left on a black background"
ALIKE = torch.zeros(4, 4)


def test_frames_follow_the_first_of_their_group() -> None:
    assert leaders(torch.ones(4), ALIKE, 0.1).tolist() == [0, 0, 0, 0]
    far = torch.tensor([[0, 0.1, 0.3, 0.3], [0.1, 0, 0.1, 0.1], [0.3, 0.1, 0, 0.1], [0.3, 0.1, 0.1, 0]])
    assert leaders(torch.ones(4), far, 0.2).tolist() == [0, 0, 2, 2]


def test_frames_of_different_noise_levels_are_never_merged() -> None:
    assert leaders(torch.tensor([0.9, 0.8, 0.7, 0.6]), ALIKE, 100).tolist() == [0, 1, 2, 3]
    assert leaders(torch.tensor([0.0, 0.7, 0.7, 0.7]), ALIKE, 100).tolist() == [0, 1, 1, 1]
    assert leaders(torch.tensor([0.7, 0.0, 0.7, 0.7 + 1e-7]), ALIKE, 100).tolist() == [0, 1, 2, 3]


def test_changes_are_relative_and_the_largest_clip_counts() -> None:
    frames = torch.tensor([[1.0, 2.0], [4.0, 5.0]])[:, :, None, None]
    torch.testing.assert_close(changes(frames), torch.tensor([[0.0, 1.0], [0.5, 0.0]]))


def test_merged_frames_get_what_the_slope_tells() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    layer.weight.data = torch.diag(torch.tensor([1.0, -2.0, 3.0]))
    x = torch.randn(2, 4 * 5, 3)
    levels = torch.ones(4)
    with calibrating([layer], lambda: levels) as found:
        layer(x)
    (likeness,) = found()
    torch.testing.assert_close(likeness.slope, torch.tensor([1.0, -2.0, 3.0]))
    with merging([layer], [likeness], 100.0, lambda: levels) as merged:
        out = layer(x)
    assert merged.fraction == 0.25
    torch.testing.assert_close(out, layer(x))
    with merging([layer], [Likeness(torch.zeros(3), 1.0)], 100.0, lambda: levels):
        copied = layer(x).unflatten(1, (4, 5))
    torch.testing.assert_close(copied, copied[:, :1].expand_as(copied))


@contextmanager
def merged_clips(
    pipe: Pipeline, tolerance: float, runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Merged]:
    """Inside the context, clips are made with merged frames. runs: for each call, its runs of equal levels, and V."""
    usual, level = pipe.backbone.velocity, torch.zeros(1)

    def velocity(network: Any, latents: Tensor, sigma: Tensor, *args: Any, **options: Any) -> Tensor:
        nonlocal level
        level = sigma[0]
        runs.append((1 + int((level.diff() != 0).sum()), len(level)))
        return usual(network, latents, sigma, *args, **options)

    layers = [block.ffn for block in pipe.transformer.blocks]
    width = pipe.transformer.blocks[0].scale_shift_table.shape[2]
    likeness = [Likeness(torch.zeros(width), 1.0) for _ in layers]
    with monkeypatch.context() as patch, merging(layers, likeness, tolerance, lambda: level) as merged:
        patch.setattr(pipe.backbone, "velocity", velocity)
        yield merged


@pytest.mark.parametrize(
    ("schedule", "tolerance"), [("synchronous", 0.0), ("synchronous", 100.0), ("staircase,block=1,delay=1", 100.0)]
)
def test_a_clip_merges_what_has_one_level(
    tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, schedule: str, tolerance: float
) -> None:
    """A tolerance of 100 merges all frames that may be merged. In a staircase, those that wait have one level."""
    options: dict[str, Any] = {"steps": 6, "guidance": 2.0, "seed": 0, "schedule": schedule}
    plain = tiny_pipe.generate(PROMPT, **options).latents
    runs: list[tuple[int, int]] = []
    with merged_clips(tiny_pipe, tolerance, runs, monkeypatch) as merged:
        made = tiny_pipe.generate(PROMPT, **options).latents
    computed, total = (sum(column) for column in zip(*runs, strict=True))
    assert merged.fraction == (pytest.approx(computed / total) if tolerance else 1)
    assert torch.equal(made, plain) == (tolerance == 0)
    assert all("forward" not in vars(block.ffn) for block in tiny_pipe.transformer.blocks)
