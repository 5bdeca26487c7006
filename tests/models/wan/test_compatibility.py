"""The per-frame Wan transformer under what diffusers and peft do to a model, each time beside the stock one."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import (
    FirstBlockCacheConfig,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_layer_skip,
)
from peft import LoraConfig
from torch import Tensor

from pusa.errors import InputError
from pusa.models.wan.transformer import VectorWanTransformer3DModel, VectorWanTransformerBlock
from tests.models.wan_small import (
    DIM,
    FRAMES,
    HEIGHT,
    ROWS,
    TOKENS_PER_FRAME,
    WIDTH,
    agree,
    inputs,
    per_token,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "net.2"])


# Under what diffusers and peft do to a model


def test_adapters_before_and_after_the_upgrade(stock: WanTransformer3DModel) -> None:
    plain = run(stock, per_token(ROWS))
    torch.manual_seed(3)
    stock.add_adapter(LORA, "style")
    stock.add_adapter(LORA, "other")
    late = VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock))
    early = VectorWanTransformer3DModel.from_config(stock.config)
    early.add_adapter(LORA, "style")
    early.add_adapter(LORA, "other")
    early.load_state_dict(stock.state_dict())

    expected = []
    for strengths in ([1.0, 0.0], [0.5, 1.4]):
        stock.set_adapters(["style", "other"], strengths)
        expected.append(run(stock, per_token(ROWS)))
        for vector in (early, late):
            vector.set_adapters(["style", "other"], strengths)
            agree(run(vector.eval(), ROWS), expected[-1])
    assert min((expected[0] - plain).abs().max(), (expected[1] - expected[0]).abs().max()) > 1e-2

    half = run(stock, per_token(ROWS), attention_kwargs={"scale": 0.5})
    assert (half - expected[1]).abs().max() > 1e-2
    for vector in (early, late):
        agree(run(vector, ROWS, attention_kwargs={"scale": 0.5}), half)
        assert torch.equal(
            run(vector, ROWS[:, 0], attention_kwargs={"scale": 0.5}),
            run(stock, ROWS[:, 0], attention_kwargs={"scale": 0.5}),
        )
        agree(run(vector, ROWS), expected[1])
        vector.fuse_lora()
        agree(run(vector, ROWS), expected[1], 1e-5)
        vector.unfuse_lora()
        vector.disable_adapters()
        agree(run(vector, ROWS), plain, 1e-5)


def test_compile_repeated_blocks(stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel) -> None:
    vector.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    assert all(block._compiled_call_impl is not None for block in vector.blocks)
    agree(run(vector, ROWS), run(stock, per_token(ROWS)))
    torch._dynamo.reset()


def test_the_whole_model_compiles_to_one_graph(
    stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel
) -> None:
    whole = torch.compile(vector, fullgraph=True, backend="eager")
    latents, text = inputs()
    with torch.no_grad():
        agree(whole(latents, ROWS, text).sample, run(stock, per_token(ROWS)))
    torch._dynamo.reset()


CACHES: dict[str, Callable[[], Any]] = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.5),
    "magnitude": lambda: MagCacheConfig(
        threshold=0.5, max_skip_steps=2, retention_ratio=0.2, num_inference_steps=6, mag_ratios=[1.0] * 6
    ),
    "taylor": lambda: TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"^blocks\.\d+\.attn[12]$"],  # the default pattern matches nothing in a Wan
    ),
    # The timestep range is read from a scalar that whoever runs the loop has to keep: one master timestep a step.
    "pyramid": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
}


def sampled_with_cache(
    model: WanTransformer3DModel, config: Any, expand: Callable[[Tensor], Tensor]
) -> tuple[Any, Any]:
    """The outputs of six slowly changing steps, and how often self-attention was computed."""
    calls: list[int] = []
    for block in model.blocks:
        block.attn1.to_q.register_forward_hook(lambda *_: calls.append(1))
    model.enable_cache(config)
    latents, text = inputs()
    outputs = []
    with torch.no_grad():
        for step in range(6):
            rows = ROWS * (1 - 0.01 * step)
            sigma = rows.max().item() / 1000
            with model.cache_context("cond", step_index=step, num_inference_steps=6, sigma=sigma):
                outputs.append(model(latents * (1 - 0.01 * step), expand(rows), text).sample)
    return torch.stack(outputs), len(calls)


@pytest.mark.parametrize("name", CACHES)
def test_caches_skip_as_often_as_in_the_stock_model(
    stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel, name: str
) -> None:
    expected, stock_calls = sampled_with_cache(stock, CACHES[name](), per_token)
    outputs, calls = sampled_with_cache(vector, CACHES[name](), lambda rows: rows)
    assert calls == stock_calls
    assert calls < 6 * 3
    agree(outputs, expected, 5e-6)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_group_offload(stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel, level: str) -> None:
    vector.enable_group_offload(
        torch.device("cpu"),
        torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level[0] == "b" else None,
    )
    agree(run(vector, ROWS), run(stock, per_token(ROWS)))
    assert torch.equal(run(vector, ROWS[:, 0]), run(stock, ROWS[:, 0]))


def test_layerwise_casting(stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel) -> None:
    for model in (stock, vector):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert vector.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    latents, text = inputs()
    with torch.no_grad():
        agree(vector(latents, ROWS, text).sample, stock(latents, per_token(ROWS), text).sample)


def test_upgrade_after_layerwise_casting(stock: WanTransformer3DModel) -> None:
    stock.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    latents, text = inputs()
    with torch.no_grad():
        expected = stock(latents, per_token(ROWS), text).sample
        agree(VectorWanTransformer3DModel.upgrade(stock)(latents, ROWS, text).sample, expected)


def test_fused_projections(stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel) -> None:
    vector.fuse_qkv_projections()
    assert vector.blocks[0].attn1.fused_projections
    agree(run(vector, ROWS), run(stock, per_token(ROWS)))


def test_skipping_blocks(stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel) -> None:
    for model in (stock, vector):
        apply_layer_skip(model, LayerSkipConfig(indices=[1], skip_attention=True, skip_ff=True))
    agree(run(vector, ROWS), run(stock, per_token(ROWS)))


def test_skipping_attention_alone_is_an_error_as_in_the_stock_model(vector: VectorWanTransformer3DModel) -> None:
    with pytest.raises(ValueError, match=r"Processor.*not registered"):
        apply_layer_skip(vector, LayerSkipConfig(indices=[1], skip_attention=True, skip_ff=False))


def test_tensor_parallelism_is_refused_in_words(vector: VectorWanTransformer3DModel) -> None:
    from diffusers import TensorParallelConfig

    with pytest.raises(ValueError, match="_tp_plan"):
        vector.enable_parallelism(config=TensorParallelConfig(tp_degree=2))


# Context parallelism


def test_gathered_rows_equal_broadcast_rows_and_tokens_are_refused(vector: VectorWanTransformer3DModel) -> None:
    """The form that a split sequence takes, on the whole sequence in one process."""
    expected, scalar = run(vector, ROWS), run(vector, ROWS[:, 0])
    vector._parallel_config = SimpleNamespace(context_parallel_config=object())
    seen: list[Tensor] = []
    vector.frame_index.register_forward_hook(lambda _m, _args, out: seen.append(out))
    assert torch.equal(run(vector, ROWS), expected)
    assert seen[0].tolist() == [[f for f in range(FRAMES) for _ in range(TOKENS_PER_FRAME)]]
    assert torch.equal(run(vector, ROWS[:, 0]), scalar)
    with pytest.raises(InputError, match=r"per token.*context parallelism.*shape \(2, 5\)"):
        run(vector, per_token(ROWS))


def test_block_modulates_a_shard_that_cuts_a_frame(vector: VectorWanTransformer3DModel) -> None:
    block = vector.blocks[0]
    assert type(block) is VectorWanTransformerBlock
    generator = torch.Generator().manual_seed(4)
    tokens, text = torch.randn(2, 40, DIM, generator=generator), torch.randn(2, 7, DIM, generator=generator)
    rows = torch.randn(2, FRAMES, 6, DIM, generator=generator)
    frame_ids = torch.arange(FRAMES).repeat_interleave(TOKENS_PER_FRAME)[None, 40:]  # the second half of 80 tokens
    rotary = tuple(part[:, :40] for part in vector.rope(torch.zeros(1, 4, FRAMES, HEIGHT, WIDTH)))
    with torch.no_grad():
        cut = block(tokens, text, rows, rotary, frame_ids)
        agree(cut, block(tokens, text, rows[:, frame_ids[0]], rotary))


@pytest.mark.slow
def test_two_processes_share_the_tokens_of_a_clip(wan_folder: Path, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("context_parallel_worker.py")
    command = [sys.executable, str(worker)]
    processes = [subprocess.Popen([*command, str(rank), str(wan_folder), str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=3000) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tokens"] == FRAMES * TOKENS_PER_FRAME // 2
    assert result["split"] < 2e-6
    assert result["scalar"] < 2e-6
    assert result["positions"] < 2e-6 < 1e-3 < result["moved"]
    assert result["fsdp"] < 2e-6
    assert result["fsdp_class"] == ["FSDPVectorWanTransformer3DModel", "WanTransformer3DModel"]
    assert max(result["grads"].values()) < 1e-6 < result["grad_scale"]
    assert "context parallelism" in result["refusal"]
