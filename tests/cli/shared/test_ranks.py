"""torchrun makes one clip over several processes: the clip of one process, one voice, one end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from pusa import embedded
from pusa.media.videos import write_video
from tests.cli.shared import ranks_worker as worker
from tests.models.lora_files import truth, written

ROOT = Path(__file__).parents[3]


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, *command], cwd=folder, env=environment, timeout=3000, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The sources of every clip: a picture, a clip, LoRAs, a random model, and one with two experts."""
    folder = tmp_path_factory.mktemp("together")
    shutil.copy(embedded.folder().parent / "assets" / "photo.png", folder)
    colours = np.random.default_rng(0).integers(0, 256, (9, 1, 1, 3), np.uint8)
    write_video(folder / "clip.mp4", np.broadcast_to(colours, (9, 32, 32, 3)), 8)
    shutil.copytree(tiny_folder, folder / "model")
    stock = WanTransformer3DModel.from_pretrained(folder / "model" / "transformer")
    for seed, (name, outer) in enumerate({"style": False, "whole": True}.items()):
        (folder / "loras").mkdir(exist_ok=True)
        file = written(folder / "loras", "diffusers", *truth(stock, outer=outer, whole=False, seed=seed, size=0.05))
        file.rename(folder / f"{name}.safetensors")
    shutil.copytree(folder / "model", folder / "experts")
    torch.manual_seed(5)
    WanTransformer3DModel.from_config(stock.config).save_pretrained(folder / "experts" / "transformer_2")
    index = json.loads((folder / "experts" / "model_index.json").read_text())
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    (folder / "experts" / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[dict[str, Any]]:
    """Every clip made by this process: those of command lines in alone/, the calls' latents here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert {worker.run(name, "alone") for name in worker.COMMANDS} == {0}
        yield worker.calls(share=False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def together(folder: Path) -> dict[str, Any]:
    """Every clip made by two processes, in together/; what process 0 and process 1 reported, and what was printed."""
    done = torchrun(folder, "-m", "tests.cli.shared.ranks_worker", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {"reports": reports, "out": done.stdout, "err": done.stderr}


def latents(folder: Path, name: str) -> torch.Tensor:
    return load_file(folder / f"{name}.latents.safetensors")["latents"]


@pytest.mark.parametrize("name", worker.COMMANDS)
def test_two_processes_make_the_clip_of_one(name: str, folder: Path, alone: Any, together: Any) -> None:
    ours, theirs = latents(folder, f"together/{name}"), latents(folder, f"alone/{name}")
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    recipe = json.loads((folder / "together" / f"{name}.json").read_text())
    assert recipe["processes"] == 2
    recipe_alone = json.loads((folder / "alone" / f"{name}.json").read_text())
    assert "processes" not in recipe_alone
    assert recipe.get("acceleration") == recipe_alone.get("acceleration")
    assert (recipe.get("acceleration", {}).get("computed", 1) < 1) == (name == "accelerated")


def test_every_process_gets_the_clip_also_of_experts_and_loras_that_come_later(
    folder: Path, alone: dict[str, torch.Tensor], together: Any
) -> None:
    both = [torch.load(folder / f"calls.{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, expected in alone.items():
        torch.testing.assert_close(both[0][name], expected, rtol=0, atol=1e-5)
        assert torch.equal(both[0][name], both[1][name])
    assert torch.equal(both[0]["removed"], both[0]["without"])
    changes = [(alone[a] - alone[b]).abs().max() for a, b in (("without", "late LoRA"), ("late LoRA", "stronger"))]
    assert min(changes) > 1e-2


def test_each_process_computes_half_of_the_tokens_which_cuts_a_frame(together: Any) -> None:
    for report in together["reports"]:
        assert report["tokens"] == [40]  # of 5 x 16
        assert report["wrong frames"] > 1e-2


def test_the_same_processes_make_the_clip_again_to_the_bit(folder: Path, together: Any) -> None:
    assert torch.equal(latents(folder, "together/again"), latents(folder, "together/image"))


def test_one_process_says_that_its_remake_may_differ(
    folder: Path, alone: Any, together: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worker.main(["generate", "--from", "together/image.json", "--out", "alone/again.mp4"]) == 0
    assert "made by 2 processes and this one by 1" in capsys.readouterr().err
    torch.testing.assert_close(latents(folder, "alone/again"), latents(folder, "together/image"), rtol=0, atol=1e-5)


def test_process_0_alone_speaks_and_all_exit_alike(folder: Path, together: Any) -> None:
    clips = [f"together/{name}.mp4" for name in [*worker.COMMANDS, "again"]]
    assert together["out"].splitlines() == clips
    assert together["err"].count("17 frames of 64x64 at 8 fps") == 3
    codes = dict.fromkeys([*worker.COMMANDS, "again"], 0) | {"refused": 2}
    assert [report["codes"] for report in together["reports"]] == [codes] * 2
    assert (
        together["err"].count(
            "pusa: The 25 tokens of 17 frames, which the model sees at once, cannot be shared by 2 processes"
        )
        == 1
    )
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


def test_calls_that_differ_are_refused_and_one_process_stops_all(together: Any) -> None:
    for report in together["reports"]:
        assert "The processes make different clips" in report["other seeds"]
        assert "stopped after step 2" in report["stopped"]
        assert report["steps"] == [0, 1]
        assert "25 tokens" in report["odd"]


TROUBLES = {
    "error": ("this process has trouble; help it.", "exitcode  : 2 "),
    "interrupt": ("interrupted; no file is half written.", "exitcode  : 130 "),
    "kill": ("another process ended without an error message", "exitcode  : -9 "),
}


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "rank"), [("error", 0), ("error", 1), ("interrupt", 1), ("kill", 1)])
def test_trouble_of_one_process_ends_all_with_one_sentence(trouble: str, rank: int, folder: Path) -> None:
    done = torchrun(folder, "-m", "tests.cli.shared.ranks_worker", trouble, str(rank))
    sentence, code = TROUBLES[trouble]
    assert done.returncode == 1  # torchrun's own
    said = [line for line in done.stderr.splitlines() if line.startswith("pusa: ")]
    if trouble == "kill" and not said:
        return  # torchrun ended the other before it could say anything
    assert len(said) == 1
    assert said[0].startswith(f"pusa: {sentence}")
    assert code in done.stderr
    assert done.stdout == ""
    assert not [path for path in folder.iterdir() if "troubled" in path.name]
