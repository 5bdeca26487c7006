"""When steps and frames are left out, on hidden states whose change is known."""

from __future__ import annotations

import torch
from torch import Tensor

from pusa.acceleration.policy import Place, Tokens
from pusa.acceleration.reuse import Reuse, Uniform

FRAMES, EACH, WIDTH = 4, 3, 5
TOKENS = Tokens(FRAMES, torch.arange(FRAMES).repeat_interleave(EACH))
ZERO = torch.zeros(1, FRAMES * EACH, WIDTH)


def place(step: int, branch: str = "cond", held: tuple[int, ...] = (), network: int = 0) -> Place:
    mask = torch.zeros(FRAMES, dtype=torch.bool)
    mask[list(held)] = True
    return Place(network, branch, step, 10, tuple(range(FRAMES)), mask)


def residual(*levels: float) -> Tensor:
    """What the first block adds: one level for each frame."""
    return torch.tensor(levels).repeat_interleave(EACH)[None, :, None].expand(1, -1, WIDTH)


def decide(policy: Reuse, where: Place, *levels: float) -> list[bool]:
    """The frames that a call computes, whose first block adds these levels."""
    assert policy.choose(where, 0, ZERO, TOKENS) is None
    chosen = policy.choose(where, 1, ZERO + residual(*levels), TOKENS)
    assert chosen is None or torch.equal(policy.choose(where, 2, ZERO, TOKENS), chosen)
    return [True] * FRAMES if chosen is None else chosen.tolist()


def moves(*held: int) -> Tensor:
    table = torch.ones(10, FRAMES, dtype=torch.bool)
    table[:, list(held)] = False
    return table


ALL, NONE = [True] * FRAMES, [False] * FRAMES


def test_a_step_is_left_out_while_it_differs_little_from_the_last_computed_one() -> None:
    policy = Reuse(0.1, moves(), first=0)
    assert decide(policy, place(0), 1, 1, 1, 1) == ALL
    assert decide(policy, place(1), 1.05, 1.05, 1.05, 1.05) == NONE
    assert decide(policy, place(2), 1.09, 1.09, 1.09, 1.09) == NONE
    assert decide(policy, place(3), 1.12, 1.12, 1.12, 1.12) == ALL  # from 1, not from 1.09
    assert decide(policy, place(4), 1.15, 1.15, 1.15, 1.15) == NONE


def test_frames_that_are_held_do_not_count_in_a_step() -> None:
    policy = Reuse(0.1, moves(0, 1), first=0)
    decide(policy, place(0, held=(0, 1)), 9, 9, 1, 1)
    assert decide(policy, place(1, held=(0, 1)), 20, 20, 1.01, 1.01) == NONE
    assert decide(policy, place(2, held=(0, 1)), 9, 9, 1.5, 1.5) == ALL


def test_the_first_changes_of_each_frame_are_computed() -> None:
    late = moves()
    late[:5, 3] = False  # the last frame begins to move in step 5
    policy = Reuse(1.0, late, first=0.4, scope="frames")
    found = [decide(policy, place(s, held=(3,) if s < 5 else ()), 1, 1, 1, 1) for s in range(10)]
    assert found[:4] == [ALL, [True, True, True, False], [True, True, True, False], [True, True, True, False]]
    assert found[4] == NONE
    assert found[5:7] == [[False, False, False, True]] * 2  # two of its five changes
    assert found[7:] == [NONE] * 3


def test_frames_decide_for_themselves() -> None:
    policy = Reuse(0.1, moves(), first=0, scope="frames")
    decide(policy, place(0), 1, 1, 1, 1)
    assert decide(policy, place(1), 1.2, 1, 1, 1.05) == [True, False, False, False]
    # The first frame is compared with step 1, the last one still with step 0.
    assert decide(policy, place(2), 1.25, 1, 1, 1.11) == [False, False, False, True]


def test_the_branch_that_comes_first_decides_for_both() -> None:
    together, apart = Reuse(0.1, moves(), first=0), Reuse(0.1, moves(), first=0, together=False)
    for policy, answer in ((together, NONE), (apart, ALL)):
        for branch in ("cond", "uncond"):
            decide(policy, place(0, branch), 1, 1, 1, 1)
        assert decide(policy, place(1, "cond"), 1, 1, 1, 1) == NONE
        assert decide(policy, place(1, "uncond"), 2, 2, 2, 2) == answer


def test_another_expert_and_other_frames_begin_anew() -> None:
    policy = Reuse(0.5, moves(), first=0)
    decide(policy, place(0), 1, 1, 1, 1)
    assert decide(policy, place(1, network=1), 1, 1, 1, 1) == ALL
    shifted = Place(0, "cond", 2, 10, (0, 1, 2, 3)[1:] + (9,), torch.zeros(FRAMES, dtype=torch.bool))
    wide = Reuse(0.5, torch.ones(10, 10, dtype=torch.bool), first=0)
    decide(wide, place(0), 1, 1, 1, 1)
    assert decide(wide, shifted, 1, 1, 1, 1) == ALL


def test_uniform_computes_every_nth_step_after_the_first_ones() -> None:
    policy = Uniform(3, moves(), first=0.2)
    computed = [policy.choose(place(s), 1, ZERO, TOKENS) is None for s in range(10)]
    assert computed == [True, True, False, False, True, False, False, True, False, False]
