"""`pusa export`, run like the console command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa import embedded
from pusa.cli import main
from pusa.training.trainer import train
from tests.training.small import Samples, components, config

Pusa = Callable[..., dict[str, Any]]


@pytest.fixture
def pusa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pusa:
    """Run `pusa export ... --json` in an empty folder that holds a.safetensors; its JSON with the exit code."""
    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"diffusion_model.blocks.{block}.self_attn.{name}.lora_{side}.weight": torch.randn(shape, generator=rng) * 0.1
        for block in range(2)
        for name in "qkvo"
        for side, shape in (("A", (6, 32)), ("B", (32, 6)))
    }
    save_file(tensors, "a.safetensors")

    def call(*tokens: str) -> dict[str, Any]:
        code = main(["export", *tokens, "--json"])
        captured = capsys.readouterr()
        return {"code": code, "stderr": captured.err, **json.loads(captured.out)}

    return call


def test_names_rank_and_type(pusa: Pusa) -> None:
    done = pusa("a.safetensors", "--to", "diffusers", "--rank", "2", "--dtype", "bfloat16", "--out", "b.safetensors")
    assert (done["code"], done["path"], done["modules"], done["ranks"]) == (0, "b.safetensors", 8, [2])
    assert done["dtypes"] == ["bfloat16"]
    energy = done["kept_energy"]
    assert 0 < energy["least"] <= energy["median"] < 1
    assert len(energy["modules"]) == 8
    tensors = load_file("b.safetensors")
    assert tensors["transformer.blocks.1.attn1.to_out.0.lora_B.weight"].shape == (32, 2)
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_what_is_said_and_where(pusa: Pusa, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ["export", "a.safetensors", "--to", "kohya", "--rank", "2", "--out"]
    assert main([*tokens, "b.safetensors"]) == 0
    said = capsys.readouterr()
    assert said.out == "b.safetensors\n"
    assert "8 layers, rank 2, float32" in said.err
    assert "% of the LoRA's energy; per layer: median " in said.err
    assert "least " in said.err
    assert "blocks." in said.err
    assert main([*tokens, "c.safetensors", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["export", "a.safetensors", "--to", "kohya", "--rank", "6", "--out", "d.safetensors"]) == 0
    assert "kept 100.000 % of" in capsys.readouterr().err
    assert main(["export", "a.safetensors", "--to", "kohya", "--rank", "7", "--out", "e.safetensors"]) == 0
    assert "no rank was reduced: the highest rank is 6, below 7" in capsys.readouterr().err


def test_merged(pusa: Pusa, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = pusa("a.safetensors", "--to", "merged", "--model", str(tiny_folder), "--scale", "0.5", "--out", "m")
    assert (done["code"], done["path"], done["scale"]) == (0, "m", 0.5)
    name, lora = "transformer/diffusion_pytorch_model.safetensors", load_file("a.safetensors")
    before, after = load_file(tiny_folder / name), load_file(Path("m") / name)
    stem = "diffusion_model.blocks.0.self_attn.q.lora_"
    expected = before["blocks.0.attn1.to_q.weight"] + 0.5 * lora[f"{stem}B.weight"] @ lora[f"{stem}A.weight"]
    torch.testing.assert_close(after["blocks.0.attn1.to_q.weight"], expected)
    failed = pusa("a.safetensors", "--to", "merged", "--model", str(tiny_folder), "--out", "a.safetensors/m")
    assert (failed["code"], failed["error"]["message"]) == (
        2,
        "cannot write a.safetensors/m: there is no folder a.safetensors; make it first",
    )
    clip = ["generate", "a red circle", "--frames", "5", "--steps", "1", "--out", "x.mp4", "--model", "m"]
    assert main([*clip, "--quiet"]) == 0, capsys.readouterr().err


def test_the_embedded_adapter_goes_round(pusa: Pusa) -> None:
    source = embedded.adapter()
    if not source.is_file():
        pytest.skip("no embedded model in this installation")
    for tokens in ([str(source), "--to", "diffusers", "--out", "b.safetensors"],
                   ["b.safetensors", "--to", "kohya", "--out", "c.safetensors"],
                   ["c.safetensors", "--to", "comfy", "--out", "d.safetensors"]):  # fmt: skip
        assert pusa(*tokens)["code"] == 0
    one, two = load_file(source), load_file("d.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--to", "merged", "--out", "m"], ["--model"]),
        (["--to", "kohya", "--scale", "2", "--out", "b.safetensors"], ["--scale", "--to merged"]),
        (["--to", "kohya", "--model", "tiny-base", "--out", "b.safetensors"], ["--model", "--to merged"]),
        (["--to", "kohya", "--out", "a.safetensors"], ["a.safetensors exists already"]),
        (["--to", "kohya", "--out", "a.safetensors", "--overwrite"], ["is the LoRA that is read"]),
        (["--to", "kohya", "--ema", "0.1", "--out", "b.safetensors"], ["--ema needs the folder of a run"]),
        (["--to", "kohya", "--step", "5", "--out", "b.safetensors"], ["--step needs --ema"]),
        (["--to", "kohya", "--rank", "0", "--out", "b.safetensors"], ["--rank 0: give 1 or more"]),
        (["--to", "kohya", "--rank", "2.5", "--out", "b.safetensors"], ["whole number"]),
        (["--to", "merged", "--model", "tiny-base", "--scale", "nan", "--out", "m"], ["--scale", "finite"]),
        (["--to", "merged", "--model", "tiny-bose", "--out", "m"], ["tiny-bose", "did you mean 'tiny-base'"]),
    ],
)  # fmt: skip
def test_wrong_usage(pusa: Pusa, tmp_path: Path, tokens: list[str], words: list[str]) -> None:
    content = Path("a.safetensors").read_bytes()
    result = pusa("a.safetensors", *tokens)
    message = result["error"]["message"]
    assert result["code"] == 2, message
    assert all(word in message for word in words), message
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert Path("a.safetensors").read_bytes() == content


def test_a_run_at_another_averaging_length(pusa: Pusa, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(train={"ema": "post-hoc"}, save={"every": 2})
    train(settings, "run", components=components(), samples=Samples())
    assert pusa("run", "--to", "comfy", "--out", "own.safetensors")["code"] == 0
    own = load_file("run/lora.safetensors")
    assert all(torch.equal(own[key], value) for key, value in load_file("own.safetensors").items())

    done = pusa("run", "--ema", "0.2", "--to", "kohya", "--rank", "1", "--out", "long.safetensors")
    assert (done["code"], done["ranks"]) == (0, [1])
    assert done["ema"].pop("misfit") < 0.25
    assert done["ema"] == {"sigma_rel": 0.2, "step": 12, "snapshots": 6}
    assert (
        pusa("run", "--ema", "0.05", "--step", "8", "--to", "comfy", "--out", "short.safetensors")["ema"]["step"] == 8
    )
    key = "diffusion_model.blocks.0.self_attn.q.lora_B.weight"
    assert not torch.equal(load_file("short.safetensors")[key], own[key])

    assert main(["export", "run", "--ema", "0.15", "--to", "comfy", "--out", "b.safetensors"]) == 0
    assert (
        "average of relative length 0.15 at step 12 of the run run, computed from 6 snapshots"
        in capsys.readouterr().err
    )
    failed = pusa("run", "--ema", "0.5", "--to", "comfy", "--out", "c.safetensors")
    assert failed["code"] == 2
    assert "between 0 and 0.28" in failed["error"]["message"]
    assert not Path("c.safetensors").exists()


def test_overwrite_replaces_another_file(pusa: Pusa) -> None:
    Path("b.safetensors").write_text("old")
    assert pusa("a.safetensors", "--to", "comfy", "--out", "b.safetensors")["code"] == 2
    assert Path("b.safetensors").read_text() == "old"
    assert pusa("a.safetensors", "--to", "comfy", "--out", "b.safetensors", "--overwrite")["code"] == 0
    assert load_file("b.safetensors").keys() == load_file("a.safetensors").keys()
