"""A clip that cannot be saved is refused before a model is loaded; a path is kept byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pusa.cli import main
from pusa.media.images import write_image
from pusa.media.videos import write_video

CAFE = os.fsdecode(b"caf\xe9")
"""A name whose last byte is not UTF-8."""
QUICK = ("--steps", "1", "--frames", "5", "--size", "32x32")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command line that must fail without loading the model or leaving a file; returns its sentence."""
    for verb in ("generate", "extend", "transition"):
        monkeypatch.setattr(f"pusa.cli.{verb}.open_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))

    def call(*tokens: str) -> str:
        before = sorted(folder.rglob("*"))
        assert main([*tokens, "--model", str(tiny_folder)]) == 2
        assert sorted(folder.rglob("*")) == before
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    return call


def test_paths_that_are_not_utf8_are_kept(folder: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_image(f"{CAFE}.png", np.full((32, 32, 3), 90, np.uint8))
    command = ["generate", "a", "--image", f"{CAFE}.png", *QUICK, "--model", str(tiny_folder), "--out", f"{CAFE}.mp4"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)["clips"][0]
    assert said["path"] == f"{CAFE}.mp4"
    first = json.loads(Path(said["sidecar"]).read_text())
    assert first["conditions"][0]["path"] == str(folder / f"{CAFE}.png")
    more = ["extend", f"{CAFE}.mp4", "--frames", "4", "--overlap", "5", "--steps", "1", "--model", str(tiny_folder)]
    assert main([*more, "--out", f"more-{CAFE}.mp4", "-q"]) == 0
    assert "latents_sha256" in json.loads(Path(f"more-{CAFE}.json").read_text())["clip"]
    for name in (CAFE, f"more-{CAFE}"):
        assert main(["generate", "--from", f"{name}.json", "--out", f"again-{name}.mp4"]) == 0
        assert "identical" not in capfd.readouterr().err
        old, new = (json.loads(Path(f"{x}.json").read_text()) for x in (name, f"again-{name}"))
        assert old["result"]["latents_sha256"] == new["result"]["latents_sha256"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_stdout_has_the_bytes_of_a_path(folder: Path, encoding: str) -> None:
    """A script that reads the path gets the file, whatever the encoding of stdout."""
    program = (
        f"from pusa.cli.shared.terminal import Report, print_anything; print_anything(); Report({{}}, {CAFE + '→'!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}.print(False)"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.stdout.strip() == b"caf\xe9" + ("→".encode() if encoding == "utf-8" else rb"\u2192"), done.stderr


@pytest.mark.parametrize("option", ["prompt", "negative prompt"])
def test_a_prompt_that_cannot_be_saved_is_refused(refused: Callable[..., str], option: str) -> None:
    given = [CAFE] if option == "prompt" else ["a", "--negative-prompt", CAFE]
    assert r"The text 'caf\udce9' has a byte that is not UTF-8" in refused("generate", *given)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("x" * 240 + ".mp4", "the name has 260 bytes, and a file name has at most 255; choose a shorter one"),
        ("y" * 256 + "/clip.mp4", "the name has 256 bytes"),
        ("/".join(["z" * 200] * 30) + "/clip.mp4", "it is too long"),
        ("note.txt/clip.mp4", "note.txt is a file, not a folder"),
        ("note.txt/clips", "note.txt is a file, not a folder"),
        ("notes.mp4", "notes.json exists already; give --overwrite"),
        ("made.mp4", "it is a folder"),
    ],
)
def test_a_place_where_no_clip_can_be_saved_is_refused(
    refused: Callable[..., str], folder: Path, out: str, says: str
) -> None:
    (folder / "note.txt").write_text("mine")
    (folder / "notes.json").write_text("{}")
    (folder / "made.latents.safetensors").mkdir()
    assert says in refused("generate", "a", "--out", out)
    write_video("clip.mp4", np.zeros((9, 32, 32, 3), np.uint8), 8)
    assert says in refused("extend", "clip.mp4", "a", "--out", out)
    assert says in refused("transition", "clip.mp4", "clip.mp4", "--out", out)


def test_a_full_disk_is_told_before_the_model_loads(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 99})())
    assert "and the disk has 0.0 MB left; free some space" in refused("generate", "a", *QUICK)


def test_a_clip_does_not_replace_what_it_is_made_from(refused: Callable[..., str]) -> None:
    write_video("clip.mp4", np.zeros((9, 32, 32, 3), np.uint8), 8)
    assert "The clip would replace clip.mp4" in refused("extend", "clip.mp4", "--overwrite", "--out", "clip.mp4")
    assert "The clip would replace clip.mp4" in refused(
        "generate", "--edit", "clip.mp4", "--overwrite", "--out", "clip.mp4"
    )
    Path("zoom.json").write_text("[[1, 1], [0, 0]]")
    given = ("--matrix", "zoom.json", "--overwrite", "--out", "zoom.mp4")
    assert "The clip would replace zoom.json" in refused("generate", "a", *given)


def test_default_names_are_cut_to_what_a_disk_takes(folder: Path, tiny_folder: Path) -> None:
    source = "é" * 125 + ".mp4"
    write_video(source, np.zeros((9, 32, 32, 3), np.uint8), 8)
    options = ["--frames", "4", "--overlap", "5", "--steps", "1", "--model", str(tiny_folder), "-q"]
    assert main(["extend", source, *options]) == 0
    (made,) = Path("outputs").glob("*.mp4")
    assert made.name.startswith("é" * 9)
    assert made.name.endswith("_extended_0.mp4")
    assert len(os.fsencode(made.stem)) in (234, 235)


def test_a_recipe_may_be_replaced_by_its_own_clip(folder: Path, tiny_folder: Path) -> None:
    assert main(["generate", "a", *QUICK, "--model", str(tiny_folder), "--out", "clip.mp4", "-q"]) == 0
    Path("clip.mp4").unlink()
    assert main(["generate", "a", *QUICK, "--model", str(tiny_folder), "--out", "clip.mp4", "-q"]) == 2
    assert main(["generate", "--from", "clip.json", "--out", "clip.mp4", "-q"]) == 0


def test_a_file_that_appears_while_a_clip_is_made_costs_nothing(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pusa.generation.pipeline import Pipeline

    decode = Pipeline.decode

    def meanwhile(pipe: Pipeline, z: object) -> object:
        Path("clip.json").write_text("mine")
        return decode(pipe, z)  # type: ignore[arg-type]

    monkeypatch.setattr(Pipeline, "decode", meanwhile)
    assert main(["generate", "a", *QUICK, "--model", str(tiny_folder), "--out", "clip.mp4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "clip_2.mp4\n"
    assert "written by another program meanwhile, so the clip is saved as clip_2.mp4" in captured.err
    assert Path("clip.json").read_text() == "mine"
    assert Path("clip_2.json").is_file()


def test_the_page_of_clips_names_a_path_that_is_not_utf8(
    folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a", *QUICK, "--model", str(tiny_folder), "--count", "2", "--json"]
    assert main([*command, "--out", f"{CAFE}.mp4"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "caf%E9_0.mp4" in Path(said["page"]).read_text()


def test_clips_without_their_page_are_no_failure(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pusa.cli.shared.gallery.write_text_atomic", fail)
    command = ["generate", "a", *QUICK, "--model", str(tiny_folder), "--count", "2", "--out", "clip.mp4"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["clip_0.mp4", "clip_1.mp4"]
    assert "The page of all clips was not written: No space left on device" in captured.err
