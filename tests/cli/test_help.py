"""The help of every verb is frozen in tests/cli/help/, and answers without the heavy imports.

After a deliberate change, refresh the files with `UPDATE_HELP=1 python -m pytest tests/cli/test_help.py` and read the
diff.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pusa.cli import GROUPS, VERBS, main

FROZEN = Path(__file__).with_name("help")
COMMANDS = ["pusa", *VERBS, *(f"{group} {one}" for group, commands in GROUPS.items() for one in commands)]
HEAVY = ("torch", "diffusers", "transformers", "peft", "numpy", "av", "PIL", "pydantic")


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_help_is_the_frozen_one(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*([] if verb == "pusa" else verb.split()), "--help"]) == 0
    text = capsys.readouterr().out
    file = FROZEN / f"{verb.replace(' ', '_')}.txt"
    if os.environ.get("UPDATE_HELP"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_imports_nothing_heavy(verb: str) -> None:
    tokens = [*([] if verb == "pusa" else verb.split()), "--help"]
    code = f"""
import json, sys
from pusa.cli import main
code = main({tokens!r})
print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [0, []]
