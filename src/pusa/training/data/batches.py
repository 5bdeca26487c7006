"""Which clips at which step, and their reading ahead of time.

The order is a pure function of (seed, step): nothing is remembered, so a training that is resumed, or cut into another
number of processes, sees the same clips.

* An optimiser step has `lanes` micro-batches (passes × processes) of `batch` clips. All G = lanes · batch of them are
  of one bucket, so that every process does the same amount of work.
* A bucket of n clips is gone through in epochs; each is a permutation, one after the other in one long row, which the
  steps take G at a time. So every clip comes once per epoch, every batch is full, and nothing is dropped: what is left
  of an epoch begins the step in which the next one starts. The clips that such a step already has are moved back in the
  new epoch, so with n ≥ G no step has a clip twice; a bucket with fewer clips repeats them evenly.
* Buckets take turns by their sizes: after e epochs, bucket b has been given ⌊e · n_b / G⌋ steps, and which of an
  epoch's steps are whose is shuffled anew each epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.processes import ProcessGroup
from pusa.training.config.sections import TrainSettings
from pusa.training.random_draws import generator


class Samples(Protocol):
    """Encoded clips, as `cache.Cached` has them: a sample has `latents`, `context`, `caption` and `origin`."""

    @property
    def buckets(self) -> Sequence[Any]:
        """The bucket of each sample; only its equality and its text matter here."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch. latents: [B, C, F, h, w]; context: [B, L, D]; step and lane: where it belongs.

    origins: the file of each clip, for people.
    """

    step: int
    lane: int
    latents: Tensor
    context: Tensor
    captions: tuple[str, ...]
    origins: tuple[str, ...]


def indices(step: int, lane: int, lanes: int, batch: int, buckets: Sequence[Any], seed: int) -> list[int]:
    """The samples of micro-batch `lane` of optimiser step `step` (from 0); `buckets` has the bucket of each sample."""
    group = _order(tuple(map(str, buckets)), lanes * batch, seed).group(step)
    return group[lane * batch : (lane + 1) * batch]


class Order:
    """The order of one training: `group(step)` is the G samples of a step. It remembers only to be quick."""

    def __init__(self, buckets: Sequence[str], group: int, seed: int) -> None:
        if not buckets:
            raise InputError("There is no clip to make batches of.")
        members: dict[str, list[int]] = {}
        for sample, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(sample)
        self.rows = [_Row(name, members[name], group, seed) for name in sorted(members)]
        self.size, self.seed = group, seed
        self._turns: tuple[int, list[tuple[int, int]]] = (-1, [])

    def group(self, step: int) -> list[int]:
        """The samples of a step, all of one bucket."""
        epoch = self._epoch(step)
        if self._turns[0] != epoch:
            self._turns = (epoch, self._shuffled(epoch))
        row, number = self._turns[1][step - self._before(epoch)]
        return self.rows[row].group(number)

    def _before(self, epoch: int) -> int:
        """How many steps are done when `epoch` begins."""
        return sum(epoch * len(row.members) // self.size for row in self.rows)

    def _epoch(self, step: int) -> int:
        """The epoch that a step falls into: the last one that begins at or before it."""
        first, last = 0, 1
        while self._before(last) <= step:
            first, last = last, 2 * last
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if self._before(middle) <= step else (first, middle)
        return first

    def _shuffled(self, epoch: int) -> list[tuple[int, int]]:
        """(row, its group) of every step of an epoch; each row's groups stay in their order."""
        ends = [[e * len(row.members) // self.size for e in (epoch, epoch + 1)] for row in self.rows]
        turns = [place for place, (begin, end) in enumerate(ends) for _ in range(begin, end)]
        order = torch.randperm(len(turns), generator=generator(self.seed, 0, epoch, "buckets"))
        left = [iter(range(begin, end)) for begin, end in ends]
        return [(turns[i], next(left[turns[i]])) for i in order.tolist()]


class _Row:
    """The clips of a bucket, epoch after epoch; group k is positions k·G to (k + 1)·G."""

    def __init__(self, name: str, members: list[int], group: int, seed: int) -> None:
        self.name, self.members, self.size, self.seed = name, members, group, seed
        self._epochs: dict[int, list[int]] = {}

    def group(self, number: int) -> list[int]:
        begin, n = number * self.size, len(self.members)
        return [self.epoch(at // n)[at % n] for at in range(begin, begin + self.size)]

    def epoch(self, epoch: int) -> list[int]:
        """The order of an epoch. It depends on the one before by the clips that share a step with its beginning."""
        if epoch not in self._epochs:
            at = max((known for known in self._epochs if known < epoch), default=-1)
            for following in range(at + 1, epoch + 1):
                self._epochs[following] = self._permuted(following)
                oldest = following - 2 - self.size // len(self.members)
                self._epochs.pop(oldest, None)
        return self._epochs[epoch]

    def _permuted(self, epoch: int) -> list[int]:
        n = len(self.members)
        rng = generator(self.seed, 0, epoch, f"epoch of {self.name}")
        order = [self.members[i] for i in torch.randperm(n, generator=rng).tolist()]
        carried = epoch * n % self.size
        if not carried or n < self.size:
            return order
        taken = set(self._epochs[epoch - 1][-carried:])
        head = self.size - carried
        free = [clip for clip in order if clip not in taken][:head]
        chosen = set(free)
        return free + [clip for clip in order if clip not in chosen]


@lru_cache(maxsize=4)
def _order(buckets: tuple[str, ...], group: int, seed: int) -> Order:
    return Order(buckets, group, seed)


class Batches(Iterator[Batch]):
    """The micro-batches of one process from step `first` to the last: its passes of a step, then those of the next.

    `settings.workers` threads read ahead (0: none); what comes out, and in what order, does not depend on them. An
    error of reading is raised where the batch would have come. Close it, or use it as a context manager, to end them.
    """

    def __init__(
        self, samples: Samples, settings: TrainSettings, *, first: int = 0, group: ProcessGroup | None = None
    ) -> None:
        group = group or ProcessGroup()
        self.samples, self.settings = samples, settings
        self.lanes = settings.accumulate * group.size
        self.order = Order([str(bucket) for bucket in samples.buckets], self.lanes * settings.batch, settings.seed)
        self._places: Iterator[tuple[int, int]] = iter(
            (step, turn * group.size + group.rank)
            for step in range(first, settings.steps)
            for turn in range(settings.accumulate)
        )
        self._pool = ThreadPoolExecutor(settings.workers, "batches") if settings.workers else None
        self._ahead: deque[Future[Batch]] = deque()

    def __next__(self) -> Batch:
        if self._pool is None:
            return self._read(*self._next_place())
        while len(self._ahead) <= self.settings.workers:
            try:
                self._ahead.append(self._pool.submit(self._read, *self._next_place()))
            except StopIteration:
                break
        if not self._ahead:
            self.close()
            raise StopIteration
        return self._ahead.popleft().result()

    def _next_place(self) -> tuple[int, int, list[int]]:
        step, lane = next(self._places)
        size = self.settings.batch
        return step, lane, self.order.group(step)[lane * size : (lane + 1) * size]

    def _read(self, step: int, lane: int, chosen: Sequence[int]) -> Batch:
        clips = [self.samples[i] for i in chosen]
        return Batch(
            step,
            lane,
            torch.stack([clip.latents for clip in clips]),
            torch.stack([clip.context for clip in clips]),
            tuple(clip.caption for clip in clips),
            tuple(clip.origin for clip in clips),
        )

    def close(self) -> None:
        """End the threads; batches that were read ahead are forgotten."""
        self._places = iter(())
        self._ahead.clear()
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
