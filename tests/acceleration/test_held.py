"""Given frames are computed in every n-th step."""

from __future__ import annotations

import torch

from pusa.acceleration.held import Held
from pusa.acceleration.policy import Place, Together, Tokens
from pusa.acceleration.reuse import Uniform

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


def test_a_frame_that_another_policy_leaves_out_is_computed_in_the_next_step() -> None:
    """A step that is left out as a whole must not cost a given frame its turn."""
    held, uniform = Held(3), Uniform(2, torch.ones(9, 3, dtype=torch.bool), first=0)
    together = Together([uniform, held])
    computed_frames = []
    for step in range(7):
        place = Place(0, "cond", step, 9, (0, 1, 2), torch.tensor([True, False, False]))
        together.choose(place, 0, HIDDEN, TOKENS)
        chosen = together.choose(place, 1, HIDDEN, TOKENS)
        computed_frames.append([True] * 3 if chosen is None else chosen.tolist())
    # Uniform computes steps 1, 3 and 5. The given frame has its turn in step 0, which is left out, and gets it in 1.
    assert [row[1] for row in computed_frames] == [step % 2 == 1 for step in range(7)]
    assert [row[0] for row in computed_frames] == [False, True, False, False, False, True, False]
