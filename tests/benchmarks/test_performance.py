"""The performance benchmarks run at toy size, and the page is made of what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> None:
    """Run a script in this process, which has paid for the imports."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    assert not import_module(name).main()


def test_the_budget_names_stages_parts_and_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "budget", "--smoke", "--json", tmp_path / "budget.json")
    written = json.loads((tmp_path / "budget.json").read_text())
    assert len(written["tables"][0]["rows"]) == 6
    assert written["machine"]["threads"] == 1
    step = next(one for one in written["numbers"]["stages"] if one["name"].startswith("denoising step, embedded"))
    parts = {row["part"]: row for row in step["parts"]}
    assert {"linear layers", "attention", "rotary embedding", "GELU", "text"} <= set(parts)
    assert sum(row["flops"] for row in parts.values()) == step["flops"]
    gaps = [row["seconds"] - row["floor"] for row in step["parts"]]
    assert gaps == sorted(gaps, reverse=True)
    assert any(text.startswith("* denoising step, embedded model") for text in written["text"])


def test_scaling_fits_exponents_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "scaling", "--smoke", "--json", tmp_path / "scaling.json")
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert all((tmp_path / plot).stat().st_size > 0 for plot in written["plots"])
    slope, error = written["numbers"]["series"]["batch"]["exponents"]["operations"]
    assert slope == pytest.approx(1)
    assert error == pytest.approx(0, abs=1e-6)
    assert written["numbers"]["processes"]["apart"] < 1e-5
    first = written["numbers"]["paper"]["projection"][0]
    assert first["plain"]["seconds"] == pytest.approx(9.77, rel=0.01)  # the published time that its share is from


def test_accelerations_are_compared_at_equal_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "acceleration", "--smoke", "--runs", tmp_path / "runs", "--json", tmp_path / "acceleration.json")
    written = json.loads((tmp_path / "acceleration.json").read_text())
    titles = [table["title"].split(":")[0] for table in written["tables"][1:5]]
    assert titles == ["text to video", "image to video", "extension", "staircase"]
    assert all((tmp_path / plot).stat().st_size > 0 for plot in written["plots"])
    assert set(written["numbers"]["proxies"]) > {"input", "what the first block adds"}


def test_a_share_between_two_settings_is_interpolated() -> None:
    from acceleration import at

    assert at([(0.4, 20.0), (0.6, 30.0)], 0.5) == pytest.approx(25)
    assert np.isnan(at([(0.4, 20.0), (0.6, 30.0)], 0.3))


def test_accelerations_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "acceleration_time", "--smoke", "--json", tmp_path / "time.json")
    (table,) = json.loads((tmp_path / "time.json").read_text())["tables"]
    assert all(float(row[3]) > 1 for row in table["rows"])


def test_the_step_is_compared_with_stock_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "exact_step", "--smoke", "--json", tmp_path / "exact_step.json")
    numbers = json.loads((tmp_path / "exact_step.json").read_text())["numbers"]
    assert all(row["difference"] < 1e-5 for row in numbers["steps"])
    assert numbers["clip"]["difference"] < 1e-4


def test_an_exponent_and_its_error() -> None:
    from scaling import exponent

    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == (pytest.approx(2), pytest.approx(0, abs=1e-6))
    slope, error = exponent([1, 2, 4, 8], [1, 2.2, 3.8, 8.1])
    assert abs(slope - 1) < 2 * error


def test_two_commits_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not in a git repository")
    monkeypatch.setattr(sys, "argv", ["compare", "HEAD", "--smoke", "--json", str(tmp_path / "compare.json")])
    assert import_module("compare").main() in (0, 1)  # two pairs on a busy machine may look like a loss
    numbers = json.loads((tmp_path / "compare.json").read_text())["numbers"]
    assert [len(seconds) for seconds in numbers["pusa --help"]["seconds"]] == [2, 2]
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pusa-compare-" not in listed


@pytest.mark.parametrize("name", ["text_to_video", "image_to_video", "decode", "lora_step"])
def test_the_compared_work_runs(name: str) -> None:
    import compare_workloads

    assert getattr(compare_workloads, name) in compare_workloads.WORKLOADS.values()
    getattr(compare_workloads, name)()()


def test_only_a_loss_in_every_pair_is_certain() -> None:
    from machine import ratio, verdict

    assert verdict(ratio([1.2, 1.3, 1.11], [1, 1, 1])) == "slower"
    assert verdict(ratio([1.2, 1.3, 1.05], [1, 1, 1])).startswith("no certain difference")
    assert verdict(ratio([0.8, 0.9, 0.7], [1, 1, 1])) == "faster"


def test_work_that_a_commit_lacks_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import compare

    with compare.worker(ROOT, threads=1) as process:
        assert compare.ask(process, "work of the future") == {"missing": "KeyError: 'work of the future'"}
        assert compare.ask(process, "pusa --help")["seconds"] > 0
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with compare.worker(ROOT, threads=1) as process:
        assert compare.ask(process, "pusa --help") == {"missing": "the process ended"}


def test_every_part_of_the_gpu_script_runs_at_toy_size(tmp_path: Path) -> None:
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", "--smoke"]
    subprocess.run(command, env=environment, check=True, timeout=600, capture_output=True)
    summary = (tmp_path / "summary.md").read_text()
    for part in ("step", "attention", "compile", "fp8", "lora", "tests"):
        assert f"| {part} | done |" in summary
        assert (tmp_path / f"{part}.json").exists()
    assert len(list(tmp_path.iterdir())) <= 8  # so many come back from a lent machine


def test_a_part_that_fails_or_takes_too_long_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    import gpu
    from section import Section

    def fails(_: Any) -> Section:
        raise ValueError("no such card")

    parts = {"fails": (60, fails), "slow": (1, lambda _: time.sleep(600)), "works": (60, lambda _: Section("A", "b"))}
    monkeypatch.setattr(gpu, "PARTS", parts)
    states = [gpu.run(name, tmp_path, True, limit) for name, (limit, _) in parts.items()]
    assert [one["state"] for one in states] == ["ValueError: no such card", "took longer than 1 s", "done"]
    assert "| slow | took longer than 1 s |" in gpu.summary(tmp_path, states)


def test_the_operations_of_a_step_are_those_that_training_counts() -> None:
    import gpu_parts
    import workloads

    from pusa.models.wan.operations import StepCounter

    model, shape = workloads.embedded_transformer(), (3, 16, 16)
    counted = StepCounter(model)(1, workloads.tokens(model, shape), shape[0]).forward
    assert gpu_parts.forward_flops(model, shape) == counted


def test_the_page_has_the_sections_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {
        "title": "An exact step",
        "command": "python benchmarks/exact_step.py",
        "text": ["One sentence."],
        "tables": [{"head": ["", "time"], "rows": [["a step", "1 s"]]}],
        "plots": ["curve.png"],
    }
    (tmp_path / "exact_step.json").write_text(json.dumps(section))
    (tmp_path / "another.json").write_text(json.dumps({"title": "Another", "command": "true"}))
    run(monkeypatch, "performance", "--results", tmp_path, "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "## An exact step\n\nOne sentence.\n\n|  | time |\n| --- | ---: |\n| a step | 1 s |" in page
    assert "curve.png)" in page
    assert page.index("## An exact step") < page.index("## Another")
