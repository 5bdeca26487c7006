"""Some frames of a clip: each keeps its own position in the rotary embedding (arXiv 2104.09864)."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pusa.core import TimestepMatrix, schedules, sigmas
from pusa.errors import InputError
from pusa.generation.pipeline import Pipeline
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.wan_small import FRAMES, ROWS, TOKENS_PER_FRAME, agree, build, inputs, per_token, run

SUBSETS = [[0, 3, 4, 9, 20], [5, 6, 7, 8, 9], [2, 4, 8, 16, 31]]
PROMPT = "a red circle moves left on a black background"


def upgraded() -> VectorWanTransformer3DModel:
    return VectorWanTransformer3DModel.upgrade(build())


def defined_rotary(model: WanTransformer3DModel, positions: list[int]) -> tuple[Tensor, Tensor]:
    """cos and sin from the definition: angle = position * 10000 ** (-2 i / d), for frame, row and column."""
    head = model.config.attention_head_dim
    side = 2 * (head // 6)
    grid = torch.cartesian_prod(torch.tensor(positions), torch.arange(4), torch.arange(4)).double()
    angles = [
        grid[:, axis, None] * 10000.0 ** (-torch.arange(0, d, 2).double() / d)
        for axis, d in enumerate((head - 2 * side, side, side))
    ]
    angle = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)[None, :, None]
    return angle.cos().float(), angle.sin().float()


@pytest.mark.parametrize("positions", SUBSETS)
def test_rotary_rows_of_visible_frames(positions: list[int]) -> None:
    rope = upgraded().rope
    whole = rope(torch.empty(1, 4, 32, 8, 8))
    some = rope(torch.empty(1, 4, len(positions), 8, 8), torch.tensor(positions))
    for rows, row in zip(whole, some, strict=True):
        assert torch.equal(row, rows.unflatten(1, (32, TOKENS_PER_FRAME))[:, positions].flatten(1, 2))
    for stock, row in zip(
        rope(torch.empty(1, 4, 5, 8, 8)), rope(torch.empty(1, 4, 5, 8, 8), torch.arange(5)), strict=True
    ):
        assert torch.equal(stock, row)


@pytest.mark.parametrize("positions", SUBSETS)
def test_the_model_computes_with_the_positions_of_its_frames(positions: list[int]) -> None:
    """The reference is the stock model, a timestep per token, with rotary tables made from their definition."""
    stock = build()
    tables = defined_rotary(stock, positions)
    stock.rope.forward = lambda hidden_states: tables
    at = torch.tensor(positions)
    agree(run(upgraded(), ROWS, frame_positions=at), run(stock, per_token(ROWS)))
    agree(run(upgraded(), ROWS[:, 0], frame_positions=at), run(stock, ROWS[:, 0]))
    agree(run(upgraded(), ROWS[:, :1].expand(-1, FRAMES), frame_positions=at), run(stock, ROWS[:, 0]))
    difference = (run(upgraded(), ROWS, frame_positions=at) - run(upgraded(), ROWS)).abs().max()
    shifted = positions == list(range(positions[0], positions[0] + FRAMES))
    assert difference < 2e-6 if shifted else difference > 1e-3, "only distances between frames matter"


@pytest.mark.parametrize("timestep", [ROWS, ROWS[:, 0], per_token(ROWS)], ids=["frame", "clip", "token"])
def test_the_beginning_of_a_clip_is_the_stock_path_bit_for_bit(timestep: Tensor) -> None:
    model = upgraded()
    assert torch.equal(run(model, timestep, frame_positions=torch.arange(FRAMES)), run(model, timestep))
    scalar = run(model, ROWS[:, 0], frame_positions=torch.arange(FRAMES))
    assert torch.equal(scalar, run(build(), ROWS[:, 0]))


def test_positions_that_the_model_does_not_have() -> None:
    latents, text = inputs(1)
    far = torch.tensor([0, 1, 2, 3, 32])
    with pytest.raises(InputError, match="Latent frame 32 is outside the model's positions, 0 to 31"):
        upgraded()(latents, ROWS[:1], text, frame_positions=far)
    with pytest.raises(InputError, match="per token"):
        upgraded()(latents, per_token(ROWS[:1]), text, frame_positions=torch.tensor([0, 1, 2, 3, 5]))


def test_a_window_of_a_clip_is_computed_where_it_stands(tiny_pipe: Pipeline) -> None:
    """A matrix that shows frames 0, 3 and 4: the pipeline gives the transformer these positions."""
    visible = torch.tensor([[True, False, False, True, True], [True] * 5])
    grid = sigmas.grid(2)
    column = grid[:, None].expand(-1, 5).clone()
    column[1, 1:3] = column[0, 1:3]
    matrix = TimestepMatrix.from_sigma(column, visible=visible)
    seen: list[Tensor | None] = []
    hook = tiny_pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("frame_positions")), with_kwargs=True
    )
    try:
        tiny_pipe.generate(PROMPT, matrix=matrix, guidance=1.0)
        tiny_pipe.generate(PROMPT, matrix=schedules.chunked(sigmas.grid(1), 5, 2, 0), guidance=1.0)
    finally:
        hook.remove()
    positions = [None if at is None else at.tolist() for at in seen]
    assert positions == [[0, 3, 4], None, None, [2, 3], [4]]
