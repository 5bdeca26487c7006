"""What a shell sees besides results: completion, and what an interruption leaves."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from pusa.cli import main


def test_completion_is_installed_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "bash"]) == 0
    script = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "pusa"
    text = script.read_text()
    assert all(word in text for word in ("generate", "transition", "--negative-prompt", "--overwrite"))
    assert str(script) in capsys.readouterr().out
    if bash := shutil.which("bash"):
        ask = f"source '{script}'; COMP_WORDS=(pusa gen); COMP_CWORD=1; _pusa; echo ${{COMPREPLY[*]}}"
        done = subprocess.run([bash, "-c", ask], capture_output=True, text=True, check=True)
        assert "generate" in done.stdout.split()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["generate", "x"], "the same command begins it again"),
        (["extend", "a.mp4", "x"], "the same command begins it again"),
        (["generate", "--prompts", "clips.jsonl"], "The same command goes on"),
        (["generate", "--prompts=clips.jsonl", "--out", "made"], "The same command goes on"),
        (["train", "--data", "clips", "--out", "runs/x"], "The same command goes on"),
        (["prepare", "clips"], "The same command goes on"),
        (["vbench", "generate", "full.jsonl"], "The same command goes on"),
    ],
)
def test_after_an_interruption_the_command_says_whether_it_goes_on(
    tokens: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pusa.cli.run", interrupt)
    assert main(tokens) == 130
    said = capsys.readouterr().err
    assert said.startswith("pusa: interrupted; no file is half written.")
    assert words in said


def test_libraries_do_not_log_what_they_lack(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["info", "--presets"])
    for library in ("bitsandbytes.backends.cpu.ops", "torchao", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(library).warning("Failed to load a kernel")
    assert not caplog.records
    assert "kernel" not in capsys.readouterr().err
