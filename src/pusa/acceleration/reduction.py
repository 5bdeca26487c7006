"""Convolutions that compute fewer frames and fewer channels of clips that need no more (VA-RED², arXiv 2102.07887).

A gate looks at the input of a layer and chooses, for each clip, a temporal stride and a share of the output channels.
The layer computes every n-th frame and the first channels, and restores the others from these by a few operations for
each number. All choices share the weights of the layer, so a trained layer can be wrapped and tuned.

In training, the results of all choices are mixed with random weights near 0 or 1 (Gumbel-softmax), so the gate gets a
gradient. In evaluation, the best choice alone is computed, with fewer products and no mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from pusa.errors import InputError

STRIDES = (1, 2, 4)
SHARES = (1.0, 0.5)
"""of the output channels that are computed"""
CELLS = 4
"""the side of the grid of means on which a gate sees a frame"""


@dataclass(frozen=True)
class Computed:
    """What a layer computed for the clips of its last call.

    Attributes:
        operations: [B]; in training the mean over the choices, with a gradient.
        whole: the operations of the plain layer for one clip.
        stride: [B], the temporal stride; in training the mean over the choices.
    """

    operations: Tensor
    whole: int
    stride: Tensor


class Gate(nn.Module):
    """Logits of all strides and shares, [B, strides + shares], from an input [B, C, T, H, W].

    It sees the mean of each channel, and the mean change of each channel from a frame to the next. Both are taken on a
    grid of `CELLS` times `CELLS` cells.
    """

    def __init__(self, channels: int, choices: int, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * channels, affine=False)
        self.hidden, self.logits = nn.Linear(2 * channels, width), nn.Linear(width, choices)

    def forward(self, x: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool3d(x, (x.shape[2], CELLS, CELLS))
        mean = cells.mean((2, 3, 4))
        change = cells.diff(dim=2).abs().mean((2, 3, 4)) if x.shape[2] > 1 else torch.zeros_like(mean)
        out: Tensor = self.logits(self.hidden(self.norm(torch.cat([mean, change], 1))).relu())
        return out

    def operations(self, frames: int, height: int, width: int) -> int:
        """Return the operations for one clip of this size."""
        channels = self.hidden.in_features // 2
        products = 2 * (self.hidden.weight.numel() + self.logits.weight.numel())
        return channels * frames * (height * width + 4 * CELLS**2) + products


class ReducedConv3d(nn.Module):
    """A convolution over clips [B, C, T, H, W] that computes what its gate chooses.

    Args:
        conv: with temporal stride 1, zero padding and one group. Its parameters are used, not copied.
        gate: from an input to logits [B, strides + shares], with a method `operations`; None makes a `Gate`.
        strides: temporal strides, the first of them 1.
        shares: of the output channels, in (0, 1], the first of them 1.

    Attributes:
        temperature: of the weights in training; near 0, one choice has nearly all the weight.
        last: what the last call computed.

    Raises InputError if the convolution or a choice is of another kind.
    """

    last: Computed

    def __init__(
        self,
        conv: nn.Conv3d,
        gate: nn.Module | None = None,
        strides: tuple[int, ...] = STRIDES,
        shares: tuple[float, ...] = SHARES,
    ) -> None:
        super().__init__()
        if conv.stride[0] != 1 or conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError(
                f"The layer {conv} cannot be reduced: give a convolution with temporal stride 1, one group, and a "
                "number of zeros as padding."
            )
        kept = [round(share * conv.out_channels) for share in shares]
        if strides[0] != 1 or min(strides) < 1 or shares[0] != 1 or not all(0 < n <= conv.out_channels for n in kept):
            raise InputError(
                f"The strides {strides} and shares {shares} of a layer with {conv.out_channels} output channels are "
                "no choices: begin both with 1, and leave at least one frame and one channel."
            )
        self.conv, self.strides, self.shares = conv, strides, shares
        self.kept, self.temperature = tuple(kept), 1.0
        self.gate = Gate(conv.in_channels, len(strides) + len(shares)) if gate is None else gate
        self.between = nn.ParameterList([_interpolation(n, conv.out_channels) for n in strides[1:]])
        self.copies = nn.ParameterList(
            [nn.Parameter(torch.tensor([[1.0], [0.0]]).repeat(1, conv.out_channels - n)) for n in kept[1:]]
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x).split([len(self.strides), len(self.shares)], dim=1)
        if self.training:
            weights = [functional.gumbel_softmax(each, tau=self.temperature) for each in logits]
            self._note(x, *weights)
            return self.mixed(x, *weights)
        chosen = torch.stack([each.argmax(1) for each in logits], 1)
        self._note(x, *(functional.one_hot(c, each.shape[1]).to(x) for c, each in zip(chosen.T, logits, strict=True)))
        different = sorted({(stride, share) for stride, share in chosen.tolist()})
        if len(different) == 1:
            return self.chosen(x, *different[0])
        out: Tensor | None = None
        for choice in different:
            rows = (chosen == torch.tensor(choice, device=chosen.device)).all(1).nonzero()[:, 0]
            some = self.chosen(x[rows], *choice)
            out = some.new_empty(len(x), *some.shape[1:]) if out is None else out
            out[rows] = some
        assert out is not None
        return out

    def chosen(self, x: Tensor, stride: int, share: int) -> Tensor:
        """Return the output [B, C, T, H, W] of one choice, of which only the needed part is computed.

        stride, share: numbers of the choices, from 0. With 0 and 0 it is the output of the plain layer, bit for bit.
        """
        if stride == share == 0:
            out: Tensor = self.conv(x)
            return out
        conv, kept, n = self.conv, self.kept[share], self.strides[stride]
        bias = None if conv.bias is None else conv.bias[:kept]
        steps = (n, *conv.stride[1:])
        some = functional.conv3d(x, conv.weight[:kept], bias, steps, conv.padding, conv.dilation)  # type: ignore[arg-type]
        return self._with_frames(self._with_channels(some, share), stride, self._size_of(_size(x))[0])

    def mixed(self, x: Tensor, strides: Tensor, shares: Tensor) -> Tensor:
        """Return the sum of the outputs of all choices, with weights strides [B, strides] and shares [B, shares].

        The weights of a clip sum to 1. The layer is computed once, and all choices are restored from its output.
        """
        whole = self.conv(x)
        frames = whole.shape[2]
        outs = [self._with_channels(whole[:, :n], share) for share, n in enumerate(self.kept)]
        out = torch.stack([w[:, None, None, None, None] * each for w, each in zip(shares.T, outs, strict=True)]).sum(0)
        table = torch.stack([self._table(stride, frames) for stride in range(len(self.strides))])
        mixture = torch.einsum("bs,sctn->bctn", strides, table)
        return (mixture @ out.flatten(3)).reshape(out.shape)

    def operations(self, size: tuple[int, int, int], stride: int, share: int) -> int:
        """Return the operations of a choice for one clip of `size` = (T, H, W), without the gate.

        A multiplication with its addition are two operations. A restored number takes two of them if it is copied from
        another channel, and four if it is from another frame.
        """
        conv, kept = self.conv, self.kept[share]
        frames, *area = self._size_of(size)
        computed, numbers = -(-frames // self.strides[stride]), conv.out_channels * prod(area)
        products = 2 * prod(conv.kernel_size) * conv.in_channels * kept * prod(area) * computed
        copied = 2 * (conv.out_channels - kept) * prod(area) * computed
        return products + copied + 4 * (frames - computed) * numbers

    def _with_channels(self, some: Tensor, share: int) -> Tensor:
        """Return all channels from the first ones: each other channel is one of them, scaled and shifted."""
        if self.kept[share] == self.conv.out_channels:
            return some
        scale, shift = self.copies[share - 1]
        source = torch.arange(len(scale), device=some.device) % self.kept[share]
        restored = torch.addcmul(shift[:, None, None, None], some[:, source], scale[:, None, None, None])
        return torch.cat([some, restored], 1)

    def _with_frames(self, some: Tensor, stride: int, frames: int) -> Tensor:
        """Return all frames from every n-th one: the others are mixed from their two neighbours in each channel."""
        if self.strides[stride] == 1:
            return some
        after = torch.cat([some[:, :, 1:], some[:, :, -1:]], 2)
        between = [
            some * left[:, None, None, None] + after * right[:, None, None, None]
            for left, right in self.between[stride - 1]
        ]
        return torch.stack([some, *between], 3).flatten(2, 3)[:, :, :frames]

    def _table(self, stride: int, frames: int) -> Tensor:
        """Return the weights [C, T, T] with which `_with_frames` makes frames (rows) of frames (columns)."""
        n, channels = self.strides[stride], self.conv.out_channels
        weights = self.conv.weight.new_zeros(1, 2, channels)
        weights[:, 0] = 1
        if n > 1:
            weights = torch.cat([weights, self.between[stride - 1]])
        at = torch.arange(frames, device=weights.device)
        before = at - at % n
        after = (before + n).clamp(max=(frames - 1) // n * n)
        left, right = weights[at % n].permute(1, 2, 0)[..., None]
        table: Tensor = left * functional.one_hot(before, frames) + right * functional.one_hot(after, frames)
        return table

    def _size_of(self, size: tuple[int, int, int]) -> tuple[int, ...]:
        """Return (T, H, W) of the output for that of an input."""
        conv, padding = self.conv, [int(number) for number in self.conv.padding]
        rows = zip(size, padding, conv.dilation, conv.kernel_size, conv.stride, strict=True)
        return tuple((n + 2 * pad - far * (k - 1) - 1) // step + 1 for n, pad, far, k, step in rows)

    def _note(self, x: Tensor, strides: Tensor, shares: Tensor) -> None:
        size = _size(x)
        table = [[self.operations(size, i, j) for j in range(len(self.shares))] for i in range(len(self.strides))]
        operations = torch.einsum("bi,ij,bj->b", strides, torch.tensor(table).to(strides), shares)
        operations = operations + self.gate.operations(*size)  # type: ignore[operator]
        stride = strides.detach() @ torch.tensor(self.strides).to(strides)
        self.last = Computed(operations, self.operations(size, 0, 0), stride)


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[2], x.shape[3], x.shape[4]


def _interpolation(stride: int, channels: int) -> nn.Parameter:
    """Return weights of the frames before and after, [stride - 1, 2, C], which interpolate in time at first."""
    after = torch.arange(1, stride) / stride
    return nn.Parameter(torch.stack([1 - after, after], 1)[..., None].repeat(1, 1, channels))


def reduced_layers(model: nn.Module) -> list[ReducedConv3d]:
    """Return the reduced convolutions of a model, in their order."""
    return [module for module in model.modules() if isinstance(module, ReducedConv3d)]


def computed_share(layers: Iterable[ReducedConv3d]) -> Tensor:
    """Return the share [B] of the operations of the plain layers that the last call computed, with the gates.

    In training it has a gradient to the gates: added to a loss, it is the price of an operation.
    """
    last = [layer.last for layer in layers]
    return torch.stack([each.operations for each in last]).sum(0) / sum(each.whole for each in last)


def mean_stride(layers: Iterable[ReducedConv3d]) -> Tensor:
    """Return the mean temporal stride [B] of the layers in the last call."""
    return torch.stack([layer.last.stride for layer in layers]).mean(0)
