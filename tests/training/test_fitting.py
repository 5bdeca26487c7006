"""The memory of a training: what is predicted, what a limit decides, and that a run keeps its weights wherever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pusa.errors import Cancelled, InputError
from pusa.models.backbone import Geometry
from pusa.models.memory.step_estimate import StepRehearsal
from pusa.training import fitting
from pusa.training.config.presets import MEMORY, PRESETS
from pusa.training.config.sections import TARGETS
from pusa.training.config.tree import Config, read
from pusa.training.data.samples import Bucket
from pusa.training.trainer import Hook
from tests.training import small
from tests.training.test_trainer import curve, run, same, says, weights

WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
WAN_5B = WAN_14B | {
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": 48,
    "out_channels": 48,
}
GEOMETRY = Geometry(4, 8, (1, 2, 2))
LOW = {"memory": {"base": "fp8", "swap": 1, "offload": True}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def needs(*settings: str, buckets: str = "832x480x81", **changes: Any) -> Any:
    config = read(None, None, {"memory": "24gb", "data.path": "x", **changes})
    return fitting.needs_of(config, WAN_14B, GEOMETRY, [Bucket.parse(buckets)])


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", MEMORY)
def test_a_profile_is_a_set_of_settings_that_others_override(name: str, tmp_path: Path) -> None:
    config = read(None, "wan21-14b", {"memory": name, "memory.base": "nf4"})
    assert config.memory.base == "nf4"
    assert config.memory.limit == float(name.removesuffix("gb"))
    assert (config.memory.offload, config.train.gradient_checkpointing, config.train.precision) == (True, True, "bf16")
    file = tmp_path / "a.yaml"
    file.write_text(f"train: {{precision: fp32}}\nmemory: {name}\n")
    config = read(file, None, {})
    assert (config.memory.base, config.train.precision) == ("fp8", "fp32"), "whatever the order in the file"
    assert Config.model_validate(config.plain()) == config


def test_settings_that_do_not_go_together_are_refused() -> None:
    for settings, sentence in (
        ({"memory": "20gb"}, "There is no memory profile '20gb' for a training (the command line); did you mean"),
        ({"lora": "null", "memory.base": "fp8"}, "memory.base is for the frozen base of a LoRA, but lora is null"),
        ({"memory.swap": "3", "train.parallel": "fsdp"}, "cannot be combined with train.parallel fsdp"),
        ({"memory.offload": "true"}, "memory.offload needs gradient checkpointing"),
        ({"memory.base": "fp4"}, 'memory.base is "fp4" (the command line); give fp8, int8 or nf4, or null.'),
    ):
        with pytest.raises(InputError) as caught:
            read(None, None, settings)
        assert sentence in str(caught.value)


# ------------------------------------------------------------------------------------------------------ prediction


def test_the_14b_fits_in_24_gigabytes() -> None:
    found = needs()
    assert 20e9 < found.device <= 24e9
    assert 0 < found.swapped < 40
    parts = found.weights + found.adapter + found.gradients + found.optimiser + found.activations
    assert found.device == pytest.approx(parts + 0.6e9)
    assert "GB of the device (base " in fitting.sentence(found, 40)
    assert f"{found.swapped} of 40 blocks" in fitting.sentence(found, 40)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("gb")])
def test_a_preset_for_one_card_fits(name: str) -> None:
    config = read(None, name, {"data.path": "x"})
    large = "5b" in name
    transformer = WAN_5B if large else WAN_14B
    size = "1280x704x121" if large else "832x480x81"
    buckets = [Bucket.parse(text) for text in config.data.buckets or [size]]
    found = fitting.needs_of(config, transformer, Geometry(4, 16 if large else 8, (1, 2, 2)), buckets)
    assert found.device <= float(name.rpartition("-")[2].removesuffix("gb")) * 1e9
    assert f"{found.host / 1e9:.0f} GB of the machine" in PRESETS[name].memory


def test_a_smaller_card_needs_more_blocks_away_and_shorter_clips() -> None:
    with pytest.raises(
        InputError, match=r"needs at least 1\d\.\d GB .* clip of 832x480x81, and memory\.limit is 12 GB"
    ):
        needs(memory="12gb")
    large, small_card = needs(buckets="512x288x49"), needs(memory="12gb", buckets="512x288x49")
    assert small_card.swapped > large.swapped
    assert small_card.device <= 12e9
    assert needs(**{"memory.swap": "40"}).weights < needs(**{"memory.swap": "20"}).weights
    assert needs(**{"memory.swap": "40"}).host >= needs(**{"memory.swap": "20"}).host


@pytest.mark.parametrize(("storage", "bytes_per_weight"), [(None, 2), ("fp8", 1), ("int8", 1), ("nf4", 0.5625)])
def test_the_base_has_the_bytes_of_its_storage(storage: Any, bytes_per_weight: float) -> None:
    config = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 6, "text_dim": 64}
    latents = (1, 16, 3, 8, 8)
    found = StepRehearsal.of(config, latents, rank=4, targets=TARGETS, storage=storage)
    matrices = 6 * (8 * 256 * 256 + 2 * 256 * 1024)
    assert sum(found.blocks) == pytest.approx(matrices * bytes_per_weight, rel=0.02)
    assert found.trained == 6 * 4 * (8 * 512 + 2 * 1280)


def test_all_blocks_are_extrapolated_exactly() -> None:
    config = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 3, "text_dim": 64}
    latents = (2, 16, 3, 16, 16)
    for options in ({}, {"offload": True}, {"checkpointing": False}):
        options = {"rank": 4, "targets": TARGETS, **options}
        few = StepRehearsal.of({**config, "num_layers": 3}, latents, **options)
        many = StepRehearsal.of({**config, "num_layers": 7}, latents, **options)
        again = StepRehearsal.of({**config, "num_layers": 5}, latents, **options)
        assert many.peak - again.peak == again.peak - few.peak
    saved = StepRehearsal.of(config, latents, rank=4, targets=TARGETS, offload=True)
    kept = StepRehearsal.of(config, latents, rank=4, targets=TARGETS)
    assert saved.offloaded == 3 * 2 * 3 * 8 * 8 * 256 * 2
    assert kept.peak - saved.peak == pytest.approx(saved.offloaded, rel=0.4)


# -------------------------------------------------------------------------------------------------------- training


def test_a_run_with_a_stored_base_resumes_exactly_wherever_it_lies(tmp_path: Path) -> None:
    settings = {**LOW, "train": {"gradient_checkpointing": True, "precision": "bf16"}}

    def stop(step: int, *_: Any) -> None:
        if step == 6:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(tmp_path / "a", options={"hooks": [Hook(1, stop)]}, **settings)
    elsewhere = {"memory": {"base": "fp8"}, "train": {"precision": "bf16"}}
    assert run(tmp_path / "a", **elsewhere).first == 4
    run(tmp_path / "b", **settings)
    run(tmp_path / "c", train={"precision": "bf16"})
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    with pytest.raises(InputError, match=r'with other settings \(memory\.base was "fp8" and is null\)'):
        run(tmp_path / "a", train={"precision": "bf16"})
    assert (
        load_file(tmp_path / "a" / "lora.safetensors").keys() == load_file(tmp_path / "c" / "lora.safetensors").keys()
    )


def test_weights_that_only_move_give_the_same_training(tmp_path: Path) -> None:
    plain, moved = small.components(), small.components()
    run(tmp_path / "a", components=plain)
    settings = {"memory": {"swap": 2, "offload": True}, "train": {"gradient_checkpointing": True}}
    run(tmp_path / "b", components=moved, **settings)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert torch.equal(says(plain.transformer), says(moved.transformer)), "the model can be used afterwards"
    assert json.loads((tmp_path / "b" / "checkpoints" / "step_000012" / "checkpoint.json").read_text())["step"] == 12
