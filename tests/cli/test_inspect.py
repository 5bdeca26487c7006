from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pusa import embedded
from pusa.cli import main
from pusa.media.images import write_image
from pusa.media.videos import read_video, write_video


def ask(capsys: pytest.CaptureFixture[str], *tokens: str | Path) -> tuple[int, Any]:
    code = main([*map(str, tokens), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_attention_of_a_clip_that_is_the_usual_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 90, np.uint8))
    say = ("a red circle moves left", "--image", tmp_path / "grey.png", "--steps", "3", "--seed", "2")
    code, found = ask(capsys, "inspect", "attention", *say, "--out", tmp_path / "at", "--blocks", "0", "6")
    assert code == 0
    assert {(one["step"], one["block"]) for one in found["maps"]} == {(s, b) for s in (0, 1, 2) for b in (0, 6)}
    assert (tmp_path / "at" / "attention.png").exists()
    main(["generate", *map(str, say), "--out", str(tmp_path / "usual.mp4"), "--quiet"])
    assert np.array_equal(read_video(tmp_path / "at" / "clip.mp4")[0], read_video(tmp_path / "usual.mp4")[0])


def test_heads_and_a_clip_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "grey.mp4", np.full((9, 64, 64, 3), 90, np.uint8), 8)
    say = ("attention", "a red circle moves left", "--video", f"{tmp_path / 'grey.mp4'}@0", "--steps", "1")
    code, found = ask(capsys, "inspect", *say, "--per-head", "--guidance", "1", "--out", tmp_path / "at")
    assert code == 0
    (one,) = found["maps"]
    heads = np.array(one["heads"])
    assert heads.shape == (8, 5, 5)
    assert np.allclose(heads.mean(axis=0), one["attention"], atol=1e-6)
    assert one["first_frame_share"] == pytest.approx(np.mean(one["attention"][1:], axis=0)[0])
    assert json.loads((tmp_path / "at" / "attention.json").read_text())["maps"] == found["maps"]


def test_without_the_extra_nothing_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pusa.evaluation.plots", raising=False)
    monkeypatch.delattr("pusa.evaluation.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, found = ask(capsys, "inspect", "attention", "x", "--out", tmp_path / "at")
    assert code == 2
    assert found["error"]["message"] == "matplotlib is not installed: run `pip install 'pusa[eval]'`."
    assert not (tmp_path / "at").exists()


def test_weights_of_a_lora_and_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = f"{embedded.STRENGTH / 2:g}"
    lora = f"{embedded.adapter()}:{half}"
    transformer = embedded.folder() / "transformer"
    code, found = ask(capsys, "inspect", "weights", "tiny-base", transformer, "tiny", "--lora", lora, "--out", tmp_path)
    assert code == 0
    attention = found["components"]["self-attention"]
    assert set(attention) == {f"pusa × {half}", "embedded/tiny", "tiny"}
    assert attention["embedded/tiny"] == 0
    assert attention[f"pusa × {half}"] > 0.05
    assert attention["tiny"] == pytest.approx(2 * attention[f"pusa × {half}"])
    assert found["layers"]["self-attention, k"]["tiny"] > attention["tiny"]
    assert sum(found["share_of_change"]["tiny"].values()) == pytest.approx(1)
    assert len(found["blocks"]) == 7
    assert all(Path(file).is_file() for file in found["files"])


def test_a_table_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies = [tmp_path / name / "lora.safetensors" for name in ("one", "two")]
    for copy in copies:
        copy.parent.mkdir()
        copy.write_bytes(embedded.adapter().read_bytes())
    loras = [part for copy in copies for part in ("--lora", str(copy))]
    assert main(["inspect", "weights", "tiny-base", *loras, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[-6:] == ["one", "×", "1", "two", "×", "1"]
    assert any(line.startswith("self-attention") and line.count("%") == 4 for line in said)
    assert any(line.startswith("  k ") for line in said)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (("attention", "x", "--steps", "2", "--at-steps", "2"), "there are 2 steps; give 0 to 1"),
        (("attention", "x", "--steps", "2", "--blocks", "8"), "There is no block 8"),
        (("attention", "x", "--steps", "2", "--blocks", "-1"), "There is no block -1"),
        (("attention", "x", "--frames", "1"), "has no attention between frames"),
        (("attention", "x", "--accelerate", "steps"), "An acceleration leaves attention out"),
        (("attention", "x", "--noise", "0.3"), "none is given"),
        (("weights", "tiny-base"), "nothing to compare"),
        (("weights", "tiny", "tiny-base"), "tiny is tiny-base with a LoRA"),
        (("weights", "tiny-base", "/nowhere"), "There is no model '/nowhere'"),
        (("weights", "tiny-base", "--lora", "/nowhere.safetensors"), "does not exist"),
    ],
)
def test_bad_input(tokens: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = ask(capsys, "inspect", *tokens, "--out", tmp_path / "out")
    assert code == 2
    assert sentence in found["error"]["message"]
    assert not list(tmp_path.rglob("*.*"))
