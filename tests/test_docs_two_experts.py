"""docs/two_experts.md: its table of steps is what the sampler does, and its sentences are what pusa says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from diffusers import WanTransformer3DModel

from pusa.cli import main
from tests.models.lora_files import truth, written

PAGE = (Path(__file__).parents[1] / "docs" / "two_experts.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)
MISTAKES = re.findall(r"^\| `(--model [^`]+)` \| (.+) \|$", PAGE, re.M)


def test_the_table_of_steps_is_that_of_the_sampler() -> None:
    from benchmarks.experts import CASES, experts

    orders = {title: experts(matrix) for title, matrix in CASES.items()}
    assert [
        (title, str(order.count("high")), str(order.count("low")), str(sum(a != b for a, b in pairwise(order))))
        for title, order in orders.items()
    ] == STEPS


@pytest.fixture(scope="module")
def files(tiny_folder: Path, experts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models and LoRAs of the table."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(tiny_folder, folder / "wan21")
    shutil.copytree(experts_folder, folder / "a14b")
    stock = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    for seed, name in enumerate(("low_noise_pusa", "style")):
        place = tmp_path_factory.mktemp(name)
        file = written(place, "diffusers", *truth(stock, outer=False, whole=False, seed=seed, size=0.05))
        file.rename(folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize(("flags", "answer"), MISTAKES)
def test_a_mistake_gets_the_answer_of_the_page(
    flags: str, answer: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    assert main(["generate", "a cat", *shlex.split(flags), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"].replace(f"{files}/", "") == answer


def test_the_page_has_both_tables() -> None:
    assert len(STEPS) >= 10
    assert len(MISTAKES) >= 6
