"""The README's commands, run as they stand on a random model. tests/test_project.py checks its links."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pusa.cli import app, run
from pusa.cli.shared.flag_aliases import translate
from pusa.embedded import world
from pusa.media.videos import write_video

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every `pusa ...` with arguments, in code spans and blocks, line continuations joined."""
    joined = TEXT.replace("\\\n", " ")
    return list(
        dict.fromkeys(re.findall(r"(?:^|`)(pusa (?:generate|extend|transition|info|demo)[^`\n]*)", joined, re.M))
    )


ELSEWHERE = ("Wan-AI/", "--preset", "--prompts", "--from", "pusa info", "pusa demo")
"""What a command has that needs a downloaded model, an earlier clip, or makes none."""
RUNNABLE = [command for command in commands() if not any(part in command for part in ELSEWHERE)]


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random pipeline with the embedded model's clip size."""
    folder = tmp_path_factory.mktemp("model") / "tiny64"
    shutil.copytree(tiny_folder, folder)
    defaults = json.loads((folder / "pusa.json").read_text())
    (folder / "pusa.json").write_text(json.dumps(defaults | {"size": [64, 64]}))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README says to run them, filled as `pusa demo` fills it."""
    from pusa.cli.demo.tasks import tasks

    folder = tmp_path_factory.mktemp("demo") / "inputs"
    folder.mkdir()
    tasks(folder)
    return folder


@pytest.mark.parametrize("command", RUNNABLE)
def test_the_command_runs(command: str, model: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    report = run([*shlex.split(command)[1:], "--model", str(model), "--quiet"])
    assert report is not None
    assert Path(report.text).is_file()


@pytest.mark.parametrize("command", [c for c in commands() if c not in RUNNABLE])
def test_the_command_is_well_formed(command: str) -> None:
    app.parse_args(translate(shlex.split(command)[1:]), exit_on_error=False, print_error=False)


def test_the_training_block_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    for seed in range(2):
        scene = world.sample(seed)
        write_video(f"clips/{seed}.mp4", world.render(scene), world.FPS)
        Path(f"clips/{seed}.txt").write_text(scene.caption)
    block = TEXT.split("## Training")[1].split("```")[1]
    short = ["--model.source", str(model), "--train.steps", "2", "--data.held-out", "0"]
    extra = {"check": ["--model", str(model)], "prepare": ["--model", str(model)], "train": short, "export": []}
    for command in block.strip().splitlines():
        _, verb, *tokens = shlex.split(command)
        if verb == "train":
            tokens = tokens[: tokens.index("--train.steps")]
        assert run([verb, *tokens, *extra.pop(verb), "--quiet"]) is not None
    assert not extra
    assert Path("first.safetensors").is_file()
    (flags,) = re.findall(r"`(--model tiny-base --lora [^`]+)`", TEXT.replace("\n", " "))
    own = shlex.split(flags.replace("tiny-base", str(model)))
    report = run(["generate", "a red circle", *own, "--frames", "5", "--out", "own.mp4", "--quiet"])
    assert report is not None
    (lora,) = json.loads(Path("own.json").read_text())["loras"]
    assert lora["path"].endswith("runs/first/lora.safetensors")


def test_the_python_block_runs(model: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(block.replace('"tiny"', repr(str(model))), "README.md", "exec"), {})
    assert Path("zoom.mp4").is_file()
