"""Which tokens are computed: those that attention looks at and that change, and none is forgotten."""

from __future__ import annotations

import torch
from torch import Tensor

from pusa.acceleration.policy import Place, Tokens
from pusa.acceleration.tokens import LONGEST, TokenReuse, astraea

COUNT = 10
TOKENS = Tokens(2, torch.arange(2).repeat_interleave(5))


def place(step: int, frames: tuple[int, ...] = (0, 1)) -> Place:
    return Place(0, "cond", step, 8, frames, torch.zeros(2, dtype=torch.bool))


def choose(policy: TokenReuse, step: int, hidden: Tensor, attention: Tensor | None = None) -> list[int]:
    chosen = policy.choose(place(step), 0, hidden, TOKENS)
    assert chosen is not None
    policy.computed(place(step), 0, chosen, (torch.ones(COUNT) if attention is None else attention)[chosen])
    return chosen.tolist()


def test_the_budget_of_each_step_is_kept() -> None:
    policy = TokenReuse((1.0, 0.5, 0.2, 0.0))
    hidden = [torch.randn(1, COUNT, 4, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    assert [len(choose(policy, s, x)) for s, x in enumerate(hidden)] == [10, 5, 2, 0]


def test_tokens_that_change_and_that_attention_looks_at_come_first() -> None:
    policy = TokenReuse((0.3,))
    start = torch.ones(1, COUNT, 4)
    choose(policy, 0, start, attention=torch.linspace(1, 2, COUNT))
    moved = start.clone()
    moved[:, [2, 4, 5, 6]] += 1.0
    assert choose(policy, 1, moved) == [4, 5, 6]  # of four equal changes, those with the greater attention


def test_a_change_counts_from_the_last_time() -> None:
    policy = TokenReuse((0.1,))
    hidden = torch.ones(1, COUNT, 4)
    attention = torch.linspace(1, 2, COUNT)
    choose(policy, 0, hidden, attention)
    for step in range(1, 4):
        hidden = hidden.clone()
        hidden[:, 8] += 0.1
        hidden[:, 9] += 0.3 if step == 1 else 0.0
        assert choose(policy, step, hidden, attention) == [9 if step == 1 else 8]


def test_a_token_that_waits_is_computed_at_last() -> None:
    waited = torch.tensor([0.0, 5.0, LONGEST, LONGEST + 5])
    scores = astraea(torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 2.0]), waited)
    assert scores[1] > scores[0]
    assert torch.equal(astraea(torch.zeros(4), torch.ones(4), waited)[2:].diff(), torch.zeros(1))
    policy = TokenReuse((0.2,))
    seen: set[int] = set()
    for step in range(8):
        hidden = torch.ones(1, COUNT, 4)
        hidden[:, 0] += step  # one token alone changes
        seen |= set(choose(policy, step, hidden)) if step else set()
    assert seen == set(range(COUNT))


def test_other_frames_begin_anew() -> None:
    policy = TokenReuse((0.2,))
    hidden = torch.randn(1, COUNT, 4)
    choose(policy, 0, hidden)
    chosen = policy.choose(place(1, frames=(0, 5)), 0, hidden, TOKENS)
    assert chosen is not None
    assert len(chosen) == COUNT
