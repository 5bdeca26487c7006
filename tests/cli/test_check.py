"""`pusa check`, run like the console command: its report as text and as JSON, and its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import AutoTokenizer

from pusa.cli import main
from pusa.files import sha256
from pusa.media import videos
from pusa.models.loading import checkpoints
from pusa.training.config.tree import Config, read
from pusa.training.data.split import held_out

Frames = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def folder(tmp_path: Path, noise_frames: Frames) -> Path:
    made = tmp_path / "clips"
    made.mkdir()
    for seed, count in enumerate((40, 24, 17)):
        videos.write_video(made / f"clip{seed}.mp4", noise_frames(count, seed, (48, 32)), 8)
        (made / f"clip{seed}.txt").write_text(f"caption {seed}")
    return made


@pytest.fixture
def check(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(*tokens: str) -> dict[str, Any]:
        code = main(["check", *tokens, "--model.source", str(tiny_folder), "--json"])
        return {"code": code, **json.loads(capsys.readouterr().out)}

    return call


def test_a_good_folder(folder: Path, check: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("weights were loaded"))
    said = check(str(folder), "--price", "2")
    assert (said["code"], said["attention"], said["problems"]) == (0, False, [])
    assert said["buckets"] == [{"bucket": "32x32x17", "samples": 3, "clips": 3}]
    assert said["clips"]["fps"] == {"8": 3}
    assert said["clips"]["lengths"] == [2.125, 3.0, 5.0]
    assert said["estimate"]["samples"] == 900
    low, high = said["estimate"]["cost"]
    assert 0 < low < high
    assert said["estimate"]["memory"] > said["estimate"]["memory_checkpointed"] > 0


def test_the_settings_decide(folder: Path, check: Callable[..., dict[str, Any]]) -> None:
    said = check(str(folder), "--data.buckets", "32x32x33", "48x32x9", "--data.cut", "uniform", "--data.fps", "8")
    assert {row["bucket"]: row["samples"] for row in said["buckets"]} == {"32x32x33": 0, "48x32x9": 7}
    slower = check(
        str(folder), "--data.buckets", "32x32x9", "--data.fps", "4", "--train.steps", "3", "--train.batch", "5"
    )
    assert (slower["samples"], slower["estimate"]["samples"]) == (3, 15)


def test_a_preset_a_file_and_options_describe_the_training(
    folder: Path, tiny_folder: Path, tmp_path: Path, check: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The estimate is that of `pusa train` with the same preset, file and options."""
    plain = check(str(folder), "--data.held_out", "1")
    assert (plain["held_out"], plain["training_samples"]) == (1, 2)
    assert plain["estimate"]["samples"] == Config().train.steps
    preset = check(str(folder), "--preset", "tiny")
    train = read(None, "tiny", {}).train
    assert preset["estimate"]["samples"] == train.steps * train.batch
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"data: {{path: {folder}, buckets: [32x32x9, 16x16x17]}}\ntrain: {{steps: 7, accumulate: 3}}\nlora: null\n"
    )
    code = main(["check", str(file), "--train.batch", "2", "--model.source", str(tiny_folder), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (code, said["estimate"]["samples"]) == (0, 7 * 2 * 3)
    assert said["estimate"]["trained"] == said["estimate"]["parameters"]
    assert [row["bucket"] for row in said["buckets"]] == ["32x32x9", "16x16x17"]
    less = check(str(folder), "--train.precision", "bf16")
    assert less["estimate"]["weights"] == plain["estimate"]["weights"] / 2
    main(["check", str(file), "--model.source", str(tiny_folder), "--train.gradient_checkpointing", "true"])
    text = " ".join(capsys.readouterr().out.split())
    assert "with gradient checkpointing" in text
    assert "--train.gradient_checkpointing true, which takes" not in text


def test_a_memory_profile_is_predicted_as_it_will_be_trained(
    folder: Path, check: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    said = check(str(folder), "--memory", "12gb")["step_memory"]
    assert said["swapped"] == 0
    assert said["device"] < 12e9
    assert said["weights"] < check(str(folder), "--memory.swap", "1")["step_memory"]["weights"]
    assert check(str(folder))["step_memory"] is None
    main(["check", str(folder), "--model.source", str(tiny_folder), "--memory", "12gb"])
    assert "GB of the device (base" in " ".join(capsys.readouterr().out.split())


def test_captions_that_the_model_does_not_read_to_their_end_are_counted(
    folder: Path, check: Callable[..., dict[str, Any]], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(str(folder))["too_long"] == {"limit": 512, "clips": [], "unknown": None}
    words = AutoTokenizer.from_pretrained(tiny_folder / "tokenizer")
    long, fitting = "a red circle " * 60, "é" * 300
    assert len(words(long.strip()).input_ids) == 601
    assert len(words(fitting).input_ids) <= 512 < len(fitting.encode())
    (folder / "clip0.txt").write_text(long)
    (folder / "clip1.txt").write_text(fitting)
    said = check(str(folder))
    assert (said["code"], said["too_long"]["clips"]) == (0, [{"path": str(folder / "clip0.mp4"), "tokens": 601}])
    assert main(["check", str(folder), "--model.source", str(tiny_folder)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "1 caption has more than 512 tokens, and the model does not read the rest: clip0.mp4 (601). Shorten it." in text
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"), ("{", "cannot be loaded")],
)
def test_a_tokenizer_that_cannot_be_read_leaves_long_captions_uncounted(
    folder: Path, tiny_folder: Path, tmp_path: Path, content: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (model / "tokenizer" / "tokenizer.json").write_text(content)
    (folder / "clip0.txt").write_text("a red circle " * 60)
    assert main(["check", str(folder), "--model.source", str(model), "--json"]) == 0
    assert reason in json.loads(capsys.readouterr().out)["too_long"]["unknown"]


def test_what_needs_attention_is_named_and_exit_code_1(
    folder: Path, noise_frames: Frames, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos.write_video(folder / "brief.mp4", noise_frames(11, 9), 8)
    (folder / "brief.txt").write_text("brief")
    shutil.copy(folder / "clip0.mp4", folder / "twin.mp4")
    (folder / "twin.txt").write_text("twin")
    (folder / "bad.mp4").write_bytes(b"bad")
    (folder / "notes.pdf").write_bytes(b"pdf")
    assert main(["check", str(folder), "--model.source", str(tiny_folder)]) == 1
    text = capsys.readouterr().out
    for line in (
        "3 of 6 clips are not used",
        "1 too short at 8 fps (longest bucket that fits: 9 frames)",
        "brief.mp4  has only 11 of the 17 frames needed at 8 fps; the bucket 32x32x9 fits",
        "twin.mp4  is the same file as clip0.mp4",
        "bad.mp4  has no caption file bad.txt; write one",
        "notes.pdf  is not a clip",
        "32x32x17",
    ):
        assert line in text, line
    assert "Traceback" not in text
    assert main(["check", str(folder), "--model.source", str(tiny_folder), "--quiet"]) == 1
    assert capsys.readouterr().out == "3 of 6 clips are used\n"


def test_cropping_is_said_before_training(
    folder: Path, noise_frames: Frames, tiny_folder: Path, check: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, size in (("tall", (32, 64)), ("nearly", (34, 32))):
        videos.write_video(folder / f"{name}.mp4", noise_frames(17, 7, size), 8)
        (folder / f"{name}.txt").write_text(name)
    (row,) = check(str(folder), "--data.buckets", "32x32x17")["cropped"]
    assert row == {
        "bucket": "32x32x17", "clips": 4, "least": 0.3333, "most": 0.5, "worst": str(folder / "tall.mp4"),
    }  # fmt: skip
    main(["check", str(folder), "--model.source", str(tiny_folder), "--data.buckets", "32x32x17"])
    text = " ".join(capsys.readouterr().out.split())
    assert "32x32x17 crops 33 to 50 % of the picture from 4 clips, most from tall.mp4" in text
    assert check(str(folder), "--data.buckets", "48x32x17", "32x64x17", "32x32x17")["cropped"] == []


def test_it_names_the_buckets_that_keep_what_is_cropped(
    folder: Path, noise_frames: Frames, tiny_folder: Path, check: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, size in (("tall", (64, 128)), ("square", (96, 96))):
        videos.write_video(folder / f"{name}.mp4", noise_frames(17, 7, size), 8)
        (folder / f"{name}.txt").write_text(name)
    said = check(str(folder), "--data.buckets", "48x32x17")
    assert said["better_buckets"] is not None
    main(["check", str(folder), "--model.source", str(tiny_folder), "--data.buckets", "48x32x17"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("--data.buckets"))
    better = check(str(folder), *line.split())
    auto = check(str(folder), "--data.buckets", "48x32x17", "auto")
    assert [row["bucket"] for row in better["buckets"]] == [row["bucket"] for row in auto["buckets"]]
    assert auto["better_buckets"] is None
    lost = [max((row["most"] for row in one["cropped"]), default=0.0) for one in (said, better)]
    assert lost[1] < lost[0] - 0.1


def test_one_is_one(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("clip1", "clip2"):
        (folder / f"{name}.mp4").unlink()
        (folder / f"{name}.txt").unlink()
    (folder / "clip0.txt").write_text("dance")
    assert main(["check", str(folder), "--model.source", str(tiny_folder)]) == 0
    text = capsys.readouterr().out
    assert "1 video\n" in text
    assert "1, of 1 word\n" in text
    assert main(["check", str(folder), "--model.source", str(tiny_folder), "--quiet"]) == 0
    assert capsys.readouterr().out == "1 of 1 clip is used\n"
    assert main(["check", str(folder), "--model.source", str(tiny_folder), "--data.buckets", "32x32x81"]) == 1
    assert "1 of 1 clip is not used" in capsys.readouterr().out


def test_it_says_how_many_clips_are_held_out(
    folder: Path, noise_frames: Frames, tiny_folder: Path, check: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["check", str(folder), "--model.source", str(tiny_folder)]) == 0
    assert "holds out no clip for validation" in capsys.readouterr().out
    for seed in range(3, 24):
        videos.write_video(folder / f"clip{seed}.mp4", noise_frames(17, seed, (32, 32)), 8)
        (folder / f"clip{seed}.txt").write_text("more")
    number = check(str(folder))["held_out"]
    assert number == len(held_out({sha256(path) for path in folder.glob("*.mp4")}, None)) > 0
    assert main(["check", str(folder), "--model.source", str(tiny_folder)]) == 0
    assert f"pusa train holds out {number} clip" in capsys.readouterr().out


def test_what_is_merely_left_over_needs_no_attention(folder: Path, check: Callable[..., dict[str, Any]]) -> None:
    (folder / "notes.pdf").write_bytes(b"pdf")
    said = check(str(folder))
    assert (said["code"], [problem["kind"] for problem in said["problems"]]) == (0, ["unused"])


def test_no_sample_needs_attention(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder), "--model.source", str(tiny_folder), "--data.buckets", "32x32x81"]) == 1
    assert "There is no sample to train on." in capsys.readouterr().out


def test_names_are_shown_as_they_are(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[bold]x.mp4", "new\nline\x1b[31m.mp4"):
        (folder / name).write_bytes(b"bad")
    assert main(["check", str(folder), "--model.source", str(tiny_folder)]) == 1
    text = capsys.readouterr().out
    assert "[bold]x.mp4" in text
    assert "new\\nline\\x1b[31m.mp4" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["nowhere/at all"], "there is no folder"),
        (["CLIPS", "--data.buckets", "32x32x16"], "not 4n+1; use 13 or 17"),
        (["CLIPS", "--data.buckets", "40x32x17"], "multiples of 16; use 32x32x17"),
        (["CLIPS", "--data.fps", "0"], "data.fps is 0 (the command line); give a number above 0, or null."),
        (["CLIPS", "--data.fps", "nan"], "data.fps is"),
        (["CLIPS", "--train.steps", "0"], "train.steps is 0 (the command line); give a whole number of at least 1."),
        (["CLIPS", "--preset", "tinny"], "There is no preset 'tinny'; did you mean tiny?"),
        (["CLIPS", "--data.path", "other"], "The clips are given twice"),
        (["none.yaml"], "There is no settings file none.yaml; check the name."),
        ([], "There are no clips; give a folder of clips, or data.path in the settings."),
        (["CLIPS", "--price", "-1"], "--price -1"),
        (["CLIPS", "--model.source", "gone"], "There is no model 'gone'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    folder: Path, tiny_folder: Path, tokens: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model.source" in tokens else ["--model.source", str(tiny_folder)]
    assert main(["check", *[str(folder) if token == "CLIPS" else token for token in tokens], *model]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1


def test_a_configuration_that_is_a_pointer_of_git_lfs_is_called_that(
    folder: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    config = model / "transformer" / "config.json"
    config.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert main(["check", str(folder), "--model.source", str(model)]) == 2
    assert f"{config} is a Git LFS pointer and not the file itself; run `git lfs pull`" in capsys.readouterr().err
