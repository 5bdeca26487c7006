"""The measurements of the server run on a small scale, and it loses and doubles no video when it is killed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_POSTGRES = bool(shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_killed_server_loses_and_doubles_no_video(store: str) -> None:
    if store == "postgresql" and not HAS_POSTGRES:
        pytest.skip("PostgreSQL is not installed: install the package postgresql")
    outcome = importlib.import_module("serving_kills").run(store, jobs=8, kills=4, seed=int.from_bytes(os.urandom(4)))
    assert outcome.is_good, outcome
    assert outcome.completed + outcome.given_up == 8
    assert outcome.servers + outcome.workers == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["requests", "preview", "workers", "memory", "clients"])
def test_a_measurement_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name == "clients" and not HAS_POSTGRES:
        pytest.skip("PostgreSQL is not installed: install the package postgresql")
    monkeypatch.setattr("sys.argv", ["serving.py", name, "--quick", "--out", str(tmp_path)])
    importlib.import_module("serving").main()
    assert (tmp_path / f"{name}.json").is_file()


def test_the_page_is_made_of_the_sections() -> None:
    serving = importlib.import_module("serving")
    assert serving.page(ROOT / "docs" / "results" / "serving") == (ROOT / "docs" / "results" / "serving.md").read_text()


def test_no_video_was_lost_or_doubled() -> None:
    numbers = json.loads((ROOT / "docs" / "results" / "serving" / "kills.json").read_text())["numbers"]
    for store in ("sqlite", "postgresql"):
        one = numbers[store]
        assert one["servers"] + one["workers"] == 20
        assert one["completed"] + one["given_up"] == one["jobs"] == 50
        assert (one["lost"], one["doubled"], one["different"], one["failed"]) == (0, 0, 0, [])
        assert one["begun"] > one["jobs"]  # the kills met videos in progress
