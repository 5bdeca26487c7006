"""`pusa prepare` run like the console command, on a random model."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pusa.cli import main
from pusa.cli.shared.terminal import Terminal
from pusa.media.videos import write_video
from pusa.models.loading.checkpoints import load
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import samples
from pusa.training.data.cache import CachedSamples
from pusa.training.data.fingerprints import fingerprint

Pusa = Callable[..., dict[str, Any]]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_frames: Callable[..., NDArray[np.uint8]]) -> Path:
    """Four clips of 13 frames in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    Path("data").mkdir()
    for i in range(4):
        write_video(f"data/{i}.mp4", noise_frames(13, seed=i), 8)
        Path(f"data/{i}.txt").write_text(f"clip number {i}")
    return Path("data")


@pytest.fixture
def prepare(data: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Pusa:
    """Run `pusa prepare data ... --json`; returns its JSON with the exit code."""

    def call(*tokens: str, source: str = "data") -> dict[str, Any]:
        small = [] if "--data.buckets" in tokens else ["--data.buckets", "32x32x5"]
        code = main(["prepare", source, *tokens, *small, "--model.source", str(tiny_folder), "--json"])
        captured = capsys.readouterr()
        return {"code": code, "stderr": captured.err, **json.loads(captured.out or "{}")}

    return call


def numbers(result: dict[str, Any]) -> tuple[int, ...]:
    return tuple(result[name] for name in ("code", "made", "kept", "failed", "captions"))


def test_the_cache_it_makes_is_the_one_that_is_read(prepare: Pusa, tiny_folder: Path) -> None:
    first = prepare()
    assert numbers(first) == (0, 4, 0, 0, 5)
    assert (first["data"], first["cache"], first["buckets"]) == ("data", "runs/cache", {"32x32x5": 4})
    assert first["bytes"] == sum(path.stat().st_size for path in Path("runs/cache").rglob("*.safetensors"))
    assert numbers(prepare()) == (0, 0, 4, 0, 0)
    plan = samples.survey("data", [samples.Bucket(32, 32, 5)], 8, GEOMETRIES[16])
    cached = CachedSamples(plan, fingerprint(load(str(tiny_folder), device="cpu"), 8), Path("runs/cache"))
    assert [sample.caption for sample in cached] == [f"clip number {i}" for i in range(4)]


def test_other_cuts_buckets_and_rates_are_other_samples(prepare: Pusa) -> None:
    prepare()
    assert numbers(prepare("--data.cut", "slide")) == (0, 16, 4, 0, 0)
    assert numbers(prepare("--data.fps", "4")) == (0, 4, 0, 0, 0)
    result = prepare("--data.buckets", "32x32x9", "16x16x5")
    assert numbers(result) == (0, 4, 0, 0, 0)
    assert result["buckets"] == {"32x32x9": 4}
    assert numbers(prepare()) == (0, 0, 4, 0, 0)


def test_it_needs_no_transformer(
    prepare: Pusa, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    for file in (tmp_path / "model" / "transformer").glob("*.safetensors"):
        file.unlink()
    assert main(["prepare", "data", "--model.source", "model", "--data.buckets", "32x32x5", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("4 clips encoded")
    assert numbers(prepare()) == (0, 0, 4, 0, 0)


@pytest.mark.parametrize("place", ["/proc/nope", "data/0.mp4", "data/0.mp4/deeper", "n" * 300])
def test_a_cache_that_cannot_be_is_one_sentence(prepare: Pusa, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pusa.models.loading.checkpoints.load_encoders", lambda *_, **__: pytest.fail("weights were loaded")
    )
    result = prepare("--data.cache", place)
    assert result["code"] == 2
    message = result["error"]["message"]
    assert message.startswith(f"cannot write the cache into {place}: ")
    assert message.endswith("; choose another folder for it.")
    assert "Errno" not in message


def test_a_full_cache_may_be_read_only(prepare: Pusa, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    Path("runs/cache/claims").unlink()
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *rest, **more: read_only(opened, path, flags, *rest, **more))
    assert numbers(prepare()) == (0, 0, 4, 0, 0)
    Path("data/new.txt").write_text("new")
    shutil.copy("data/0.mp4", "data/new.mp4")
    with Path("data/new.mp4").open("ab") as file:
        file.write(b"\0" * 8)
    message = prepare()["error"]["message"]
    assert (
        message
        == "cannot write the cache into runs/cache: runs/cache is read-only for you; choose another folder for it."
    )


def read_only(opened: Callable[..., int], path: Any, flags: int, *rest: Any, **more: Any) -> int:
    """os.open on a file system that is mounted read-only; the tests may run as root, which permissions do not stop."""
    if "runs/cache" in str(path) and flags & (os.O_WRONLY | os.O_RDWR):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    return opened(path, flags, *rest, **more)


def test_a_caption_that_is_too_long_is_named_by_its_clip(prepare: Pusa) -> None:
    Path("data/2.txt").write_text("word " * 2000)
    result = prepare()
    assert numbers(result) == (0, 4, 0, 0, 5)
    assert "2.mp4: The prompt has " in result["stderr"]


def test_what_cannot_be_used_is_named_and_the_exit_code_is_1(prepare: Pusa) -> None:
    Path("data/1.mp4").write_bytes(Path("data/1.mp4").read_bytes()[:-100])
    Path("data/2.txt").unlink()
    result = prepare()
    assert numbers(result) == (1, 2, 0, 0, 3)
    assert {Path(each["path"]).name for each in result["problems"]} == {"1.mp4", "2.mp4"}


def test_for_people_there_is_a_line_per_problem_and_a_summary(
    prepare: Pusa, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data/2.txt").unlink()
    assert (
        main(["prepare", "data", "--model.source", str(tiny_folder), "--data.buckets", "32x32x5", "--data.cache", "c"])
        == 1
    )
    *problems, summary = capsys.readouterr().out.splitlines()
    assert len(problems) == 1
    assert "2.mp4 has no caption file 2.txt" in problems[0]
    assert summary.startswith("3 clips encoded, 0 already in the cache, 0 failed, 1 not used; 4 captions encoded;")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("--data.buckets", "32x32x6"), ("32x32x6", "4n+1")),
        (("--data.buckets", "40x32x5"), ("40x32x5", "multiples of 16")),
        (("--data.fps", "0"), ("data.fps is 0", "above 0")),
        (("--workers", "2"), ("--ray",)),
        (("--ray", "local", "--workers", "0"), ("--workers 0",)),
        (("--data.cut", "middle"), ("middle",)),
    ],
)
def test_wrong_arguments_are_refused(prepare: Pusa, tokens: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = prepare(*tokens)
    message = result["error"]["message"]
    assert result["code"] == 2
    assert all(word in message for word in words), message
    assert "Traceback" not in result["stderr"]
    assert not Path("runs").exists()


def test_no_data_is_refused(prepare: Pusa) -> None:
    assert prepare(source="nowhere")["code"] == 2


def test_without_ray_the_flag_asks_for_the_extra(prepare: Pusa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = prepare("--ray", "local")
    assert result["code"] == 2
    assert "pip install 'pusa[cluster]'" in result["error"]["message"]
    assert "\n" not in result["error"]["message"]


def test_under_torchrun_only_the_first_process_speaks(prepare: Pusa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert prepare() == {"code": 0, "stderr": ""}
    monkeypatch.setenv("RANK", "0")
    assert numbers(prepare()) == (0, 0, 4, 0, 0)
    assert prepare("--ray", "local")["code"] == 2


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(True).counting(every=0) as progress:
        progress("Verifying", 1, 1)
        progress("Encoding", 10, 1040)
        progress("Encoding", 20, 1040)
    with Terminal(True).counting(every=3600) as progress:
        progress("Encoding", 1, 2)
        progress("Encoding", 2, 2)
    with Terminal(False).counting(every=0) as progress:
        progress("Encoding", 1, 2)
    said = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+:\d\d left", "… left", line) for line in said] == [
        "Verifying (1)", "Encoding (1,040)", "Encoding: 20 of 1,040, … left", "Encoding (2)",
    ]  # fmt: skip


def test_without_a_terminal_the_stages_are_lines(
    data: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["prepare", str(data), "--model.source", str(tiny_folder), "--data.buckets", "32x32x5"]
    assert main(common) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if not re.search(r": \d+ of \d+", line)]
    # (a slow machine counts, too)
    assert said == ["Reading the clips (4)", f"Loading {tiny_folder}", "Verifying the cache (9)", "Encoding (9)"]
    for silent in ("--json", "--quiet"):
        assert main([*common, silent]) == 0
        assert capsys.readouterr().err == ""
