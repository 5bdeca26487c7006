"""Which clips at which step: epochs, buckets, lanes, and readers that change nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pusa.errors import InputError
from pusa.processes import ProcessGroup
from pusa.training.config.sections import TrainSettings
from pusa.training.data.batches import Batches, Order, indices


@dataclass(frozen=True)
class Sample:
    latents: Tensor
    context: Tensor
    caption: str
    origin: str


class Stand:
    """Samples whose latents say which they are; later ones are read faster, so that order must be kept on purpose."""

    def __init__(self, buckets: list[str], bad: int | None = None) -> None:
        self.buckets, self.bad = buckets, bad
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> Sample:
        self.threads.add(threading.current_thread().name)
        if index == self.bad:
            raise InputError(f"clip {index} is damaged")
        time.sleep(0.0005 * (len(self) - index) / len(self))
        frames = 1 + len(self.buckets[index])
        return Sample(
            torch.full((2, frames, 1, 1), float(index)), torch.full((3, 2), float(index)), f"c{index}", f"{index}"
        )


def names(counts: list[int]) -> list[str]:
    """Buckets of the given sizes, their samples interleaved."""
    left = {"ab"[: 1 + i % 2] * (1 + i): count for i, count in enumerate(counts)}
    row = []
    while any(left.values()):
        for name in left:
            if left[name]:
                row.append(name)
                left[name] -= 1
    return row


sizes = st.lists(st.integers(1, 23), min_size=1, max_size=4)


@given(counts=sizes, batch=st.integers(1, 4), lanes=st.integers(1, 4), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_every_clip_comes_once_per_epoch_in_full_batches_of_one_bucket(
    counts: list[int], batch: int, lanes: int, seed: int
) -> None:
    buckets, group = names(counts), batch * lanes
    steps = 6 * sum(counts) // group + 1
    rows: dict[str, list[int]] = {}
    for step in range(steps):
        each = [indices(step, lane, lanes, batch, buckets, seed) for lane in range(lanes)]
        assert [len(chosen) for chosen in each] == [batch] * lanes
        together = [sample for chosen in each for sample in chosen]
        (bucket,) = {buckets[sample] for sample in together}
        rows.setdefault(bucket, []).extend(together)
        if buckets.count(bucket) >= group:
            assert len(set(together)) == group, "two lanes have the same clip"
        else:
            often = Counter(together).values()
            assert max(often) - min(often) <= 2
    for bucket, row in rows.items():
        members = {sample for sample, name in enumerate(buckets) if name == bucket}
        for begin in range(0, len(row) - len(members) + 1, len(members)):
            assert set(row[begin : begin + len(members)]) == members


@given(counts=sizes, group=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_buckets_take_turns_by_their_size(counts: list[int], group: int, seed: int) -> None:
    buckets = names(counts)
    order = Order(buckets, group, seed)
    clips = 5 * len(buckets)
    got = Counter(buckets[sample] for step in range(clips // group) for sample in order.group(step))
    for bucket, count in Counter(buckets).items():
        assert abs(got[bucket] - 5 * count) < len(counts) * group + len(buckets)


@given(counts=sizes, group=st.integers(1, 9), seed=st.integers(0, 99), steps=st.lists(st.integers(0, 300), max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_order_is_a_pure_function_of_seed_and_step(
    counts: list[int], group: int, seed: int, steps: list[int]
) -> None:
    buckets = names(counts)
    order = Order(buckets, group, seed)
    for step in steps:
        assert order.group(step) == Order(buckets, group, seed).group(step)


def test_epochs_and_seeds_differ() -> None:
    buckets = ["a"] * 40
    epochs = [
        [sample for step in range(10 * e, 10 * e + 10) for sample in Order(buckets, 4, 0).group(step)] for e in (0, 1)
    ]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(40))
    assert Order(buckets, 4, 0).group(0) != Order(buckets, 4, 1).group(0)
    firsts = Counter(Order(buckets, 4, seed).group(0)[0] for seed in range(400))
    assert len(firsts) > 35, "any clip may be the first"


def tell(batches: Batches) -> list[tuple[int, int, tuple[str, ...], list[float]]]:
    return [(each.step, each.lane, each.origins, each.latents[:, 0, 0, 0, 0].tolist()) for each in batches]


@given(
    counts=sizes,
    batch=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    first=st.integers(0, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_readers_and_resuming_change_nothing(
    counts: list[int], batch: int, accumulate: int, first: int, seed: int
) -> None:
    stand = Stand(names(counts))
    plain = TrainSettings(steps=12, batch=batch, accumulate=accumulate, seed=seed, workers=0)
    whole = tell(Batches(stand, plain))
    assert len(whole) == 12 * accumulate
    for workers in (0, 1, 4):
        chosen = plain.model_copy(update={"workers": workers})
        assert tell(Batches(stand, chosen, first=first)) == whole[first * accumulate :]


def test_two_processes_see_what_one_with_two_passes_sees() -> None:
    stand = Stand(names([13, 6]))
    alone = tell(Batches(stand, TrainSettings(steps=9, batch=2, accumulate=2, workers=2)))
    halves = [tell(Batches(stand, TrainSettings(steps=9, batch=2), group=ProcessGroup(rank, 2))) for rank in (0, 1)]
    assert alone == [batch for pair in zip(*halves, strict=True) for batch in pair]


def test_a_batch_has_what_the_model_needs_and_threads_do_the_reading() -> None:
    stand = Stand(["a"] * 6)
    with Batches(stand, TrainSettings(steps=4, batch=3, workers=2)) as batches:
        batch = next(batches)
    assert batch.latents.shape == (3, 2, 2, 1, 1)
    assert batch.context.shape == (3, 3, 2)
    assert batch.captions == tuple(f"c{key}" for key in batch.origins)
    assert all(name.startswith("batches") for name in stand.threads)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_clip_that_cannot_be_read_is_an_error_at_its_step(workers: int) -> None:
    settings_ = TrainSettings(steps=8, batch=1, workers=workers)
    order = [indices(step, 0, 1, 1, ["a"] * 8, 0)[0] for step in range(8)]
    with Batches(Stand(["a"] * 8, bad=order[5]), settings_) as batches:
        assert len(list(islice(batches, 5))) == 5
        with pytest.raises(InputError, match="damaged"):
            next(batches)


def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    batches = Batches(Stand(["a"] * 6), TrainSettings(steps=100, workers=3))
    next(batches)
    readers = set(threading.enumerate()) - before
    assert readers
    batches.close()
    for reader in readers:
        reader.join(timeout=3000)
    assert not any(reader.is_alive() for reader in readers)
    assert list(batches) == []


def test_no_clips_is_an_error() -> None:
    with pytest.raises(InputError, match="no sample"):
        Order([], 1, 0)


class StandWithVariants(Stand):
    """Sample i has i + 1 captions."""

    def captioned(self, index: int, draw: float) -> Sample:
        assert 0 <= draw < 1
        return replace(self[index], caption=f"c{index} v{int(draw * (index + 1))}")


@pytest.mark.parametrize(("seed", "workers"), [(0, 0), (1, 3)])
def test_the_caption_of_a_sample_is_drawn_by_seed_lane_and_step(seed: int, workers: int) -> None:
    settings_of = TrainSettings(steps=60, batch=4, seed=seed, workers=workers)
    with Batches(StandWithVariants(["a"] * 4), settings_of) as batches:
        drawn = [batch.captions for batch in batches]
    plain = [batch.captions for batch in Batches(Stand(["a"] * 4), settings_of)]
    assert [tuple(caption.split()[0] for caption in captions) for captions in drawn] == plain
    counts = Counter(caption for captions in drawn for caption in captions)
    assert {caption.split()[0] for caption in counts} == {"c0", "c1", "c2", "c3"}
    assert all(4 <= counts[f"c3 v{variant}"] <= 27 for variant in range(4)), "each of four is drawn about 15 times"
    resumed = Batches(StandWithVariants(["a"] * 4), settings_of, first=30)
    assert [batch.captions for batch in resumed] == drawn[30:]
