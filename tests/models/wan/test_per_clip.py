"""What a walk keeps, against the stock forward: the same velocity, with the work on the text done once."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from peft import LoraConfig
from torch import Tensor

from pusa.models.backbone import Text
from pusa.models.wan import per_clip
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.wan_small import DIM, FRAMES, ROWS, agree, build, inputs

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMA = ROWS[:1] / 1000
ONE_LEVEL = torch.full((1, FRAMES), 0.7)
TOKENS = 24
Network = VectorWanTransformer3DModel


def text_of(words: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> Text:
    """A text of `words` tokens and zeros up to `TOKENS`."""
    tokens = torch.randn(1, TOKENS, 16, generator=torch.Generator().manual_seed(seed))
    tokens[:, words:] = 0
    return Text(tokens.to(dtype))


@torch.no_grad()
def velocity(network: Network, text: Text, sigma: Tensor = SIGMA, frames: Tensor | None = None) -> Tensor:
    return WanBackbone.velocity(network, inputs(1)[0], sigma, text, frames=frames)


@contextmanager
def counted(network: Network) -> Iterator[list[int]]:
    """Counts how often the keys of each block's text are computed."""
    calls = [0] * len(network.blocks)

    def hook(block: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            calls[block] += 1

        return count

    handles = [block.attn2.norm_k.register_forward_hook(hook(i)) for i, block in enumerate(network.blocks)]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("sigma", [SIGMA, ONE_LEVEL], ids=["per-frame", "one-level"])
@pytest.mark.parametrize("words", [0, 1, 9, 23, 24])
def test_a_walk_computes_each_text_once_and_gives_the_stock_velocity(
    vector: Network, sigma: Tensor, words: int
) -> None:
    texts = text_of(words), text_of(5, seed=4)
    expected = [velocity(vector, text, sigma) for text in texts]
    with counted(vector) as calls, per_clip.walk(vector):
        for _ in range(3):
            for text, result in zip(texts, expected, strict=True):
                agree(velocity(vector, text, sigma), result)
    assert calls == [2, 2, 2]
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)


def test_nothing_is_kept_outside_a_walk(vector: Network) -> None:
    text = text_of(9)
    before = velocity(vector, text)

    def interrupted() -> None:
        with per_clip.walk(vector):
            velocity(vector, text)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with counted(vector) as calls:
        for _ in range(2):
            assert torch.equal(velocity(vector, text), before)
    assert calls == [2, 2, 2]
    assert vector.text_memory is None
    assert vector.rope.kept is None


def test_an_error_inside_a_call_leaves_the_next_call_right(vector: Network) -> None:
    text = text_of(9)
    expected = velocity(vector, text)

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    with per_clip.walk(vector):
        handle = vector.blocks[1].ffn.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            velocity(vector, text_of(7, seed=8))
        handle.remove()
        with torch.no_grad():  # a call of the network itself is a stock call
            assert torch.equal(vector(inputs(1)[0], 1000 * SIGMA, text.tokens).sample, expected)
        agree(velocity(vector, text), expected)


def test_a_text_is_recognised_by_its_tensor_and_not_by_its_memory(vector: Network) -> None:
    with per_clip.walk(vector):
        for seed in range(2 * per_clip.MOST_TEXTS):
            result = velocity(vector, text_of(9, seed))
            gc.collect()
            agree(result, expected_of(vector, text_of(9, seed)))


@torch.no_grad()
def expected_of(vector: Network, text: Text) -> Tensor:
    return vector(inputs(1)[0], 1000 * SIGMA, text.tokens).sample


def test_the_oldest_text_is_dropped(vector: Network) -> None:
    texts = [text_of(9, seed) for seed in range(per_clip.MOST_TEXTS + 1)]
    with counted(vector) as calls, per_clip.walk(vector):
        for text in [*texts, texts[-1], texts[0]]:
            velocity(vector, text)
    assert calls[0] == len(texts) + 1


def test_an_inner_walk_keeps_its_own(vector: Network) -> None:
    text = text_of(9)
    with counted(vector) as calls, per_clip.walk(vector):
        velocity(vector, text)
        with per_clip.walk(vector):
            velocity(vector, text)
        velocity(vector, text)
    assert calls == [2, 2, 2]


def test_with_gradients_nothing_is_kept(vector: Network) -> None:
    latents, text = inputs(1)[0], text_of(9)
    with counted(vector) as calls, per_clip.walk(vector):
        for _ in range(2):
            WanBackbone.velocity(vector, latents, SIGMA, text).square().mean().backward()
    assert calls == [2, 2, 2]
    assert vector.blocks[0].attn2.to_k.weight.grad is not None


def test_bfloat16_repeats_the_row_of_the_zeros(wan_folder: object) -> None:
    # A bias of log 15 in bfloat16 would change the weight of the zeros.
    vector = Network.from_pretrained(wan_folder, torch_dtype=torch.bfloat16)
    text = text_of(9, dtype=torch.bfloat16)
    expected = velocity(vector, text)
    with per_clip.walk(vector):
        for _ in range(2):
            torch.testing.assert_close(velocity(vector, text), expected, rtol=0, atol=4e-3)
        assert all(kept.rows is not None for kept in vector.text_memory._texts[0].blocks)


def test_tokens_in_another_type_than_the_network_are_kept(vector: Network) -> None:
    text = Text(text_of(9).tokens.double())
    expected = velocity(vector, text)
    with counted(vector) as calls, per_clip.walk(vector):
        agree(velocity(vector, text), expected)
        velocity(vector, text)
    assert calls == [1, 1, 1]


def test_a_batch_has_the_zeros_of_its_longest_text(vector: Network) -> None:
    latents, sigma = inputs(2)[0], ROWS / 1000
    text = Text(torch.cat([text_of(3).tokens, text_of(12, seed=4).tokens]))
    with torch.no_grad():
        expected = WanBackbone.velocity(vector, latents, sigma, text)
        with per_clip.walk(vector):
            agree(WanBackbone.velocity(vector, latents, sigma, text), expected)


def test_windows_get_their_own_positions(vector: Network) -> None:
    windows = [torch.tensor(frames) for frames in ([0, 1, 2, 3, 4], [0, 2, 3, 4, 5], [0, 5, 6, 7, 9])]
    text = text_of(9)
    expected = [velocity(vector, text, frames=window) for window in windows]
    with per_clip.walk(vector):
        for _ in range(2):
            for window, result in zip(windows, expected, strict=True):
                agree(velocity(vector, text, frames=window), result)
                agree(velocity(vector, text, frames=window), result)


# Under what diffusers and peft do to a model


def offloaded(network: Network) -> None:
    network.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="block_level",
                                 num_blocks_per_group=1)  # fmt: skip


def by_layers(network: Network) -> None:
    network.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


def casted(network: Network) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def adapted(network: Network) -> None:
    torch.manual_seed(5)
    network.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))


def compiled(network: Network) -> None:
    network.compile_repeated_blocks(backend="aot_eager", fullgraph=True)


def fused(network: Network) -> None:
    network.fuse_qkv_projections()


def cached(network: Network) -> None:
    network.enable_cache(FirstBlockCacheConfig(threshold=1e-9))


@pytest.mark.parametrize("changed", [offloaded, by_layers, casted, adapted, compiled, fused, cached])
def test_walks_of_changed_models(vector: Network, changed: Callable[[Network], None]) -> None:
    changed(vector)
    latents = inputs(1)[0]
    texts = {"cond": text_of(9), "uncond": text_of(0)}

    def run(step: int, branch: str) -> Tensor:
        sigma = SIGMA * (1 - 0.1 * step)
        with torch.no_grad():
            return WanBackbone.velocity(vector, latents * (1 - 0.1 * step), sigma, texts[branch], branch=branch)

    expected = [run(step, branch) for step in range(3) for branch in texts]
    with counted(vector) as calls, per_clip.walk(vector):
        results = [run(step, branch) for step in range(3) for branch in texts]
    for result, wanted in zip(results, expected, strict=True):
        agree(result, wanted, 0 if changed is compiled else 5e-6)
    assert calls == [2, 2, 2] or changed is compiled  # hooks inside a compiled block are not counted


def test_a_changed_adapter_is_seen_after_forget(vector: Network) -> None:
    adapted(vector)
    text = text_of(9)
    with per_clip.walk(vector):
        velocity(vector, text)
        vector.disable_adapters()
        vector.text_memory.forget()
        agree(velocity(vector, text), expected_of(vector, text))


def test_image_embeddings_and_other_processors_stay_stock() -> None:
    variant = Network.upgrade(build(in_channels=36, image_dim=24, added_kv_proj_dim=DIM))
    latents, _ = inputs(1, channels=36)
    text, image = torch.randn(1, 512, 16), torch.randn(1, 9, 24)
    with torch.no_grad(), counted(variant) as calls:
        expected = variant(latents, 1000 * SIGMA, text, image).sample
        with per_clip.walk(variant):
            for _ in range(2):
                with variant.text_memory.reading(text) as tokens:
                    assert torch.equal(variant(latents, 1000 * SIGMA, tokens, image).sample, expected)
    assert calls == [3, 3, 3]


def test_a_processor_of_another_program_stays(stock: WanTransformer3DModel) -> None:
    class Other(WanAttnProcessor):
        pass

    early = copy.deepcopy(stock)
    early.blocks[1].attn2.set_processor(Other())
    early = Network.upgrade(early)
    late = Network.upgrade(stock)
    late.blocks[1].attn2.set_processor(Other())
    text = text_of(9)
    for network in (early, late):
        expected = velocity(network, text)
        with per_clip.walk(network):
            assert torch.equal(velocity(network, text), expected)
