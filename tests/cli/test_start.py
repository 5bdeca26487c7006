"""What a command must not wait for: a mistake that needs no model is told before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pusa.media.images import write_image

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")
RUN = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from pusa.cli import main
answers = []
for tokens in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(tokens)
    heavy = [name for name in {heavy} if name in sys.modules]
    answers.append([code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(answers))
"""
MISTAKES = {
    "a length that is not 4n+1": (["generate", "x", "--frames", "16"], "use 13 or 17"),
    "a size that is not a multiple": (["generate", "x", "--size", "100x100"], "96x96"),
    "a length and a schedule": (["generate", "x", "--frames", "16", "--schedule", "staircase,block=3"], "13 or 17"),
    "too many frames": (["generate", "x", "--frames", "99993"], "too many"),
    "nothing to make it from": (["generate"], "give a prompt"),
    "only a seed": (["generate", "--seed", "3", "--count", "2"], "give a prompt"),
    "a missing picture": (["generate", "x", "--image", "lost.png"], "lost.png"),
    "a missing last picture": (["generate", "x", "--last-image", "lost.png"], "lost.png"),
    "a picture that is none": (["generate", "x", "--image", "text.png"], "text.png"),
    "two pictures in one slot": (["generate", "x", "--image", "a.png", "--keyframe", "a.png@0"], "same latent frame"),
    "a frame outside the clip": (["generate", "x", "--keyframe", "a.png@17"], "outside the clip"),
    "a missing video": (["generate", "x", "--video", "lost.mp4"], "lost.mp4"),
    "a missing clip to edit": (["generate", "x", "--edit", "lost.mp4"], "lost.mp4"),
    "a missing clip to extend": (["extend", "lost.mp4", "x"], "lost.mp4"),
    "a clip to join": (["transition", "lost.mp4", "lost.mp4", "x"], "lost.mp4"),
    "an overlap": (["extend", "a.png", "x", "--overlap", "6"], "overlap"),
    "a number of new frames": (["extend", "a.png", "x", "--frames", "7"], "multiple of 4"),
    "another frame rate": (["generate", "x", "--fps", "24"], "makes 8 frames per second"),
    "an unknown model": (["generate", "x", "--model", "tinny"], "did you mean 'tiny'"),
    "an expert's option": (["generate", "x", "--boundary", "0.9"], "one transformer"),
    "an unknown schedule": (["generate", "x", "--schedule", "stair"], "did you mean 'staircase'"),
    "a missing matrix": (["generate", "x", "--matrix", "lost.json"], "lost.json"),
    "a missing LoRA": (["generate", "x", "--model", "tiny-base", "--lora", "lost.safetensors"], "lost.safetensors"),
    "a missing batch file": (["generate", "--prompts", "lost.jsonl"], "lost.jsonl"),
    "a wrong line of a batch": (["generate", "--prompts", "batch.jsonl"], "line 2"),
    "an unknown preset": (["generate", "x", "--preset", "pusa-wan23"], "did you mean"),
    "an existing file": (["generate", "x", "--out", "there.mp4"], "--overwrite"),
    "a missing sidecar": (["generate", "--from", "lost.json"], "lost.json"),
    "no sidecar": (["generate", "--from", "batch.jsonl"], "not the recipe"),
    "a variant of another model": (["generate", "--from", "lost.json", "--model", "tiny"], "--from uses the model"),
    "no clips to train on": (["train", "--data", "lost", "--out", "run"], "there is no folder lost"),
    "no clips to prepare": (["prepare", "lost"], "there is no folder lost"),
    "no clips to check": (["check", "lost"], "there is no folder lost"),
    "no LoRA to export": (["export", "lost.safetensors", "--to", "kohya", "--out", "k.safetensors"], "does not exist"),
    "a model that is none": (["info", "lost"], "There is no model 'lost'"),
}
ANSWERS = {
    "the version": (["--version"], ""),
    "the machine": (["info"], "tiny-base: embedded"),
    "the presets": (["info", "--presets"], "pusa-wan21"),
    "the embedded model": (["info", "tiny", "--json"], '"transformer": '),
    "a model of a folder": (["info", "model"], "parameters in F32"),
    "a file of Wan's own names": (["info", "wan.safetensors"], "Wan of 2 layers, 32 wide"),
}


@pytest.fixture(scope="module")
def answers(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """{case: [exit code, stdout, stderr, heavy modules]}; all run in one process."""
    from safetensors.torch import load_file, save_file

    from tests.models import layouts

    folder = tmp_path_factory.mktemp("start")
    write_image(folder / "a.png", np.zeros((32, 32, 3), np.uint8))
    (folder / "text.png").write_text("this is no picture")
    (folder / "there.mp4").touch()
    (folder / "batch.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "frames": 16}\n')
    (folder / "model").symlink_to(tiny_folder)
    weights = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(layouts.wan_transformer(weights), folder / "wan.safetensors")
    cases = {name: tokens for name, (tokens, _) in (MISTAKES | ANSWERS).items()}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(heavy=HEAVY)],
        input=json.dumps(list(cases.values())),
        cwd=folder,
        env={"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_that_needs_no_model_is_told_before_torch_is_imported(
    case: str, answers: dict[str, list[Any]]
) -> None:
    code, out, err, heavy = answers[case]
    assert code == 2, err
    assert MISTAKES[case][1] in err
    assert not out
    assert err.count("\n") == 1
    assert heavy == []


@pytest.mark.parametrize("case", ANSWERS)
def test_information_needs_no_torch(case: str, answers: dict[str, list[Any]]) -> None:
    code, out, err, heavy = answers[case]
    assert code == 0, err
    assert ANSWERS[case][1] in out
    assert heavy == []
