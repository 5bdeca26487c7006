"""`pusa train` under torchrun and accelerate, started from a shell: two processes share the clips of every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pusa.media.videos import write_video
from tests.conftest import PROMPTS

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def train(folder: Path, out: str, *launcher: str, accumulate: int) -> list[dict[str, Any]]:
    """The log of a run of four steps, trained into folder / out."""
    settings = {"data": "clips", "out": out, "model.source": "model", "data.cache": "cache", "data.held-out": "0",
                "train.steps": "4", "train.batch": "1", "train.accumulate": str(accumulate), "lora.rank": "2",
                "train.lr": "1e-2", "validate.every": "0", "preview.every": "0"}  # fmt: skip
    command = [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "pusa", "train"]
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}/lora.safetensors\n"
    return [json.loads(line) for line in (folder / out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Four clips of flat colours, a model, and in alone/ what one process made of them in two passes a step."""
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "model").symlink_to(tiny_folder)
    (folder / "clips").mkdir()
    for seed, prompt in enumerate(PROMPTS):
        colour = np.random.default_rng(seed).integers(0, 256, (17, 1, 1, 3), np.uint8)
        write_video(folder / "clips" / f"{seed}.mp4", np.broadcast_to(colour, (17, 32, 32, 3)), 8)
        (folder / "clips" / f"{seed}.txt").write_text(prompt)
    train(folder, "alone", accumulate=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_are_one_with_twice_the_passes(launcher: list[str], folder: Path) -> None:
    name = launcher[0].split(".")[0]
    log = train(folder, name, *launcher, accumulate=1)
    alone = [json.loads(line) for line in (folder / "alone" / "log.jsonl").read_text().splitlines()]
    assert [line["clips"] for line in log] == [2, 2, 2, 2]
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in alone])
    expected, weights = (load_file(folder / run / "lora.safetensors") for run in ("alone", name))
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-5)
