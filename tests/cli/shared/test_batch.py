"""`pusa generate --prompts`: every line is checked first, each clip is made once, and the command resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pusa.cli import main
from pusa.cli.shared.batch import KEYS
from pusa.errors import Cancelled
from pusa.generation.pipeline import Pipeline

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a picture beside the file of prompts."""
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    return tmp_path


@pytest.fixture
def ask(work: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Write lines, run the command on them: (exit code, what --json says)."""

    def run(
        lines: list[Any] | str, *options: str, file: str = "clips.jsonl", out: str = "out"
    ) -> tuple[int, dict[str, Any]]:
        text = lines if isinstance(lines, str) else "\n".join(json.dumps(line) for line in lines)
        (work / file).write_text(text, encoding="utf-8")
        command = ["generate", "--prompts", str(work / file), "--model", str(tiny_folder), "--out", str(work / out)]
        code = main([*command, "--steps", "1", "--frames", "5", "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return run


LINES: list[Mapping[str, Any]] = [
    {"prompt": "a red circle", "seed": 3},
    {"prompt": "a blue square", "image": "grey.png", "noise": 0.2, "name": "square", "steps": 2},
    {"prompt": "a red circle", "keyframe": ["grey.png@4"], "guidance": 1},
]


def test_a_line_is_the_clip_of_a_single_command(ask: Ask, work: Path, tiny_folder: Path) -> None:
    code, said = ask(LINES)
    assert code == 0
    assert [Path(path).name for path in said["made"]] == [
        "0001_a-red-circle_3.mp4", "square.mp4", "0003_a-red-circle_0.mp4",
    ]  # fmt: skip
    line = ["generate", "a blue square", "--image", str(work / "grey.png"), "--noise", "0.2", "--steps", "2"]
    assert main([*line, "--frames", "5", "--model", str(tiny_folder), "--out", str(work / "one.mp4"), "-q"]) == 0
    made, one = (json.loads(file.read_text()) for file in (work / "out" / "square.json", work / "one.json"))
    assert made["result"]["latents_sha256"] == one["result"]["latents_sha256"]
    assert main(["generate", "--from", str(work / "out" / "square.json"), "--out", str(work / "again.mp4"), "-q"]) == 0


def test_what_is_there_is_kept_and_what_is_missing_is_made(ask: Ask, work: Path) -> None:
    ask(LINES)
    before = {file: file.stat().st_mtime_ns for file in (work / "out").iterdir()}
    code, said = ask(LINES)
    assert (code, said["made"], len(said["there"])) == (0, [], 3)
    (work / "out" / "square.mp4").unlink()
    code, said = ask([*LINES, {"prompt": "more"}])
    assert [Path(path).name for path in said["made"]] == ["square.mp4", "0004_more_0.mp4"]
    kept = [file for file in before if file.name.startswith(("0001", "0003"))]
    assert len(kept) == 6
    assert all(file.stat().st_mtime_ns == before[file] for file in kept)


@pytest.mark.parametrize("what", ["settings", "picture", "cut off", "profile"])
def test_what_was_made_otherwise_is_not_mixed_in(ask: Ask, work: Path, what: str, tiny_folder: Path) -> None:
    ask(LINES)
    options: tuple[str, ...] = ()
    if what == "settings":
        options = ("--shift", "2")
    elif what == "picture":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(work / "grey.png")
    elif what == "cut off":
        video = work / "out" / "square.mp4"
        video.write_bytes(video.read_bytes()[:-9])
    else:
        options = ("--memory", "24gb")
    code, said = ask(LINES, *options)
    assert code == 2
    why = "has changed since it was made" if what == "cut off" else "was made with other settings"
    assert f"exists already and {why}; give --overwrite" in said["error"]["message"]
    code, said = ask(LINES, *options, "--overwrite")
    assert code == 0
    assert len(said["made"]) == {"settings": 3, "picture": 2, "cut off": 1, "profile": 3}[what]


def test_the_adapter_of_tiny_tells_it_from_tiny_base(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "one.txt").write_text("a red circle")
    command = ["generate", "--prompts", str(work / "one.txt"), "--out", str(work / "out"), "--steps", "1", "--frames"]
    assert main([*command, "1", "--model", "tiny", "-q"]) == 0
    assert main([*command, "1", "--model", "tiny-base", "-q"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


class Unforeseen(BaseException):
    """As the panic of a library in another language: it is not even an Exception."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unforeseen("of the moon"), "Unforeseen: of the moon (unexpected error"),
        (RuntimeError("first line\nsecond line"), "RuntimeError: first line (unexpected error"),
        (MemoryError(), "out of memory; use fewer --frames"),
        (torch.OutOfMemoryError("x"), "out of memory; use fewer --frames"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_line_that_fails_is_named_and_the_others_are_made(
    ask: Ask, work: Path, error: BaseException, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Pipeline.decode

    def fail_once(pipe: Pipeline, z: torch.Tensor) -> Any:
        monkeypatch.setattr(Pipeline, "decode", decode)
        raise error

    monkeypatch.setattr(Pipeline, "decode", fail_once)
    code, said = ask([{"prompt": "late", "name": "late"}, LINES[0], LINES[2]])
    assert (code, len(said["made"])) == (1, 2)
    (failed,) = said["failed"]
    assert failed["line"].endswith("clips.jsonl, line 1")
    assert reason in failed["reason"]
    assert "\n" not in failed["reason"]
    assert not (work / "out" / "late.mp4").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("stopped")])
def test_ctrl_c_ends_a_batch(ask: Ask, work: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Pipeline, "decode", stop)
    assert ask(LINES)[0] == 130
    assert not list((work / "out").glob("*.mp4"))


def test_all_wrong_lines_are_named_at_once(ask: Ask, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"steps": 0}', '{"prompt": "good"}', "{", '{"image": "none.png"}', '{"frames": 6}', '{"steps": 0}']
    code, said = ask("\n".join(lines))
    assert code == 2
    assert said["error"]["message"].splitlines()[0].endswith("has 5 wrong lines, so no clip was made:")
    assert [detail.split(": ")[0] for detail in said["error"]["details"]] == [
        "lines 1, 6",
        "line 3",
        "line 4",
        "line 5",
    ]
    assert main(["generate", "--prompts", str(work / "clips.jsonl"), "--model", "tiny"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 5
    assert all(line.startswith("  line") for line in shown[1:])


def test_a_separator_of_unicode_does_not_end_a_line(ask: Ask) -> None:
    """str.splitlines would make four prompts of the first one."""
    odd = "a red circle\u2028a blue\u0085square\x0cagain"
    _, said = ask(f"{odd}\r\nsecond\r\n", file="prompts.txt", out="text")
    assert [Path(path).name[:5] for path in said["made"]] == ["0001_", "0002_"]
    _, said = ask(json.dumps({"prompt": odd, "name": "odd"}, ensure_ascii=False) + "\n\n", out="json")
    assert json.loads(Path(said["made"][0]).with_suffix(".json").read_text(encoding="utf-8"))["prompt"] == odd


def test_files_of_old_macs_have_lines(ask: Ask) -> None:
    _, said = ask("a red circle\ra blue square\r", file="prompts.txt")
    assert [Path(path).name for path in said["made"]] == ["0001_a-red-circle_0.mp4", "0002_a-blue-square_0.mp4"]


def test_prompts_in_utf_16(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the shell of Windows writes them."""
    (work / "clips.txt").write_bytes("a red circle\r\n\r\n\ud800".encode("utf-16", "surrogatepass"))
    assert main(["generate", "--prompts", str(work / "clips.txt")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err
    (work / "clips.txt").write_bytes("a red circle\r\n{\r\n".encode("utf-16"))
    (work / "clips.txt").rename(work / "clips.jsonl")
    assert main(["generate", "--prompts", str(work / "clips.jsonl")]) == 2
    assert "has 2 wrong lines" in capsys.readouterr().err


def test_names_that_cannot_be_saved_are_wrong_lines(ask: Ask, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / "mine.json").write_text("{}")
    code, said = ask([{"name": name} for name in ("x" * 240, "a\0b", "caf\ud800")] + [{"steps": 0}])
    assert code == 2
    reasons = said["error"]["details"]
    assert "the name has 260 bytes" in reasons[0]
    assert "cannot be the name of a file" in reasons[1]
    assert "cannot be the name of a file" in reasons[2]
    assert "steps is 0" in reasons[3]
    code, said = ask([{"name": "mine"}])
    assert code == 2
    assert "mine.json exists already and belongs to no clip of these lines" in said["error"]["message"]


def test_a_key_that_is_given_twice_is_a_mistake(ask: Ask) -> None:
    code, said = ask('{"prompt": "a red circle", "seed": 1, "prompt": "a blue square"}')
    assert code == 2
    assert said["error"]["message"].endswith("line 1: it has the key 'prompt' twice; keep one of them")


def test_prompts_in_a_text_file(ask: Ask) -> None:
    _, said = ask("\ufeffa red circle\n\n  a blue square \n", file="prompts.txt")
    assert [Path(path).name for path in said["made"]] == ["0001_a-red-circle_0.mp4", "0003_a-blue-square_0.mp4"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"promt": "x"}', "line 2: it has the unknown key 'promt'; did you mean 'prompt'?"),
        ('{"prompt": 3}', "line 2: prompt is 3: give a text"),
        ('{"steps": 2.5}', "line 2: steps is 2.5: give a whole number"),
        ('{"seed": true}', "line 2: seed is True: give a whole number"),
        ('{"keyframe": [4]}', "line 2: keyframe is [4]: give a list of texts"),
        ('{"keyframe": "grey.png@99"}', "outside the clip, which has 5 frames"),
        ('{"fit": "zoom"}', "line 2: The fit 'zoom' is unknown: choose crop, pad or stretch"),
        ('{"image": "none.png"}', "none.png does not exist"),
        ('{"frames": 6}', "line 2: 6 frames cannot be made"),
        ('{"noise": 2, "image": "grey.png"}', "line 2: --noise: noise 2 is outside 0 to 1"),
        ('{"name": "../x"}', "line 2: the name '../x' is not a file name"),
        ('{"name": "first"}', "line 2: it would write"),
        ("[1]", "line 2: it is not a JSON object"),
        ('{"prompt": "x"', "line 2: it is not JSON"),
        ('{"seed": -1}', "line 2: seed is -1: give a whole number from 0 to 9223372036854775807"),
        ('{"steps": 0}', "line 2: steps"),
        ('{"size": "33x32"}', "line 2: The size 33x32 cannot be made"),
        ('{"guidance": NaN}', "line 2: guidance is nan"),
        ('{"frames": 4101}', "line 2: 4,101 frames are too many"),
        ('{"keyframe": ["grey.png@99"]}', "outside the clip, which has 5 frames"),
        ('{"image": "grey.png", "keyframe": "grey.png@0"}', "fall into the same latent frame (frame 0)"),
        ('{"keyframe": ["grey.png@2", "grey.png@-1"]}', "fall into the same latent frame (frames 1 to 4)"),
    ],
)
def test_every_line_is_checked_before_a_model_is_loaded(
    ask: Ask, work: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.cli.shared.batch.open_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
    code, said = ask('{"name": "first"}\n' + line)
    assert code == 2
    assert message in said["error"]["message"]
    assert "\n" not in said["error"]["message"]
    assert not (work / "out").exists()


def test_what_goes_together(ask: Ask, work: Path) -> None:
    assert "no line" in ask("\n")[1]["error"]["message"]
    for options, message in (
        (("--count", "2"), "one clip for each line"),
        (("--workers", "2"), "needs --ray"),
    ):
        code, said = ask(LINES, *options)
        assert code == 2
        assert message in said["error"]["message"]
    assert "give a folder" in ask(LINES, out="x.mp4")[1]["error"]["message"]
    assert main(["generate", "x", "--ray", "local"]) == 2


def test_every_key_is_an_option_of_generate() -> None:
    import inspect

    from pusa.cli.generate import generate
    from pusa.cli.shared.options import Sampling

    assert set(KEYS) - {"name"} <= set(inspect.signature(generate).parameters) | set(vars(Sampling()))


def hashes(folder: Path) -> dict[str, str]:
    """Of the latents of every clip in a folder, by the name of its sidecar."""
    return {file.name: json.loads(file.read_text())["result"]["latents_sha256"] for file in folder.glob("*.json")}


def start(work: Path, tiny_folder: Path, file: Path, out: str) -> subprocess.Popen[str]:
    command = ["generate", "--prompts", str(file), "--model", str(tiny_folder), "--out", str(work / out), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "pusa", *command, "--steps", "2", "--frames", "5"],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_killed_processes_and_shared_work_lose_and_double_nothing(work: Path, tiny_folder: Path) -> None:
    """One is killed in the middle; two more, at the same time, make the rest; alone it gives the same clips."""
    file = work / "many.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"circle {i}", "seed": i}) for i in range(12)))
    first = start(work, tiny_folder, file, "out")
    while len(list((work / "out").glob("[0-9]*.mp4"))) < 2:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    others = [start(work, tiny_folder, file, "out") for _ in range(2)]
    said = [json.loads(process.communicate(timeout=3000)[0]) for process in others]
    made = [path for one in said for path in one["made"]]
    assert len(list((work / "out").glob("[0-9]*.mp4"))) == 12
    assert len(made) == len(set(made)) <= 10
    assert not list((work / "out").glob(".*.part*"))  # also when the kill came while a video was written
    alone = start(work, tiny_folder, file, "alone")
    alone.communicate(timeout=3000)
    assert hashes(work / "out") == hashes(work / "alone")


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_clips(work: Path, tiny_folder: Path, ask: Ask) -> None:
    pytest.importorskip("ray")
    lines = [{"prompt": f"circle {i}", "seed": i} for i in range(6)]
    code, said = ask(lines, "--ray", "local", "--workers", "2")
    assert (code, len(said["made"])) == (0, 6)
    code, _ = ask(lines, out="here")
    assert code == 0
    assert hashes(work / "out") == hashes(work / "here")
