"""docs/diffusers.md: its Python runs, and its table has every argument."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import pytest

from pusa import embedded
from pusa.diffusers import PusaPipeline

PAGE = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pusa.cli.demo.tasks import tasks

    tasks(tmp_path)
    shutil.copy(embedded.adapter(), tmp_path / "lora.safetensors")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(compile(block, "diffusers.md", "exec"), {})
    assert Path("circle.mp4").is_file()


def test_the_table_has_every_argument() -> None:
    table = PAGE.split("## Arguments of a call")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    assert named == inspect.signature(PusaPipeline.__call__).parameters.keys() - {"self", "options"}
