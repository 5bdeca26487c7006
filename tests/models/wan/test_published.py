"""The configurations of Wan's published models, which answer without a network."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from pusa.cli import main
from pusa.models.loading import configurations, sources
from pusa.models.wan import published

PARAMETERS = {
    "Wan2.1-T2V-1.3B": 1_418_996_800,
    "Wan2.1-T2V-14B": 14_288_491_584,
    "Wan2.2-T2V-A14B": 14_288_491_584,
}
"""of a transformer, as published"""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pusa.models.hub.snapshot", lambda *_: pytest.fail("the hub was asked"))


def test_the_names_are_those_of_both_layouts() -> None:
    short = {name.removeprefix("Wan-AI/").removesuffix("-Diffusers") for name in published.names()}
    assert short == {*PARAMETERS, "Wan2.2-TI2V-5B"}
    assert len(published.names()) == 2 * len(short)
    assert published.folder("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers") is None
    assert published.folder("someone/Wan2.1-T2V-14B-Diffusers") is None
    assert published.folder("Wan-AI/..") is None


@pytest.mark.parametrize("hub_id", published.names())
def test_a_model_is_described_without_a_network(hub_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = sources.find(hub_id, ())
    kinds = configurations.check(name, folder)
    assert kinds == ["transformer", "transformer_2"] if "A14B" in hub_id else kinds == ["transformer"]
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(sources.config(name, folder, "transformer"))
        encoder = UMT5EncoderModel(UMT5Config(**sources.config(name, folder, "text_encoder")))
        vae = AutoencoderKLWan.from_config(sources.config(name, folder, "vae"))
    count = sum(p.numel() for p in transformer.parameters())
    assert count == PARAMETERS.get(folder.name, count)
    assert round(count / 1e9) == {"Wan2.1-T2V-1.3B": 1, "Wan2.2-TI2V-5B": 5}.get(folder.name, 14)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e8) == 57  # 5.7 billion, the encoder of umt5-xxl
    assert vae.config.z_dim == transformer.config.in_channels
    assert main(["info", hub_id, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    five = "5B" in hub_id
    assert (said["fps"], said["frames"], said["size"]) == ((24, 121, [1280, 704]) if five else (16, 81, [832, 480]))
    assert said.get("boundary") == (0.875 if "A14B" in hub_id else None)
    assert "refused" not in said
    assert "missing" not in json.dumps(said)


def test_the_memory_of_a_published_model_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "info",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "--memory",
        "24gb",
        "--rate",
        "100",
        "--frames",
        "5",
        "--json",
    ]
    assert main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)["profiles"]
    assert 1e9 < row["device"] < 24e9


def test_a_wrong_clip_of_a_published_model_is_refused_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--model", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "--size", "1280x720"]) == 2
    assert "1280x704" in capsys.readouterr().err
