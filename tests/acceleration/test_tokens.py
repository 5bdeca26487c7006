"""Which tokens are computed: those that attention looks at and that change, and none is forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pusa.acceleration.names import Shares
from pusa.acceleration.policy import Place, Tokens
from pusa.acceleration.tokens import LONGEST, TokenReuse, astraea
from pusa.errors import InputError
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load

COUNT = 10
TOKENS = Tokens(2, torch.arange(2).repeat_interleave(5))
PROMPT = "a red circle moves left on a black background"


def place(step: int, frames: tuple[int, ...] = (0, 1), branch: str = "cond") -> Place:
    return Place(0, branch, step, 8, frames, torch.zeros(len(frames), dtype=torch.bool))


def choose(policy: TokenReuse, where: Place, hidden: Tensor, attention: Tensor | None = None) -> list[int]:
    chosen = policy.choose(where, 0, hidden, TOKENS)
    assert chosen is not None
    assert policy.wants_attention(where, 0)
    policy.computed(where, 0, chosen, (torch.ones(COUNT) if attention is None else attention)[chosen])
    return chosen.tolist()


def noise(seed: int) -> Tensor:
    return torch.randn(1, COUNT, 4, generator=torch.Generator().manual_seed(seed))


def test_the_budget_of_each_step_is_kept() -> None:
    policy = TokenReuse((1.0, 0.5, 0.2, 0.0))
    assert [len(choose(policy, place(s), noise(s))) for s in range(4)] == [10, 5, 2, 0]


def test_the_budget_of_each_frame_is_kept() -> None:
    shares: Shares = (1.0, (0.2, 0.8, 0.0, 1.0), 0.5)
    policy = TokenReuse(shares)
    frames = (1, 3)  # frames are named by their place in the clip
    choose(policy, place(0, frames), noise(0))
    chosen = choose(policy, place(1, frames), noise(1))
    assert [len([t for t in chosen if t < 5]), len([t for t in chosen if t >= 5])] == [4, 5]
    assert len(choose(policy, place(2, frames), noise(2))) == 5


def test_tokens_that_change_and_that_attention_looks_at_come_first() -> None:
    policy = TokenReuse((0.3,))
    start = torch.ones(1, COUNT, 4)
    choose(policy, place(0), start, attention=torch.linspace(1, 2, COUNT))
    moved = start.clone()
    moved[:, [2, 4, 5, 6]] += 1.0
    assert choose(policy, place(1), moved) == [4, 5, 6]  # of four equal changes, those with the greater attention


def test_a_change_counts_from_the_last_time() -> None:
    policy = TokenReuse((0.1,))
    hidden = torch.ones(1, COUNT, 4)
    attention = torch.linspace(1, 2, COUNT)
    choose(policy, place(0), hidden, attention)
    for step in range(1, 4):
        hidden = hidden.clone()
        hidden[:, 8] += 0.1
        hidden[:, 9] += 0.3 if step == 1 else 0.0
        assert choose(policy, place(step), hidden, attention) == [9 if step == 1 else 8]


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
        seen |= set(choose(policy, place(step), hidden)) if step else set()
    assert seen == set(range(COUNT))


def test_one_selection_for_all_blocks_and_branches_of_a_step() -> None:
    policy = TokenReuse((0.3,))
    choose(policy, place(0), noise(0))
    first = choose(policy, place(1), noise(1))
    for where, index in ((place(1), 1), (place(1, branch="uncond"), 0), (place(1, branch="uncond"), 3)):
        again = policy.choose(where, index, noise(7), TOKENS)
        assert again is not None
        assert again.tolist() == first
        assert not policy.wants_attention(where, index)
    assert choose(policy, place(2), noise(2)) != first


def test_frames_that_stay_visible_are_remembered_and_new_ones_are_computed() -> None:
    policy = TokenReuse((0.5,))
    hidden = noise(0)
    choose(policy, place(0), hidden)
    moved = torch.cat([hidden[:, 5:], noise(1)[:, 5:]], 1)
    assert choose(policy, place(1, frames=(1, 2)), moved) == [5, 6, 7, 8, 9]
    moved[:, :3] += 1
    moved[:, 5:7] += 1
    assert choose(policy, place(2, frames=(1, 2)), moved) == [0, 1, 2, 5, 6]
    assert len(choose(policy, place(3, frames=(5, 6)), hidden)) == COUNT


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder, device="cpu")


@pytest.mark.filterwarnings("ignore:Some frames are given, and the model has no LoRA")
def test_a_frame_with_share_0_is_left_out(pipe: Pipeline) -> None:
    picture = Image(np.full((32, 32, 3), 90, np.uint8))
    text = "tokens,share=1/0:1:1:1:1/0:1:1:1:1/0:1:1:1:1"
    clip = pipe.generate(PROMPT, [picture], steps=4, guidance=2.0, frames=17, accelerate=text)
    assert clip.recipe["accelerate"] == text
    assert clip.recipe["acceleration"]["computed"] == pytest.approx((1 + 3 * 0.8) / 4)
    with pytest.raises(InputError, match="has 5 shares of tokens in step 2, and the clip has 3 latent frames"):
        pipe.generate(PROMPT, [picture], steps=4, frames=9, accelerate=text)


def test_a_branch_that_joins_later_is_computed_in_full(pipe: Pipeline) -> None:
    """Below an interval of noise levels there is one branch, and the other has kept nothing when it begins."""
    options = {"steps": 6, "guidance": 2.0, "seed": 1, "guidance_batch": "off", "guidance_interval": "0,0.7"}
    clip = pipe.generate(PROMPT, accelerate="tokens,share=1/0/0/0/0/0", **options)
    calls = 2 / clip.recipe["acceleration"]["computed"]  # the first call of each branch is computed, and no other
    assert calls == pytest.approx(round(calls), abs=0.01)
    assert 6 < calls < 12
