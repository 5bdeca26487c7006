"""Convolutions that compute what their gate chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pusa.acceleration.reduction import ReducedConv3d, computed_share, mean_stride, reduced_layers
from pusa.errors import InputError

CHOICES = [(stride, share) for stride in range(3) for share in range(2)]


class Prefers(nn.Module):
    """A gate with the same logits for all clips, or for clips with a positive mean and for the others."""

    def __init__(self, *choices: tuple[int, int]) -> None:
        super().__init__()
        self.choices = choices

    def forward(self, x: Tensor) -> Tensor:
        kinds = (x.mean((1, 2, 3, 4)) <= 0).long() % len(self.choices)
        wanted = [{stride, 3 + share} for stride, share in self.choices]
        return torch.tensor([[float(i in each) for i in range(5)] for each in wanted])[kinds]

    def operations(self, frames: int, height: int, width: int) -> int:
        return 0


def layer(gate: nn.Module | None = None, **options: Any) -> ReducedConv3d:
    """A layer whose restoring is not that of the start."""
    torch.manual_seed(0)
    made = ReducedConv3d(nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1), gate, **options)
    with torch.no_grad():
        for parameter in (*made.between, *made.copies):
            parameter += 0.3 * torch.randn_like(parameter)
    return made.eval()


def clips(frames: int = 8, count: int = 4) -> Tensor:
    return torch.randn(count, 3, frames, 9, 9, generator=torch.Generator().manual_seed(1))


def test_the_whole_layer_changes_no_bit() -> None:
    reduced = layer(Prefers((0, 0)))
    assert torch.equal(reduced(clips()), reduced.conv(clips()))
    assert computed_share([reduced]).tolist() == [1.0] * 4


@pytest.mark.parametrize("frames", [1, 3, 7, 8])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_mixture_with_one_choice_is_that_choice(choice: tuple[int, int], frames: int) -> None:
    reduced, x = layer(), clips(frames)
    weights = [functional.one_hot(torch.full((4,), c), n).float() for c, n in zip(choice, (3, 2), strict=True)]
    alone = reduced.chosen(x, *choice)
    assert alone.shape == reduced.conv(x).shape
    torch.testing.assert_close(reduced.mixed(x, *weights), alone)


def test_each_clip_gets_its_own_choice() -> None:
    reduced = layer(Prefers((2, 1), (0, 0)))
    shift = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None, None, None]
    x = clips() * 0.1 + shift
    out = reduced(x)
    assert torch.equal(out[[1, 3]], reduced.conv(x[[1, 3]]))
    assert torch.equal(out[[0, 2]], reduced.chosen(x[[0, 2]], 2, 1))
    assert not torch.allclose(out[[0, 2]], reduced.conv(x[[0, 2]]))
    assert mean_stride([reduced]).tolist() == [4.0, 1.0, 4.0, 1.0]


@pytest.mark.parametrize("choice", CHOICES)
def test_products_are_left_out_and_counted(choice: tuple[int, int]) -> None:
    """PyTorch counts the products of what really runs."""
    reduced, x = layer(Prefers(choice)), clips(7)
    with FlopCounterMode(display=False) as counter:
        reduced(x)
    stride, kept = reduced.strides[choice[0]], reduced.kept[choice[1]]
    frames = -(-7 // stride)
    restored = 2 * (8 - kept) * 25 * frames + 4 * (7 - frames) * 8 * 25
    products = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert products / 4 + restored == reduced.operations((7, 9, 9), *choice)
    assert reduced.last.operations.tolist() == [reduced.operations((7, 9, 9), *choice)] * 4
    assert reduced.operations((7, 9, 9), *choice) < reduced.last.whole or choice == (0, 0)


def test_a_still_clip_loses_nothing_at_first() -> None:
    """Frames are interpolated at first, which is exact where the output does not change in time."""
    torch.manual_seed(0)
    reduced = ReducedConv3d(nn.Conv3d(3, 8, (1, 3, 3)))
    still, moving = clips(1).expand(-1, -1, 8, -1, -1), clips()
    torch.testing.assert_close(reduced.chosen(still, 2, 0), reduced.conv(still))
    assert not torch.allclose(reduced.chosen(moving, 2, 0), reduced.conv(moving), atol=0.1)


def test_the_price_of_operations_moves_the_gate_of_each_clip() -> None:
    """Trained to keep moving clips exact at a price, the gate tells still clips from moving ones."""
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 8, (1, 3, 3))
    reduced = ReducedConv3d(plain, shares=(1.0,))
    for parameter in (*plain.parameters(), *reduced.between):
        parameter.requires_grad_(False)
    x = torch.cat([clips(1).expand(-1, -1, 8, -1, -1), clips()])
    optimiser = torch.optim.Adam(reduced.gate.parameters(), lr=0.03)
    for _ in range(60):
        loss = (reduced(x) - plain(x)).square().mean() + 0.1 * computed_share([reduced]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    reduced.eval()(x)
    assert mean_stride([reduced]).tolist() == [4.0] * 4 + [1.0] * 4
    share = computed_share([reduced])
    assert share[:4].max() < 0.7 < share[4:].min()


def test_layers_of_a_model() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 1), ReducedConv3d(nn.Conv3d(4, 4, 1)), nn.ReLU())
    assert reduced_layers(model) == [model[1]]


def test_layers_that_cannot_be_reduced() -> None:
    for convolution in (nn.Conv3d(3, 8, 3, stride=2), nn.Conv3d(4, 8, 3, groups=2), nn.Conv3d(3, 8, 3, padding="same")):
        with pytest.raises(InputError, match="cannot be reduced: give a convolution with temporal stride 1"):
            ReducedConv3d(convolution)
    for options in ({"strides": (2, 4)}, {"shares": (0.5,)}, {"shares": (1.0, 0.01)}, {"strides": (1, 0)}):
        with pytest.raises(InputError, match="begin both with 1"):
            layer(**options)
