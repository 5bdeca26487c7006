"""The kernel of attention and compiled blocks: chosen early, refused in a sentence, and recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch

from pusa.errors import InputError
from pusa.generation.pipeline import load
from pusa.generation.provenance import pipeline_of
from pusa.models import kernels
from pusa.models.memory import profiles
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.lora_files import truth, written

PROMPT = "a red circle moves left on a black background"


def test_a_wrong_choice_is_told_without_torch() -> None:
    code = """
import sys
from pusa.errors import InputError
from pusa.models import kernels
for name in ("flush", "xformers"):
    try:
        kernels.check(name)
    except InputError as error:
        print(error)
assert "torch" not in sys.modules and "diffusers" not in sys.modules
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "There is no attention kernel 'flush': choose one of native, cudnn" in told
    assert "needs the package xformers, which is not installed" in told


def test_every_kernel_is_one_of_diffusers() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert {kernel.name for kernel in kernels._KERNELS.values()} <= {name.value for name in AttentionBackendName}
    assert kernels._KERNELS.keys() == set(kernels.get_args(kernels.Attention))


def test_a_kernel_for_gpus_is_refused_on_a_cpu(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="cudnn runs on a GPU only"):
        load(tiny_folder, device="cpu", attention="cudnn")


def test_a_kernel_is_used_by_every_expert_and_by_no_other_model(experts_folder: Path) -> None:
    pipe = load(experts_folder, device="cpu", attention="flex")
    for transformer in (pipe.transformer, pipe.transformer_2):
        assert transformer.blocks[0].attn1.processor._attention_backend == "flex"
    assert pipe.recipe()["model"]["attention"] == "flex"
    other = load(experts_folder, device="cpu")
    assert "attention" not in other.recipe()["model"]
    default, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    assert (other.transformer.blocks[0].attn1.processor._attention_backend, default) == (None, "native")


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces the blocks as for compilation, and runs them without kernels of their own."""
    compile_blocks = VectorWanTransformer3DModel.compile_repeated_blocks
    monkeypatch.setattr(
        VectorWanTransformer3DModel,
        "compile_repeated_blocks",
        lambda self, **options: compile_blocks(self, backend="eager", **options),
    )


@pytest.mark.usefixtures("quick_compiler")
def test_compiled_blocks_make_the_same_clip(tiny_folder: Path, tmp_path: Path) -> None:
    plain = load(tiny_folder, device="cpu")
    file = written(tmp_path, "diffusers", *truth(plain.transformer, outer=False, whole=False, seed=1, size=0.05))
    options: dict[str, Any] = {"steps": 1, "guidance": 1.0}
    plain.load_lora(file, 0.7)
    expected = plain.generate(PROMPT, **options)
    pipe = load(tiny_folder, device="cpu", compiled=True)
    assert pipe.transformer.blocks[0]._compiled_call_impl is not None
    pipe.load_lora(file, 0.7)
    clip = pipe.generate(PROMPT, **options)
    torch.testing.assert_close(clip.latents, expected.latents, rtol=0, atol=1e-5)
    clip.save(tmp_path / "clip.mp4")
    assert json.loads((tmp_path / "clip.json").read_text())["model"]["compiled"] is True
    assert pipeline_of(clip.recipe).compiled


def test_profiles_that_move_blocks_are_not_compiled(tiny_folder: Path) -> None:
    for name, profile in profiles.PROFILES.items():
        moves = profile.transformer != "device" or bool(profile.fp8)
        if moves:
            with pytest.raises(InputError, match=f"cannot be compiled with the memory profile {name}"):
                load(tiny_folder, device="cpu", memory=name, compiled=True)
