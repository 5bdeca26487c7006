"""Feed-forward layers that compute one of several neighbouring frames that are alike (after VA-RED², arXiv 2102.07887).

Only frames of equal noise level are merged: the weights of a diffusion transformer answer to the noise level, and an
error at one level would be taken into another. So frames on different steps of a staircase are never merged. The layers
must act on each token alone.

Frames are merged with the first of their group, the *leader*, while their inputs differ little from its input. How much
that is follows from a calibration: it tells for each layer how far outputs differ for a difference of the inputs, and
which part of the difference a factor for each channel explains.

`feed_forward.py` compares it with the reuse of steps, which gives much better clips at the same operations. So pusa has
no acceleration of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Likeness:
    """What a calibration found for one layer.

    Attributes:
        slope: [D], the change of an output channel for a change of the same input channel.
        error: the relative change of the output, for a relative change of the input of 1.
    """

    slope: Tensor
    error: float


@dataclass
class Merged:
    """computed, total: tokens, over all calls of all layers."""

    computed: int = 0
    total: int = 0

    @property
    def fraction(self) -> float:
        """The share of the tokens that was computed, 0 to 1."""
        return self.computed / self.total if self.total else 1.0


def leaders(sigma: Tensor, change: Tensor, most: float) -> Tensor:
    """Return the frame whose output each frame gets, int64 [V]: its own number, or that of a frame before it.

    A frame follows the leader of the frame before it if both have the same noise level and differ by `most` or less.

    sigma: [V], the noise levels. change: [V, V], the change from a leader (row) to a frame (column).
    """
    levels, far = sigma.tolist(), change.tolist()
    found = [0]
    for frame in range(1, len(levels)):
        leader = found[-1]
        alike = levels[frame] == levels[leader] and far[leader][frame] <= most
        found.append(leader if alike else frame)
    return torch.tensor(found)


def changes(frames: Tensor) -> Tensor:
    """Return the relative change from each frame to each frame, [V, V] on the CPU, of values [B, V, n, D].

    It is the Euclidean distance over the norm of the first frame, and the largest one of the clips counts.
    """
    flat = frames.flatten(2).float()
    return (torch.cdist(flat, flat) / _norms(frames)[:, :, None]).amax(0).cpu()


@contextmanager
def merging(
    layers: Sequence[nn.Module], likeness: Sequence[Likeness], tolerance: float, sigma: Callable[[], Tensor]
) -> Iterator[Merged]:
    """Run feed-forward layers for some frames, inside the context.

    Args:
        layers: from tokens [B, V · n, D] in the order of their frames to the same shape, each token alone.
        likeness: of each layer.
        tolerance: the relative error of the output that is accepted, as the calibration predicts it; 0 merges nothing.
        sigma: returns the noise levels [V] of the present call.
    """
    counts = Merged()

    def run(forward: Callable[[Tensor], Tensor], known: Likeness, x: Tensor) -> Tensor:
        levels = sigma()
        frames = _by_frame(x, len(levels))
        counts.total += x.shape[0] * x.shape[1]
        own = leader = torch.arange(len(levels))
        if tolerance > 0 and bool((levels.diff() == 0).any()):
            leader = leaders(levels, changes(frames), tolerance / known.error)
        leads = leader == own
        counts.computed += x.shape[0] * int(leads.sum()) * frames.shape[2]
        if leads.all():
            return forward(x)
        out = _by_frame(forward(frames[:, leads].flatten(1, 2)), int(leads.sum()))
        differs = (frames - frames[:, leader]) * known.slope.to(x)
        return (out[:, leads.cumsum(0)[leader] - 1] + differs).flatten(1, 2)

    with _running([partial(run, layer.forward, known) for layer, known in zip(layers, likeness, strict=True)], layers):
        yield counts


@contextmanager
def calibrating(layers: Sequence[nn.Module], sigma: Callable[[], Tensor]) -> Iterator[Callable[[], list[Likeness]]]:
    """Watch layers inside the context. The value returns what was found: call it after the context.

    It looks at the frames that have the same noise level as the frame before them.
    """
    sums: list[list[Tensor | float]] = [[0.0] * 4 for _ in layers]

    def run(forward: Callable[[Tensor], Tensor], mine: list[Tensor | float], x: Tensor) -> Tensor:
        out, levels = forward(x), sigma()
        pairs = (levels.diff() == 0).nonzero()[:, 0]
        if len(pairs):
            before, after = (_by_frame(each.detach(), len(levels)).float() for each in (x, out))
            dx, dy = (each[:, pairs + 1] - each[:, pairs] for each in (before, after))
            inputs, outputs = (_norms(change) / _norms(each[:, pairs]) for change, each in ((dx, before), (dy, after)))
            found = ((dx * dy).sum((0, 1, 2)), dx.square().sum((0, 1, 2)), outputs.sum(), inputs.sum())
            mine[:] = [total + more for total, more in zip(mine, found, strict=True)]
        return out

    with _running([partial(run, layer.forward, mine) for layer, mine in zip(layers, sums, strict=True)], layers):
        yield lambda: [
            Likeness(torch.as_tensor(xy) / torch.as_tensor(xx).clamp(min=1e-12), float(outputs) / float(inputs))
            for xy, xx, outputs, inputs in sums
        ]


def _by_frame(tokens: Tensor, frames: int) -> Tensor:
    """Reshape tokens [B, V · n, D] to [B, V, n, D]."""
    return tokens.reshape(tokens.shape[0], frames, -1, tokens.shape[2])


def _norms(frames: Tensor) -> Tensor:
    """Return the Euclidean norms [B, V] of frames [B, V, n, D], above 0."""
    norms: Tensor = torch.linalg.vector_norm(frames.flatten(2).float(), dim=2).clamp(min=1e-12)
    return norms


@contextmanager
def _running(forwards: Sequence[Callable[[Tensor], Tensor]], layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the context, layers run these functions instead of their own."""
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
