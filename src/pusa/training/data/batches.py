"""The order of the samples in a training, and batches that are read ahead.

The samples of a step are a pure function of the seed and the step. So a training sees the same samples after it is
resumed, or with another number of processes.

* An optimiser step has `lanes` micro-batches (passes × processes) of `batch` samples. All G = lanes · batch samples of
  a step belong to one bucket, so that all processes do the same amount of work.
* A bucket of n samples is read in epochs. Each epoch is a permutation of the bucket. The epochs form one sequence, and
  each step takes the next G samples of it. So every sample occurs once in each epoch, every batch is full, and no
  sample is dropped. A step may contain the end of one epoch and the beginning of the next. The samples that such a step
  already has are moved back in the new epoch. So if n ≥ G, no step has a sample twice; if n < G, all samples repeat
  equally often.
* A bucket gets steps in proportion to its size: after e epochs, bucket b has had ⌊e · n_b / G⌋ steps. The order of the
  buckets is shuffled in each epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.processes import ProcessGroup
from pusa.training.config.sections import TrainSettings
from pusa.training.random_draws import generator


class Samples(Protocol):
    """A sequence of encoded samples, such as `cache.CachedSamples`.

    A sample has `latents` [C, F, h, w], `context` [L, D], `caption` and `origin`.
    """

    @property
    def buckets(self) -> Sequence[Any]:
        """The bucket of each sample. The text of a bucket identifies it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class SamplesWithVariants(Protocol):
    """Samples of which some have several captions."""

    def captioned(self, index: int, draw: float, /) -> Any:
        """Return sample `index` with one of its captions. draw: a number in [0, 1) that selects it."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch.

    step: from 0. lane: the number of the micro-batch in its step, from 0. latents: [B, C, F, h, w]. context: [B, L, D].
    captions: of each sample. origins: the file of each sample, for messages.
    """

    step: int
    lane: int
    latents: Tensor
    context: Tensor
    captions: tuple[str, ...]
    origins: tuple[str, ...]


def indices(step: int, lane: int, lanes: int, batch: int, buckets: Sequence[Any], seed: int) -> list[int]:
    """Return the samples of micro-batch `lane` in optimiser step `step`, both from 0.

    lanes: micro-batches of a step. batch: samples of a micro-batch. buckets: the bucket of each sample.
    """
    group = _order(tuple(map(str, buckets)), lanes * batch, seed).group(step)
    return group[lane * batch : (lane + 1) * batch]


class Order:
    """The order of the samples in one training. It keeps some results, but only to be fast.

    buckets: the bucket of each sample. group: G, the samples of a step. Raises InputError if there is no sample.
    """

    def __init__(self, buckets: Sequence[str], group: int, seed: int) -> None:
        if not buckets:
            raise InputError("There is no sample to train on; give clips that fit a bucket.")
        members: dict[str, list[int]] = {}
        for sample, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(sample)
        self.rows = [_Row(name, members[name], group, seed) for name in sorted(members)]
        self.size, self.seed = group, seed
        self._turns: tuple[int, list[tuple[int, int]]] = (-1, [])

    def group(self, step: int) -> list[int]:
        """Return the G samples of a step (from 0), all of one bucket."""
        epoch = self._epoch(step)
        if self._turns[0] != epoch:
            self._turns = (epoch, self._shuffled(epoch))
        row, number = self._turns[1][step - self._before(epoch)]
        return self.rows[row].group(number)

    def _before(self, epoch: int) -> int:
        """Return the number of steps before `epoch`."""
        return sum(epoch * len(row.members) // self.size for row in self.rows)

    def _epoch(self, step: int) -> int:
        """Return the epoch of a step: the last epoch that begins at or before it."""
        first, last = 0, 1
        while self._before(last) <= step:
            first, last = last, 2 * last
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if self._before(middle) <= step else (first, middle)
        return first

    def _shuffled(self, epoch: int) -> list[tuple[int, int]]:
        """Return (row, group) of every step of an epoch. The groups of a row keep their order."""
        ends = [[e * len(row.members) // self.size for e in (epoch, epoch + 1)] for row in self.rows]
        turns = [place for place, (begin, end) in enumerate(ends) for _ in range(begin, end)]
        order = torch.randperm(len(turns), generator=generator(self.seed, 0, epoch, "buckets"))
        left = [iter(range(begin, end)) for begin, end in ends]
        return [(turns[i], next(left[turns[i]])) for i in order.tolist()]


class _Row:
    """The samples of a bucket, epoch after epoch. Group k consists of the positions k·G to (k + 1)·G."""

    def __init__(self, name: str, members: list[int], group: int, seed: int) -> None:
        self.name, self.members, self.size, self.seed = name, members, group, seed
        self._epochs: dict[int, list[int]] = {}

    def group(self, number: int) -> list[int]:
        begin, n = number * self.size, len(self.members)
        return [self.epoch(at // n)[at % n] for at in range(begin, begin + self.size)]

    def epoch(self, epoch: int) -> list[int]:
        """Return the order of an epoch.

        It depends on the epoch before, because the last samples of that epoch may be in the first step of this one.
        """
        if epoch not in self._epochs:
            last = max((known for known in self._epochs if known < epoch), default=-1)
            for number in range(last + 1, epoch + 1):
                self._epochs[number] = self._permuted(number)
                oldest = number - 2 - self.size // len(self.members)
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
        first = [sample for sample in order if sample not in taken][:head]
        chosen = set(first)
        return first + [sample for sample in order if sample not in chosen]


@lru_cache(maxsize=4)
def _order(buckets: tuple[str, ...], group: int, seed: int) -> Order:
    return Order(buckets, group, seed)


class Batches(Iterator[Batch]):
    """The micro-batches of one process, from step `first` to the last step, in their order.

    `settings.workers` threads read ahead; with 0, batches are read when they are needed. The batches and their order do
    not depend on this number. If a sample cannot be read, the error is raised in place of its batch. To end the
    threads, call `close` or use the object as a context manager.
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
        clips = [self._clip(step, lane, place, i) for place, i in enumerate(chosen)]
        return Batch(
            step,
            lane,
            torch.stack([clip.latents for clip in clips]),
            torch.stack([clip.context for clip in clips]),
            tuple(clip.caption for clip in clips),
            tuple(clip.origin for clip in clips),
        )

    def _clip(self, step: int, lane: int, place: int, index: int) -> Any:
        """Return a sample. Which of its captions it has depends on the seed, the lane, the step and its place."""
        if not isinstance(self.samples, SamplesWithVariants):
            return self.samples[index]
        rng = generator(self.settings.seed, lane, step, f"variant {place}")
        return self.samples.captioned(index, float(torch.rand((), generator=rng, dtype=torch.float64)))

    def close(self) -> None:
        """End the threads and discard the batches that were read ahead."""
        self._places = iter(())
        self._ahead.clear()
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
