"""The official code, from the package `vbench`, on random weights: what its doors take and what it writes.

The package lacks the entry script, the list and the code of camera motion, and the entry script asks for a GPU; the
checkout here gets the list and an entry for CPU. It runs where an environment has the official code:

    python3.11 -m venv vbench-env
    vbench-env/bin/pip install torch torchvision transformers accelerate opencv-python-headless scipy pandas \
        imageio requests omegaconf easydict ftfy "setuptools<81"
    vbench-env/bin/pip install --no-deps vbench==0.1.5 decord openai-clip pyiqa dreamsim==0.2.1 peft==0.6.2 \
        open_clip_torch==2.24.0 timm==1.0.12
    PUSA_VBENCH_PYTHON=$PWD/vbench-env/bin/python pytest -m slow tests/evaluation/vbench/test_official.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pusa.cli import main
from pusa.evaluation.vbench import manifest

PYTHON = os.environ.get("PUSA_VBENCH_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="set PUSA_VBENCH_PYTHON to the Python of an environment with vbench"),
]
WEIGHTS = Path(__file__).with_name("random_weights.py")
ENTRY = """
import argparse
from vbench2_beta_i2v import VBenchI2V

parser = argparse.ArgumentParser()
for flag in ("--output_path", "--videos_path", "--ratio"):
    parser.add_argument(flag)
parser.add_argument("--dimension", nargs="+")
args = parser.parse_args()
bench = VBenchI2V("cpu", "vbench2_beta_i2v/vbench2_i2v_full_info.json", args.output_path)
bench.evaluate(args.videos_path, "results", dimension_list=args.dimension, resolution=args.ratio,
               imaging_quality_preprocessing_mode="longer")
"""
RANDOM = ("i2v_subject", "subject_consistency", "motion_smoothness", "dynamic_degree", "imaging_quality")
"""The dimensions that run on random weights."""


@pytest.fixture(scope="module")
def checkout(info: Path, crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    where = "import vbench, pathlib; print(pathlib.Path(vbench.__file__).parent.parent)"
    home = subprocess.run([PYTHON, "-c", where], check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    for package in ("vbench", "vbench2_beta_i2v"):
        shutil.copytree(Path(home) / package, folder / package)
    beta = folder / "vbench2_beta_i2v"
    shutil.copy(info, beta / "vbench2_i2v_full_info.json")
    (beta / "data" / "crop").mkdir(parents=True)
    (beta / "data" / "crop" / "7-4").symlink_to(crops, target_is_directory=True)
    (folder / "evaluate_i2v.py").write_text(ENTRY)
    return folder


def test_the_official_code_runs_and_its_results_are_read(
    info: Path,
    crops: Path,
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    subprocess.run([PYTHON, WEIGHTS], cwd=checkout, check=True)
    plan, run = tmp_path / "smoke.jsonl", tmp_path / "run"
    manifest.build(info, "smoke", (112, 64), 9, 16.0).write(plan)
    generate = ["vbench", "generate", str(plan), "--images", str(crops), "--out", str(run), "--model", "tiny"]
    assert main([*generate, "--steps", "1", "--guidance", "1", "--quiet"]) == 0
    capsys.readouterr()
    code = main(["vbench", "score", str(plan), str(run), "--vbench", str(checkout), "--python", PYTHON, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert sorted(found["scores"]) == sorted(RANDOM), found["unavailable"]
    assert "vbench2_beta_i2v.camera_motion cannot be imported" in found["unavailable"]["camera_motion"]
    assert "ViT-B-32.pt is missing" in found["unavailable"]["background_consistency"]
    results = json.loads(Path(found["results"]).read_text())
    names = {video.file for video in manifest.read(plan).videos}
    for dimension in RANDOM:
        assert {Path(row["video_path"]).name for row in results[dimension][-1]} <= names
