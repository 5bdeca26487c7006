"""Attention between frames against a plain reference, and weights that moved by a known amount."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import pusa
from pusa import embedded
from pusa.core import schedules, sigmas
from pusa.embedded import world
from pusa.errors import InputError
from pusa.evaluation import plots
from pusa.evaluation.inspect import attention, weight_drift
from pusa.evaluation.intervals import Interval
from pusa.media.images import read_image
from pusa.models.loading import checkpoints


@pytest.fixture(scope="module")
def pipe() -> pusa.Pipeline:
    return pusa.load("tiny")


def reference(query: torch.Tensor, key: torch.Tensor, frames: int) -> torch.Tensor:
    """All weights at once: softmax over tokens, summed over the keys of a frame, averaged over queries and heads."""
    q, k = query.transpose(0, 1).double(), key.transpose(0, 1).double()
    weights = torch.softmax(q @ k.transpose(1, 2) / query.shape[2] ** 0.5, dim=-1)
    heads, length, _ = weights.shape
    return weights.reshape(heads, frames, length // frames, frames, length // frames).sum(4).mean(2).mean(0).float()


@pytest.mark.parametrize("chunk", [10**9, 2000])
def test_attention_is_the_exact_mean_in_pieces_of_any_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk)
    query, key = torch.randn(2, 60, 3, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    query = 3 * query
    found = attention.between_frames(query, key, 5)
    torch.testing.assert_close(found, reference(query, key, 5), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))
    assert (attention.approximated(query, key, 5) - found).abs().max() > 0.05


def test_heads_apart_have_the_same_mean() -> None:
    query, key = torch.randn(2, 60, 3, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    each = attention.between_frames(query, key, 5, per_head=True)
    for head in range(3):
        alone = reference(query[:, head : head + 1], key[:, head : head + 1], 5)
        torch.testing.assert_close(each[head], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(each.mean(dim=0), attention.between_frames(query, key, 5))


def test_no_tensor_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
            return made

    query, key = torch.randn(2, 1000, 2, 8).unbind(0)
    with Largest() as whole:
        attention.between_frames(query, key, 5)
    monkeypatch.setattr(attention, "CHUNK_BYTES", 4 * 20_000)
    with Largest() as pieces:
        attention.between_frames(query, key, 5)
    assert whole.elements == 1000 * 1000
    assert pieces.elements == 20_000


def test_recording_changes_no_bit_and_sees_the_prompt_pass(pipe: pusa.Pipeline) -> None:
    def make() -> np.ndarray:
        return pipe.generate("a red circle moves left on a black background", steps=3, guidance=2.0, seed=1).frames

    plain = make()
    with attention.recording({pipe.transformer: 2}, [0, 6], [0, 2]) as maps:
        watched = make()
    assert np.array_equal(plain, watched)
    assert sorted(maps) == [(0, 0), (0, 6), (2, 0), (2, 6)]
    for found in maps.values():
        torch.testing.assert_close(found.sum(dim=1), torch.ones(5))
    with attention.recording({pipe.transformer: 2}, [6], [0]) as other:
        pipe.generate("", steps=3, guidance=2.0, seed=1)
    assert not torch.equal(other[0, 6], maps[0, 6])
    assert np.array_equal(plain, make())


def test_two_experts_share_the_steps(experts_folder: Path) -> None:
    both = pusa.load(str(experts_folder), device="cpu")
    assert both.transformer_2 is not None
    options: dict[str, Any] = {"steps": 4, "guidance": 2.0, "guidance_2": 1.0, "frames": 5, "size": (32, 32)}
    plain = both.generate("x", **options).frames
    asked: list[torch.nn.Module] = []
    for one in (both.transformer, both.transformer_2):
        one.register_forward_pre_hook(lambda module, args: asked.append(module))
    with attention.recording({both.transformer: 2, both.transformer_2: 1}, [1], range(4)) as maps:
        assert np.array_equal(both.generate("x", **options).frames, plain)
    assert asked.count(both.transformer) >= 2
    assert asked.count(both.transformer_2) >= 1
    assert sorted(maps) == [(step, 1) for step in range(4)]


def test_the_adapter_makes_the_later_frames_look_at_the_given_one(pipe: pusa.Pipeline) -> None:
    def share(model: pusa.Pipeline) -> float:
        scene = world.sample(0, "heldout", "shape")
        with attention.recording({model.transformer: 2}, [6], [0]) as maps:
            model.generate(scene.caption, [pusa.Image(world.render(scene, 1)[0])], steps=2)
        return attention.first_frame_share(maps[0, 6])

    with pytest.warns(UserWarning, match="no LoRA"):
        alone = share(pusa.load("tiny-base"))
    assert share(pipe) > alone + 0.1


def test_hooks_are_gone_after_an_error(pipe: pusa.Pipeline) -> None:
    before = attention.transformer_wan.dispatch_attention_fn
    with pytest.raises(RuntimeError), attention.recording({pipe.transformer: 1}, [0], [0]):
        raise RuntimeError
    assert attention.transformer_wan.dispatch_attention_fn is before
    with pytest.raises(InputError, match="There is no block 8"), attention.recording({pipe.transformer: 1}, [8], [0]):
        pass


def test_compiled_blocks_cannot_be_recorded() -> None:
    transformer = pusa.load("tiny", compiled=True).transformer
    with pytest.raises(InputError, match="leave --compile out"), attention.recording({transformer: 1}, [0], [0]):
        pass


def test_a_known_change_is_found_in_its_component_and_block() -> None:
    base = checkpoints.load("tiny-base").transformer
    other = checkpoints.load("tiny-base").transformer
    with torch.no_grad():
        for name, value in other.named_parameters():
            if name.startswith("blocks.2.attn1."):
                value.mul_(1.1)
    components, blocks = weight_drift.of_models(base, other).of()
    assert {name for name, value in components.items() if value > 0} == {"self-attention"}
    assert [block for block, value in blocks.items() if value > 0] == [2]
    only = [p for name, p in base.named_parameters() if ".attn1." in name]
    moved = sum(float(p.double().square().sum()) for name, p in base.named_parameters() if "blocks.2.attn1." in name)
    size = sum(float(p.double().square().sum()) for p in only)
    assert components["self-attention"] == pytest.approx(0.1 * (moved / size) ** 0.5, rel=1e-4)


def test_a_lora_moves_what_merging_it_would() -> None:
    base = checkpoints.load("tiny-base").transformer
    found = weight_drift.of_lora(base, embedded.adapter(), embedded.STRENGTH).of()[0]
    pipe = pusa.load("tiny")
    merged = checkpoints.load("tiny-base").transformer
    with torch.no_grad():
        for name, module in pipe.transformer.named_modules():
            if hasattr(module, "lora_A"):
                merged.get_submodule(name).weight += module.get_delta_weight("pusa")
    same = weight_drift.of_models(base, merged).of()[0]
    assert found == pytest.approx(same, rel=1e-3, abs=1e-9)
    assert found["self-attention"] > 1.5 * found["cross-attention"]
    assert found["text embedding"] == 0


def test_a_lokr_with_lengths_moves_what_it_changes(tmp_path: Path) -> None:
    base = checkpoints.load("tiny-base").transformer
    weight = base.blocks[2].attn1.to_q.weight.detach()
    left, right, lengths = (
        torch.randn(4, 8),
        torch.randn(len(weight) // 4, len(weight) // 8),
        torch.rand(len(weight), 1),
    )
    stem = "lora_unet_blocks_2_self_attn_q"
    tensors = {f"{stem}.lokr_w1": left, f"{stem}.lokr_w2": right, f"{stem}.dora_scale": lengths}
    save_file(tensors, tmp_path / "x.safetensors")
    changed = weight + torch.kron(left, right)
    merged = checkpoints.load("tiny-base").transformer
    with torch.no_grad():
        trained = changed * lengths / changed.norm(dim=1, keepdim=True)
        merged.blocks[2].attn1.to_q.weight.copy_(weight + 0.5 * (trained - weight))
    found = weight_drift.of_lora(base, tmp_path / "x.safetensors", 0.5).of()[0]
    assert found == pytest.approx(weight_drift.of_models(base, merged).of()[0], rel=1e-4, abs=1e-9)
    assert found["self-attention"] > 0


def test_models_of_other_sizes_are_refused() -> None:
    base = checkpoints.load("tiny-base").transformer
    with pytest.raises(InputError, match="compare models of the same"):
        weight_drift.of_models(base, torch.nn.Linear(2, 2))


def log(folder: Path, losses: list[float]) -> Path:
    folder.mkdir(exist_ok=True)
    levels = {"loss_by_sigma": [None, 0.5], "frames_by_sigma": [0, 4]}
    lines = [json.dumps({"step": i + 1, "loss": loss, **levels}) for i, loss in enumerate(losses)]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return folder


def test_curves_of_a_training_and_a_log_that_is_none(tmp_path: Path) -> None:
    first = plots.training(tmp_path / "curves.png", {"run": log(tmp_path / "a", [3.0, 2.0, 1.0])})
    other = plots.training(tmp_path / "others.png", {"run": log(tmp_path / "b", [1.0, 2.0, 3.0])})
    assert read_image(first).std() > 1
    assert not np.array_equal(read_image(first), read_image(other))
    (tmp_path / "b" / "log.jsonl").write_text("{}")
    with pytest.raises(InputError, match="not the log of a training"):
        plots.training(tmp_path / "x.png", {"run": tmp_path / "b"})
    with pytest.raises(InputError, match="does not exist"):
        plots.training(tmp_path / "x.png", {"run": tmp_path / "nowhere"})
    assert not (tmp_path / "x.png").exists()


def test_every_plot_is_a_picture(tmp_path: Path) -> None:
    interval = Interval(1.0, 0.5, 1.5)
    matrix = schedules.synchronous(sigmas.grid(4, 3.0), 5)
    made = [
        plots.lines(tmp_path / "a" / "lines.png", [1, 2], {"x": [interval, 2.0]}, xlabel="x", ylabel="y", log=True),
        plots.bars(tmp_path / "bars.png", {"one": interval, "two": 2.0}, xlabel="x"),
        plots.bars(tmp_path / "points.png", {"one": interval}, xlabel="x", zero=False),
        plots.grouped_bars(tmp_path / "grouped.png", {"g": {"a": interval, "b": 2.0}, "h": {"b": 1.0}}, xlabel="x"),
        plots.heat(tmp_path / "heat.png", {("r", "c"): np.eye(3)}, label="l", xlabel="x", ylabel="y"),
        plots.matrix(tmp_path / "matrix.png", {"one": matrix, "two": matrix}),
        plots.table(tmp_path / "table.png", ["", "x"], [["a", "1"], ["b", "2"]]),
    ]
    for path in made:
        assert read_image(path).std() > 1
