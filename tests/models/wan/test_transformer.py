"""The per-frame Wan transformer against the stock one: its numbers, its refusals, and in and out of files."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pusa.errors import InputError
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.wan_small import (
    DIM,
    FRAMES,
    ROWS,
    TOKENS_PER_FRAME,
    agree,
    build,
    gradients,
    inputs,
    per_token,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# The numbers: against the stock forward


def test_sinusoid_has_cosines_first_and_the_published_values(vector: VectorWanTransformer3DModel) -> None:
    embedded = vector.condition_embedder.timesteps_proj(torch.tensor([0.0, 200.0, 978.26086, 1000.0]))
    published = [
        [1, 1, 1, 0, 0],
        [0.487188, -0.724532, 0.999769, -0.873297, 0.021491],
        [-0.338429, 0.75203, 0.994479, -0.940992, 0.104931],
        [0.562379, 0.789615, 0.994232, 0.82688, 0.107254],
    ]
    # float32 holds a phase near 1000 to 6e-5.
    agree(embedded[:, [0, 1, 127, 128, 255]], torch.tensor(published), 5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_equal_rows_are_the_stock_scalar_forward_bit_for_bit(wan_folder: Path, dtype: torch.dtype) -> None:
    stock = WanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=dtype)
    vector = VectorWanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=dtype)
    assert vector.scale_shift_table.dtype == torch.float32
    for t in (torch.tensor([937.0, 200.0]), torch.tensor([0.0, 1000.0]), torch.tensor([999, 625])):
        assert torch.equal(run(vector, t[:, None].expand(2, FRAMES)), run(stock, t))
    assert not torch.equal(run(vector, ROWS), run(stock, ROWS[:, 0]))


def test_equal_rows_stay_bit_equal_where_matrix_products_round_by_shape() -> None:
    # At real widths a product over 21 rows need not have the bits of the product over one row.
    stock = build(attention_head_dim=128, num_layers=1)
    vector = VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock))
    latents, text = torch.randn(1, 4, 21, 4, 4), torch.randn(1, 7, 16)
    with torch.no_grad():
        for t in (torch.tensor([937.0]), torch.tensor([333.3]), torch.tensor([12.5])):
            expected = stock(latents, t, text).sample
            assert torch.equal(vector(latents, t[:, None].expand(1, 21), text).sample, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.0)], ids=["fp32", "bf16"])
def test_distinct_rows_are_the_stock_per_token_forward(wan_folder: Path, dtype: torch.dtype, tolerance: float) -> None:
    stock = WanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=dtype)
    vector = VectorWanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=dtype)
    agree(run(vector, ROWS), run(stock, per_token(ROWS)), tolerance)


def test_a_row_that_barely_differs_is_close_to_the_scalar_forward(
    stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel
) -> None:
    t = torch.tensor([900.0, 300.0])
    rows = t[:, None].repeat(1, FRAMES)
    rows[:, 2] += 1e-4
    assert not torch.equal(rows, t[:, None].expand(2, FRAMES))
    agree(run(vector, rows), run(stock, t), 1e-4)


def test_scalar_and_per_token_timesteps_take_the_stock_path(
    stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel
) -> None:
    random = torch.rand(2, FRAMES * TOKENS_PER_FRAME, generator=torch.Generator().manual_seed(2)) * 1000
    for timestep in (ROWS[:, 2], ROWS[:, 2].to(torch.bfloat16), ROWS[:, 1].long(), random, per_token(ROWS)):
        assert torch.equal(run(vector, timestep), run(stock, timestep))


def test_integer_and_float64_rows_are_exact(vector: VectorWanTransformer3DModel) -> None:
    rows = ROWS.round()
    assert torch.equal(run(vector, rows.long()), run(vector, rows))
    assert torch.equal(run(vector, rows.double()), run(vector, rows))


def test_one_token_per_frame_reads_the_same_either_way(pristine: WanTransformer3DModel) -> None:
    vector = VectorWanTransformer3DModel.upgrade(copy.deepcopy(pristine))
    latents, text = torch.randn(2, 4, FRAMES, 2, 2), inputs()[1]
    with torch.no_grad():
        agree(vector(latents, ROWS, text).sample, pristine(latents, ROWS, text).sample)


def test_each_row_modulates_its_own_frame(stock: WanTransformer3DModel) -> None:
    # Without attention a frame can only be moved by its own timestep.
    vector = VectorWanTransformer3DModel.upgrade(stock)
    for block in vector.blocks:
        block.attn1.to_out[0].weight.data.zero_()
    before = run(vector, ROWS)
    rows = ROWS.clone()
    rows[0, 3] = 40.0
    moved = (run(vector, rows) - before).abs().amax(dim=(1, 3, 4)) > 1e-3
    assert moved.tolist() == [[False, False, False, True, False], [False] * FRAMES]


def test_a_batch_equals_its_samples_run_alone(vector: VectorWanTransformer3DModel) -> None:
    latents, text = inputs()
    with torch.no_grad():
        whole = vector(latents, ROWS, text).sample
        alone = [vector(latents[i : i + 1], ROWS[i : i + 1], text[i : i + 1]).sample for i in range(2)]
    agree(whole, torch.cat(alone))


def test_image_conditioned_variant() -> None:
    variant = build(in_channels=36, image_dim=24, added_kv_proj_dim=DIM)
    latents, text = inputs(channels=36)
    image = torch.randn(2, 9, 24)
    with torch.no_grad():
        expected = variant(latents, per_token(ROWS), text, image).sample
        agree(VectorWanTransformer3DModel.upgrade(variant)(latents, ROWS, text, image).sample, expected)


def test_output_forms(vector: VectorWanTransformer3DModel) -> None:
    latents, text = inputs()
    with torch.no_grad():
        for timestep in (ROWS, ROWS[:, 0]):
            (sample,) = vector(latents, timestep, text, return_dict=False)
            assert torch.equal(sample, vector(latents, timestep, text, return_dict=True).sample)
            assert sample.shape == latents.shape


def test_gradients_with_and_without_checkpointing(
    stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel
) -> None:
    expected, plain = gradients(stock, per_token(ROWS)), gradients(vector, ROWS)
    assert plain.keys() == expected.keys()
    assert len(plain) > 60
    for name, gradient in expected.items():
        agree(plain[name], gradient)
    vector.enable_gradient_checkpointing()
    calls: list[int] = []
    vector.blocks[1].ffn.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients(vector, ROWS)
    assert len(calls) == 2
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


def test_nothing_of_size_tokens_times_six_is_made(
    stock: WanTransformer3DModel, vector: VectorWanTransformer3DModel
) -> None:
    modulation = 2 * FRAMES * TOKENS_PER_FRAME * 6 * DIM
    with LargestTensor() as expanded:
        gradients(stock, per_token(ROWS))
    assert expanded.numel >= modulation
    with LargestTensor() as rows:
        gradients(vector, ROWS)
    assert rows.numel <= modulation / 3  # the feed-forward's hidden layer is the largest, 2 * DIM wide


# Timesteps that cannot be right


@pytest.mark.parametrize(
    ("timestep", "message"),
    [
        (ROWS[:, :4], r"shape \(2, 4\).*\(2, 5\) for one per latent frame, or \(2, 80\) for one per token"),
        (ROWS[:1], r"shape \(1, 5\) does not fit"),
        (ROWS[0], r"shape \(5,\) does not fit"),
        (ROWS[None], r"shape \(1, 2, 5\) does not fit"),
        (torch.tensor(500.0), r"shape \(\) does not fit"),
        (ROWS.to(torch.bfloat16), r"torch\.bfloat16.*937.*float32"),
        (ROWS.to(torch.float16), r"torch\.float16"),
        (per_token(ROWS).to(torch.bfloat16), r"torch\.bfloat16"),
        (ROWS.bool(), r"torch\.bool"),
    ],
    ids=["short", "one-row", "no-batch", "3-D", "0-D", "bf16", "fp16", "bf16-per-token", "bool"],
)
def test_timesteps_that_do_not_fit_are_refused(
    vector: VectorWanTransformer3DModel, timestep: Tensor, message: str
) -> None:
    latents, text = inputs()
    with pytest.raises(InputError, match=message):
        vector(latents, timestep, text)


# In and out


def test_upgrade_keeps_the_weights_and_is_idempotent(stock: WanTransformer3DModel) -> None:
    tensors = dict(stock.named_parameters()) | dict(stock.named_buffers())
    upgraded = VectorWanTransformer3DModel.upgrade(stock)
    assert upgraded is stock
    frame_index = upgraded.frame_index
    assert VectorWanTransformer3DModel.upgrade(upgraded) is upgraded
    assert upgraded.frame_index is frame_index
    after = dict(upgraded.named_parameters()) | dict(upgraded.named_buffers())
    assert list(after) == list(tensors)
    assert all(after[name] is tensor for name, tensor in tensors.items())


def test_saved_folder_is_a_stock_folder(vector: VectorWanTransformer3DModel, tmp_path: Path) -> None:
    vector.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"
    reloaded = WanTransformer3DModel.from_pretrained(tmp_path)
    assert type(reloaded) is WanTransformer3DModel
    assert reloaded.state_dict().keys() == vector.state_dict().keys()
    assert torch.equal(run(reloaded, ROWS[:, 0]), run(vector, ROWS[:, 0]))
    assert torch.equal(run(VectorWanTransformer3DModel.from_pretrained(tmp_path), ROWS), run(vector, ROWS))


def test_class_name_survives_a_wrapper_that_renames_the_class(vector: VectorWanTransformer3DModel) -> None:
    vector.__class__ = type("FSDPVectorWanTransformer3DModel", (VectorWanTransformer3DModel,), {})
    config = json.loads(vector.to_json_string())
    assert config["_class_name"] == "WanTransformer3DModel"
    assert config["num_layers"] == 3


def test_from_config_builds_the_same_class(vector: VectorWanTransformer3DModel) -> None:
    twin = VectorWanTransformer3DModel.from_config(vector.config)
    twin.load_state_dict(vector.state_dict())
    assert torch.equal(run(twin.eval(), ROWS), run(vector, ROWS))


def test_pipeline_with_an_upgraded_transformer_saves_as_stock(tiny_folder: Path, tmp_path: Path) -> None:
    pipe = WanPipeline.from_pretrained(tiny_folder)
    VectorWanTransformer3DModel.upgrade(pipe.transformer)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    again = WanPipeline.from_pretrained(tmp_path)
    assert type(again.transformer) is WanTransformer3DModel
    options = {"prompt": "a cat", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
    clips = [p(**options, output_type="latent", generator=torch.manual_seed(0)).frames for p in (pipe, again)]
    assert torch.equal(*clips)


def test_deepcopy_and_pickle_stand_on_their_own(vector: VectorWanTransformer3DModel) -> None:
    before = run(vector, ROWS)
    for twin in (copy.deepcopy(vector), pickle.loads(pickle.dumps(vector))):
        assert torch.equal(run(twin, ROWS), before)
        twin.proj_out.weight.data.zero_()
        twin.proj_out.bias.data.zero_()
        assert run(twin, ROWS).abs().max() == 0
    assert torch.equal(run(vector, ROWS), before)


def test_upgrade_refuses_what_it_could_not_change(stock: WanTransformer3DModel) -> None:
    hooked = copy.deepcopy(stock)
    HookRegistry.check_if_exists_or_initialize(hooked.blocks[1]).register_hook(ModelHook(), "any")
    with pytest.raises(InputError, match=r"block 1 already has hooks.*from_pretrained"):
        VectorWanTransformer3DModel.upgrade(hooked)
    assert type(hooked) is WanTransformer3DModel

    offloaded = copy.deepcopy(stock)
    offloaded.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    with pytest.raises(InputError, match="already has hooks"):
        VectorWanTransformer3DModel.upgrade(offloaded)

    compiled = copy.deepcopy(stock)
    compiled.compile_repeated_blocks(backend="eager")
    with pytest.raises(InputError, match="block 0 is already compiled"):
        VectorWanTransformer3DModel.upgrade(compiled)

    wrapped = copy.deepcopy(stock)
    wrapped.blocks[2].__class__ = type("FSDPWanTransformerBlock", (type(wrapped.blocks[2]),), {})
    with pytest.raises(InputError, match="block 2 is a FSDPWanTransformerBlock"):
        VectorWanTransformer3DModel.upgrade(wrapped)

    with pytest.raises(InputError, match=r"not a Linear: pass the transformer"):
        VectorWanTransformer3DModel.upgrade(torch.nn.Linear(1, 1))


def test_loading_with_a_device_map(wan_folder: Path) -> None:
    expected = run(WanTransformer3DModel.from_pretrained(wan_folder), per_token(ROWS))
    agree(run(VectorWanTransformer3DModel.from_pretrained(wan_folder, device_map={"": "cpu"}), ROWS), expected)
