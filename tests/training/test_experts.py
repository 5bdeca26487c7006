"""One expert of two is trained at a time, and its LoRA goes back onto that one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pusa.cli import main
from pusa.embedded import world
from pusa.media.videos import write_video


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed in range(2):
        scene = world.sample(seed)
        write_video(folder / f"{seed}.mp4", world.render(scene), world.FPS)
        (folder / f"{seed}.txt").write_text(scene.caption)
    return folder


def test_the_lora_of_an_expert_goes_back_onto_it(
    experts_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*tokens: str | Path) -> dict[str, Any]:
        code = main([*map(str, tokens), "--json"])
        said = json.loads(capsys.readouterr().out)
        return said | {"code": code}

    def train(name: str, *options: str) -> dict[str, Any]:
        short = ("--train.steps", "2", "--lora.rank", "2", "--data.held-out", "0", "--validate.every", "0")
        return ask("train", "--model.source", experts_folder, "--data", clips, "--out", tmp_path / name,
                   "--data.cache", tmp_path / "cache", *short, *options)  # fmt: skip

    refused = train("both")
    assert refused["code"] == 2
    assert "which are trained one at a time: set model.expert to high or low" in refused["error"]["message"]
    assert train("low", "--model.expert", "low", "--model.full-range", "false")["code"] == 0
    file = tmp_path / "low" / "lora.safetensors"
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["pusa.expert"] == "low"
    made = ("generate", "a red circle", "--model", experts_folder, "--steps", "2", "--out", tmp_path / "clip.mp4")
    wrong = ask(*made, "--lora", file)
    assert wrong["code"] == 2
    assert "is for the low-noise expert: give it with --lora-low" in wrong["error"]["message"]
    assert ask(*made, "--lora-low", file)["code"] == 0
    (lora,) = json.loads((tmp_path / "clip.json").read_text())["loras"]
    assert (lora["expert"], lora["path"]) == ("low", str(file))
