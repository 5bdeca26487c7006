"""Variants of a clip: `pusa generate --from CLIP.json` with options that change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from pusa.cli import main
from pusa.files import sha256
from pusa.media.images import write_image

Pusa = Callable[..., dict[str, Any]]


@pytest.fixture
def pusa(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Pusa:
    """Run a command line with --json in a folder with `first.json`, a clip of seed 3; returns its JSON and sidecar."""
    monkeypatch.chdir(tmp_path)
    write_image("a.png", np.full((32, 32, 3), 90, np.uint8))

    def call(*tokens: str) -> dict[str, Any]:
        code = main([*tokens, "--json"])
        said: dict[str, Any] = {"code": code, **json.loads(capsys.readouterr().out)}
        if "clips" in said:
            said["recipe"] = json.loads(Path(said["clips"][0]["sidecar"]).read_text())
        return said

    usual = ["--seed", "3", "--steps", "3", "--solver", "dpm++2m", "--negative-prompt", "grey", "--fit", "pad"]
    first = call("generate", "x", "--image", "a.png", *usual, "--model", str(tiny_folder), "--out", "first.mp4")
    assert first["code"] == 0
    return call


def latents(clip: str) -> Tensor:
    return load_file(Path(clip).with_suffix(".latents.safetensors"))["latents"]


def test_a_variant_is_the_clip_that_the_changed_command_makes(pusa: Pusa, tiny_folder: Path) -> None:
    variant = pusa("generate", "--from", "first.json", "--seed", "0", "--steps", "2")
    assert Path(variant["clips"][0]["path"]).name == "x_0_32x32x17_steps2.mp4"
    usual = ["--seed", "0", "--steps", "2", "--solver", "dpm++2m", "--negative-prompt", "grey", "--fit", "pad"]
    whole = pusa("generate", "x", "--image", "a.png", *usual, "--model", str(tiny_folder), "--out", "whole.mp4")
    assert latents(variant["clips"][0]["path"]).equal(latents("whole.mp4"))
    about = variant["recipe"].pop("variant_of")
    assert about == {
        "path": str(Path("first.json").resolve()),
        "sha256": sha256(Path("first.mp4")),
        "changed": {"steps": {"from": 3, "to": 2}, "seed": {"from": 3, "to": 0}},
    }
    assert variant["recipe"]["conditions"] == whole["recipe"]["conditions"]
    assert variant["recipe"]["solver"] == "dpm++2m"


def test_a_variant_makes_itself_again_and_variants(pusa: Pusa) -> None:
    variant = pusa("generate", "--from", "first.json", "--prompt", "y", "--out", "second.mp4")
    again = pusa("generate", "--from", "second.json", "--out", "again.mp4")
    assert latents("again.mp4").equal(latents("second.mp4"))
    assert again["recipe"].get("variant_of") is None
    assert variant["recipe"]["prompt"] == again["recipe"]["prompt"] == "y"
    third = pusa("generate", "--from", "second.json", "--fit", "crop", "--out", "third.mp4")
    assert third["recipe"]["variant_of"]["changed"] == {"fit": {"from": "pad", "to": "crop"}}


def test_variants_of_consecutive_seeds_load_the_model_once(pusa: Pusa, monkeypatch: pytest.MonkeyPatch) -> None:
    from pusa.generation import provenance

    loads: list[Any] = []
    load = provenance.load
    monkeypatch.setattr(provenance, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    variants = pusa("generate", "--from", "first.json", "--count", "2", "--seed", "8", "--out", "made")
    assert [clip["seed"] for clip in variants["clips"]] == [8, 9]
    assert len(loads) == 1


def test_a_matrix_and_new_pictures_replace_the_old_ones(pusa: Pusa) -> None:
    Path("m.json").write_text('{"sigma": [[0, 1, 1, 1, 1], [0, 0.5, 0.5, 1, 1], [0, 0, 0, 0, 0]]}')
    own = pusa("generate", "--from", "first.json", "--matrix", "m.json", "--out", "own.mp4")
    assert own["recipe"]["own_matrix"] is True
    assert own["recipe"]["steps"] == 2
    write_image("b.png", np.zeros((32, 32, 3), np.uint8))
    moved = pusa("generate", "--from", "first.json", "--last-image", "b.png", "--out", "moved.mp4")
    assert [c["frame"] for c in moved["recipe"]["conditions"]] == [16]
    assert moved["recipe"]["variant_of"]["changed"]["conditions"]["to"][0]["src"] == "b.png"


def test_a_variant_says_what_becomes_of_its_pictures(pusa: Pusa) -> None:
    write_image("wide.png", np.zeros((32, 48, 3), np.uint8))
    cut = "wide.png: its 48x32 pixels become 32x32, without 8 columns at each side (--fit pad keeps them)."
    new = pusa("generate", "--from", "first.json", "--image", "wide.png", "--fit", "crop", "--count", "2")
    assert new["notes"] == [cut]
    remade = pusa("generate", "--from", new["clips"][0]["sidecar"], "--out", "again.mp4")
    assert "notes" not in remade


def test_an_extension_has_variants_too(pusa: Pusa, tiny_folder: Path) -> None:
    pusa("extend", "first.mp4", "x", "--frames", "4", "--overlap", "5", "--model", str(tiny_folder), "--out", "e.mp4")
    variant = pusa("generate", "--from", "e.json", "--seed", "6")
    assert variant["recipe"]["task"] == "extend"
    assert variant["clips"][0]["frames"] == 21
    assert Path(variant["clips"][0]["path"]).name == "first_extended_6.mp4"
    other = pusa("generate", "--from", "e.json", "--prompt", "a Blue square", "--size", "32x48", "--solver", "dpm++2m")
    assert Path(other["clips"][0]["path"]).name == "first_extended_0_a-blue-square_32x48_solverdpm++2m.mp4"
    refused = pusa("generate", "--from", "e.json", "--matrix", "m.json")
    assert "pusa extend" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--model", "tiny"], "--from uses the model"),
        (["--lora", "a.safetensors"], "--from uses the model"),
        (["--frames", "16"], "use 13 or 17"),
        (["--size", "33x32"], "32x32"),
        (["--boundary", "0.9"], "one transformer"),
        (["--edit", "first.mp4"], "--from keeps the clip to edit"),
        (["--seed", "4", "--out", "first.mp4", "--overwrite"], "from which it is made"),
        (["--last-image", "lost.png"], "lost.png"),
    ],
)
def test_wrong_changes_are_told_before_the_model_is_loaded(
    pusa: Pusa, tokens: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.generation.provenance.load", lambda *_, **__: pytest.fail("the model was loaded"))
    refused = pusa("generate", "--from", "first.json", *tokens)
    assert refused["code"] == 2
    assert words in refused["error"]["message"]
    assert "\n" not in refused["error"]["message"]
