"""What is predicted before a model is loaded: activations, weights, operations, and what is done with the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from pusa.acceleration.names import POLICIES, Acceleration
from pusa.cli import main
from pusa.cli.shared.memory_report import profile_for
from pusa.cli.shared.options import Model
from pusa.errors import InputError, PusaError
from pusa.models.memory import estimate, meta_networks, profiles
from pusa.models.memory.estimate import Rehearsal
from pusa.models.memory.profiles import PLAIN, PROFILES
from pusa.models.wan.geometry import GEOMETRIES
from pusa.models.wan.operations import StepCounter

WAN14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40, "in_channels": 16,
          "out_channels": 16, "text_dim": 4096, "patch_size": [1, 2, 2]}  # fmt: skip

WAN = GEOMETRIES[16]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Rehearsal:
    return Rehearsal.of("tiny", tiny_folder, size=(64, 64), frames=9, guidance=2.0)


@pytest.fixture(scope="module")
def wan14b(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """Wan2.1-14B at 480p on a GPU, from configurations alone."""
    folder = tmp_path_factory.mktemp("wan14b")
    for name, data in {
        "model_index.json": {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]},
        "transformer/config.json": WAN14B,
        "text_encoder/config.json": meta_networks.UMT5_XXL,
        "vae/config.json": {"z_dim": 16},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(data))
    return Rehearsal.of("wan", folder, size=(832, 480), frames=81, on_cpu=False)


def test_weights_are_those_of_the_model(tiny: Rehearsal, tiny_pipe) -> None:
    for kind, network in (
        ("transformer", tiny_pipe.transformer), ("vae", tiny_pipe.vae), ("text_encoder", tiny_pipe.text_encoder),
    ):  # fmt: skip
        held = {id(t): t.nbytes for t in (*network.parameters(), *network.buffers())}
        assert tiny.networks[kind].weights == sum(held.values()), kind


def test_operations_are_those_that_training_counts(tiny: Rehearsal, tiny_pipe) -> None:
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(tiny_pipe.transformer.config)
    counted = StepCounter(transformer)(1, 3 * 4 * 4, 3).forward
    assert tiny.sample.flops == pytest.approx(counted, rel=0.01)
    assert tiny.flops == 2 * tiny.sample.flops


def test_a_14b_model_is_weighed_as_arithmetic_says(wan14b: Rehearsal) -> None:
    tokens, width, ffn = 21 * 30 * 52, 5120, 13824
    block = 2 * (6 * width**2 + 2 * width * ffn) * tokens + 4 * tokens**2 * width
    assert wan14b.flops == pytest.approx(40 * block, rel=0.02)
    assert wan14b.networks["transformer"].weights == pytest.approx(2 * 14.3e9, rel=0.01)
    assert wan14b.networks["text_encoder"].weights == pytest.approx(2 * 5.68e9, rel=0.01)
    rows_per_token = 6 * width * 2 * tokens  # what a modulation row per token would take in bf16, held all the while
    assert 2 * (2 * width + 2 * ffn) * tokens < wan14b.sample.peak < 2 * (2 * width + 2 * ffn) * tokens + rows_per_token


def test_frugal_profiles_take_less(wan14b: Rehearsal) -> None:
    peaks = [wan14b.needs(PROFILES[name]).device_peak for name in PROFILES if name != "cpu"]
    assert peaks == sorted(peaks, reverse=True)
    for name in ("80gb", "48gb", "24gb", "16gb", "12gb", "8gb"):
        assert wan14b.needs(PROFILES[name]).device_peak < PROFILES[name].gigabytes * 1e9, name


def test_the_fastest_profile_that_fits_is_chosen(wan14b: Rehearsal) -> None:
    assert estimate.choose(wan14b, 80e9, 500e9).name == "80gb"
    assert estimate.choose(wan14b, 23e9, 500e9).name == "24gb"
    assert estimate.choose(wan14b, 23e9, 60e9).name == "24gb"
    with pytest.raises(InputError, match=r"not enough memory.*81 frames of 832x480.*--frames"):
        estimate.choose(wan14b, 4e9, 500e9)


def test_decoding_takes_no_more_for_longer_clips(tiny_folder: Path) -> None:
    short, long = (
        Rehearsal.of("tiny", tiny_folder, size=(64, 64), frames=frames).needs(PLAIN).host["decode"]
        for frames in (17, 81)
    )
    assert long - short == 64 * 64 * 64 * 3  # the frames themselves


def test_a_lora_is_weighed(tiny_folder: Path, tmp_path: Path) -> None:
    from pusa.models.lora import runtime

    factors = {"blocks.0.attn1.to_q": (torch.zeros(8, 32), torch.zeros(32, 8))}
    runtime.write(tmp_path / "a.safetensors", factors)
    bare, adapted = (
        Rehearsal.of("tiny", tiny_folder, size=(64, 64), frames=9, loras=loras).networks["transformer"].weights
        for loras in ([], [tmp_path / "a.safetensors"])
    )
    assert adapted - bare == 2 * 4 * 8 * (8 * (32 + 32) + 2 * (32 + 64))  # blocks, bytes, rank, layers
    stem = "lora_unet_blocks_0_self_attn_q"
    save_file({f"{stem}.lokr_w1": torch.zeros(4, 8), f"{stem}.lokr_w2": torch.zeros(8, 4)}, tmp_path / "b.safetensors")
    loras = [tmp_path / "b.safetensors"]
    lokr = Rehearsal.of("tiny", tiny_folder, size=(64, 64), frames=9, loras=loras).networks["transformer"].weights
    assert lokr - bare == 4 * (32 + 32)


def test_sizes_that_cannot_be_made(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        Rehearsal.of("tiny", tiny_folder, size=(60, 64), frames=9)
    with pytest.raises(InputError, match="5 or 9"):
        Rehearsal.of("tiny", tiny_folder, size=(64, 64), frames=8)


def test_info_tells(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["info", str(tiny_folder), "--memory", "--size", "64x64", "--frames", "9", "--rate", "1"]
    assert main([*shared, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["profile"] for row in said["profiles"]] == list(PROFILES)
    assert said["profiles"][-1]["fits_here"]
    assert said["profiles"][0]["within"]
    assert all(row["seconds_per_step"][0] > 0 for row in said["profiles"])
    assert main([*shared, "--profile", "cpu"]) == 0
    table = capsys.readouterr().out
    assert "9 frames of 64x64" in table
    assert "8gb" not in table
    assert main(["info", str(tiny_folder), "--frames", "9"]) == 2
    assert "--memory" in capsys.readouterr().err


def test_info_counts_the_parts_beside_a_file(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    shared = ["info", str(file), "--memory", "--size", "64x64", "--frames", "9", "--rate", "1", "--json"]
    assert main([*shared, "--profile", "cpu"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert sorted(alone["assumed"]) == ["text_encoder", "vae"]
    beside = ["--vae", str(tiny_folder), "--text-encoder", str(tiny_folder)]
    assert main([*shared, "--profile", "cpu", *beside]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["assumed"] == []
    assert whole["profiles"][0]["host"] < alone["profiles"][0]["host"] / 10  # UMT5-XXL is 5.7 billion parameters
    assert main(["info", str(file), *beside]) == 2
    assert "need --memory" in capsys.readouterr().err


def test_a_clip_that_will_not_fit_is_refused_before_loading(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    monkeypatch.setattr(estimate, "free_memory", lambda device: (None, 5e8))
    monkeypatch.setattr("pusa.generation.pipeline.load", lambda *_, **__: pytest.fail("it was loaded"))
    out = ["--out", str(tmp_path / "a.mp4"), "--model", str(tiny_folder), "--memory"]
    assert main(["generate", "a cat", *out, "auto"]) == 2
    assert "not enough memory" in capsys.readouterr().err
    assert main(["generate", "a cat", *out, "80gb"]) == 2
    assert "--memory none" in capsys.readouterr().err


def test_a_huge_clip_of_a_small_model_is_weighed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda device: (None, 1e9))
    model = Model(model=str(tiny_folder))
    assert profile_for(model, None, None) is None
    with pytest.raises(InputError, match="not enough memory"):
        profile_for(model, (1024, 1024), 253)


def test_processes_on_one_machine_divide_its_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SMALL", 0)
    monkeypatch.setattr(estimate, "free_memory", lambda device: (None, 5e9))
    model = Model(model=str(tiny_folder))
    assert profile_for(model, None, None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "10")
    with pytest.raises(InputError, match="not enough memory"):
        profile_for(model, None, None)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[...] not enough memory: you tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_names_the_next_three_switches(error: BaseException) -> None:
    with (
        pytest.raises(PusaError) as caught,
        profiles.explained("24gb", geometry=WAN, on_cpu=False, size=(832, 480), frames=81),
    ):
        raise error
    assert "try --memory 16gb, --frames 45 or --size 608x352" in str(caught.value)
    with pytest.raises(PusaError, match="--memory cpu") as caught, profiles.explained(None, geometry=WAN, on_cpu=True):
        raise error
    last = r"try fewer --frames, a smaller --size or a smaller --model"
    with pytest.raises(PusaError, match=last), profiles.explained("8gb", geometry=WAN, on_cpu=True):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), profiles.explained("24gb", geometry=WAN, on_cpu=True):
        raise RuntimeError("shapes differ")


@pytest.mark.slow
def test_predictions_hold_within_15_percent() -> None:
    """Two blocks of Wan2.1-1.3B's width in processes of their own."""
    script = Path(__file__).parents[3] / "benchmarks" / "memory.py"
    sizes = ["--blocks", "2", "--sizes", "256x256x9", "640x384x9", "--steps", "1"]
    done = subprocess.run([sys.executable, script, *sizes, "--json"], capture_output=True, text=True, check=True)
    for row in json.loads(done.stdout.splitlines()[-1]):
        assert row["share"] == pytest.approx(1, abs=0.15)


def test_what_an_acceleration_keeps_is_counted(tiny_folder: Path) -> None:
    """The random model has two blocks of width 32; a clip of 9 frames of 64x64 has three latent frames of 16 tokens."""
    options = {"size": (64, 64), "frames": 9, "guidance": 2.0}
    plain = Rehearsal.of("tiny", tiny_folder, **options)
    state = 3 * (64 // 8 // 2) ** 2 * 32 * 4
    blocks = int(json.loads((tiny_folder / "transformer" / "config.json").read_text())["num_layers"])
    for name in POLICIES:
        fixed, for_each_block = Acceleration.parse(name).kept_states
        kept = Rehearsal.of("tiny", tiny_folder, **options, kept_states=(fixed, for_each_block))
        assert kept.kept - plain.kept == 2 * (fixed + for_each_block * blocks) * state
        assert kept.needs(PLAIN).host["sample"] > plain.needs(PLAIN).host["sample"]
