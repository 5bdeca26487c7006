"""A block that computes some tokens gives what the whole block gives for them, whatever the timesteps and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pusa.models.wan.partial_blocks import BlockCall, blocks_run_by
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.wan_small import FRAMES, ROWS, TOKENS_PER_FRAME, agree, build, per_token, run

TOKENS = torch.tensor([0, 3, 17, 40, 41, 79])


def compared(model: VectorWanTransformer3DModel, timestep: Tensor, **kwargs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(some tokens of the whole output, the output of some tokens) for each block of a call."""
    pairs = []

    def both(block: BlockCall) -> Tensor:
        whole = block.whole()
        pairs.append((whole[:, TOKENS], block.some(TOKENS)))
        return whole

    with blocks_run_by(model, both):
        run(model, timestep, **kwargs)
    return pairs


@pytest.mark.parametrize("kind", ["scalar", "frame", "token", "positions"])
def test_some_tokens_are_those_of_the_whole_block(vector: VectorWanTransformer3DModel, kind: str) -> None:
    timestep = {"scalar": ROWS[:, 2], "token": per_token(ROWS)}.get(kind, ROWS)
    options = {"frame_positions": torch.tensor([0, 3, 4, 9, 20])} if kind == "positions" else {}
    pairs = compared(vector, timestep, **options)
    assert len(pairs) == len(vector.blocks)
    for whole, some in pairs:
        agree(some, whole)


def test_fused_projections() -> None:
    model = VectorWanTransformer3DModel.upgrade(build())
    model.fuse_qkv_projections()
    for whole, some in compared(model, ROWS):
        agree(some, whole)


def test_a_lora_counts(vector: VectorWanTransformer3DModel) -> None:
    from peft import LoraConfig

    plain = compared(vector, ROWS)[0][1]
    vector.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    pairs = compared(vector, ROWS)
    for whole, some in pairs:
        agree(some, whole)
    assert not torch.allclose(plain, pairs[0][1], atol=1e-3)


def test_the_mass_of_attention_is_the_log_sum_of_the_exponentiated_logits(vector: VectorWanTransformer3DModel) -> None:
    """Queries and keys are caught where attention gets them, and the logits are computed in full."""
    from pusa.models.wan import partial_blocks

    found: list[Tensor] = []
    expected: list[Tensor] = []
    attention = partial_blocks._attention_with_mass

    def watched(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[3] ** 0.5
        expected.append(logits.logsumexp(3).mean((0, 1)))
        return attention(q, k, v)

    def both(block: BlockCall) -> Tensor:
        some, mass = block.some_with_attention(TOKENS)
        agree(some, block.some(TOKENS))
        found.append(mass)
        return block.whole()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_blocks, "_attention_with_mass", watched)
        with blocks_run_by(vector, both):
            run(vector, ROWS)
    assert len(found) == len(vector.blocks)
    for mass, reference in zip(found, expected, strict=True):
        agree(mass, reference)


def test_a_compiled_block_is_not_compiled_again(vector: VectorWanTransformer3DModel) -> None:
    expected = [some for _, some in compared(vector, ROWS)]
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    torch.compiler.reset()
    vector.compile_repeated_blocks(backend=backend)
    run(vector, ROWS)
    graphs = len(compiled)
    pairs = compared(vector, ROWS)
    assert len(compiled) == graphs > 0
    for (whole, some), uncompiled in zip(pairs, expected, strict=True):
        agree(some, whole)
        agree(some, uncompiled)
    torch.compiler.reset()


def test_outside_the_context_the_blocks_run_by_themselves(vector: VectorWanTransformer3DModel) -> None:
    before = run(vector, ROWS)

    def fails(block: BlockCall) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), blocks_run_by(vector, fails):
        run(vector, ROWS)
    assert torch.equal(run(vector, ROWS), before)


def test_what_runs_the_blocks_sees_their_order_and_all_tokens(vector: VectorWanTransformer3DModel) -> None:
    seen = []

    def watch(block: BlockCall) -> Tensor:
        seen.append((block.index, block.count, block.hidden.shape[1]))
        return block.whole()

    with blocks_run_by(vector, watch):
        out = run(vector, ROWS)
    count = len(vector.blocks)
    assert seen == [(index, count, FRAMES * TOKENS_PER_FRAME) for index in range(count)]
    assert torch.equal(out, run(vector, ROWS))
