"""Given frames are computed in every n-th step."""

from __future__ import annotations

import torch

from pusa.acceleration.held import Held
from pusa.acceleration.policy import Place, Tokens

TOKENS = Tokens(3, torch.arange(3))
HIDDEN = torch.zeros(1, 3, 2)


def computed(policy: Held, step: int, held: list[bool], branch: str = "cond") -> list[bool]:
    place = Place(0, branch, step, 9, (0, 1, 2), torch.tensor(held))
    chosen = policy.choose(place, 0, HIDDEN, TOKENS)
    later = policy.choose(place, 1, HIDDEN, TOKENS)
    assert (chosen is None and later is None) or torch.equal(chosen, later)
    return [True] * 3 if chosen is None else chosen.tolist()


def test_every_third_step_beginning_with_the_first_that_holds_the_frame() -> None:
    policy = Held(3)
    rows = [computed(policy, s, [True, s >= 2, False]) for s in range(7)]
    assert [row[0] for row in rows] == [True, False, False, True, False, False, True]
    assert [row[1] for row in rows] == [True, True, True, False, False, True, False]
    assert all(row[2] for row in rows)


def test_branches_count_for_themselves() -> None:
    policy = Held(2)
    for step in range(4):
        for branch in ("cond", "uncond"):
            assert computed(policy, step, [True, False, False], branch)[0] == (step % 2 == 0)


def test_every_step() -> None:
    policy = Held(1)
    assert all(computed(policy, s, [True, False, False]) == [True] * 3 for s in range(3))
