"""Settings that contradict the files are said in a sentence, and ordinary ones are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pusa.generation.advice import advice
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load
from pusa.generation.settings import Settings
from pusa.models.lora.header import is_distilled, is_per_frame
from pusa.models.lora.runtime import Lora

SETTINGS = Settings(frames=81, size=(832, 480), steps=10, guidance=3.0, shift=5.0)
FAST = dataclasses.replace(SETTINGS, steps=4, guidance=1.0)


def lora(path: str, scale: float = 1.0, expert: str | None = None) -> Lora:
    return Lora(Path(path).stem, Path(path), "", scale, (4,), 1, 0, expert)  # type: ignore[arg-type]


PUSA, LIGHTNING = (
    lora("/l/pusa_v1.safetensors"),
    lora("/l/Wan2.2-T2V-A14B-4steps-lora-rank64/low_noise_model.safetensors"),
)

HIGH, LOW = lora("/p/high_noise_pusa.pt", expert="high"), lora("/p/low_noise_pusa.pt", expert="low")


@pytest.mark.parametrize(
    ("loras", "settings", "given", "expected"),
    [
        ([PUSA], SETTINGS, True, []),
        ([PUSA], SETTINGS, False, []),
        ([], SETTINGS, False, []),
        ([], SETTINGS, True, ["no LoRA that is known"]),
        ([lora("/l/style.safetensors")], SETTINGS, True, ["the model has no LoRA"]),
        ([dataclasses.replace(PUSA, scale=0.0)], SETTINGS, True, ["the model has no LoRA"]),
        ([PUSA, LIGHTNING], FAST, True, []),
        ([PUSA, LIGHTNING], SETTINGS, True, ["guidance is 3: give guidance 1"]),
        ([PUSA, LIGHTNING], dataclasses.replace(FAST, steps=30), True, ["there are 30 steps"]),
        ([HIGH, LOW, LIGHTNING], dataclasses.replace(FAST, guidance_2=2.0), True, ["guidance is 2"]),
        ([LIGHTNING], SETTINGS, True, ["guidance is 3", "no LoRA that is known"]),
        ([HIGH], SETTINGS, True, ["the low-noise expert has no LoRA"]),
        ([HIGH, LOW], SETTINGS, True, []),
        ([PUSA, lora("/l/pusa_mine.pt")], SETTINGS, False, ["pusa_v1.safetensors and pusa_mine.pt each teach"]),
        ([lora("/l/style.safetensors", expert="low")], SETTINGS, True, ["neither expert has a LoRA"]),
        ([lora("/l/wan22_high_x.pt", expert="high")], SETTINGS, False, []),
        ([lora("/l/wan22_high_x.pt", expert="low")], SETTINGS, False, ["for the high-noise expert, and it runs on"]),
        ([lora("/l/A14B_LN.pt", expert="high"), lora("/l/A14B_LN.pt", expert="low")], SETTINGS, False,
         ["may be for the low-noise expert, and it runs on both experts"]),
        ([lora("/l/wan22_high_x.pt")], SETTINGS, False, []),
    ],
)  # fmt: skip
def test_contradictions(loras: list[Lora], settings: Settings, given: bool, expected: list[str]) -> None:
    said = advice("Wan-AI/Wan2.1-T2V-14B-Diffusers", loras, settings, given=given)
    assert len(said) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, said, strict=True))
    assert not any("\n" in sentence for sentence in said)


def test_a_merged_adapter_is_known_and_wants_no_second_one() -> None:
    def said(loras: list[Lora], *merged: str, two: bool = False) -> list[str]:
        settings = dataclasses.replace(SETTINGS, guidance_2=3.0, boundary=0.875) if two else SETTINGS
        return advice("/models/wan", loras, settings, given=True, merged=merged)

    assert said([], "transformer") == []
    assert "and the weights themselves each teach" in said([PUSA], "transformer")[0]
    assert said([], "transformer", "transformer_2", two=True) == []
    assert said([LOW], "transformer") == []
    assert "the low-noise expert has no LoRA" in said([], "transformer", two=True)[0]


def test_a_merged_pusa_needs_no_lora() -> None:
    assert advice("/models/Wan21-Pusa-merged", [], SETTINGS, given=True) == []


def test_metadata_tells_more_than_the_name(tmp_path: Path) -> None:
    for pattern, per_frame in (("independent", True), ("tasks", True), ("shared", False)):
        file = tmp_path / f"pusa_{pattern}.safetensors"
        save_file({"x": torch.zeros(1)}, file, {"pusa.pattern": pattern})
        assert is_per_frame(file) is per_frame
    assert not is_per_frame(Path("/home/me/pusa/loras/style.safetensors"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/l/lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors", True),
        ("/hub/models--lightx2v--Wan2.2-Lightning/snapshots/0/x/high_noise_model.safetensors", True),
        ("/l/Wan21_CausVid_14B_T2V_lora_rank32.safetensors", True),
        ("/l/my_900_steps.safetensors", False),
        ("/l/checkpoints/step_000400/lora.safetensors", False),
        ("/l/Wan21_PusaV1_LoRA_14B_rank512_bf16.safetensors", False),
    ],
)
def test_distilled_loras_are_known_by_their_names(path: str, expected: bool) -> None:
    assert is_distilled(Path(path)) is expected


def test_the_pipeline_warns(tiny_folder: Path, tiny_pipe: Pipeline) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    with pytest.warns(UserWarning, match="no LoRA that is known to take a timestep per frame"):
        tiny_pipe.generate("a red circle", [Image(picture)], steps=1)


def test_the_embedded_model_does_not(recwarn: pytest.WarningsRecorder) -> None:
    from pusa import embedded

    if not embedded.folder().is_dir():
        pytest.skip("the embedded model is left out of this installation")
    pipe = load("tiny", device="cpu")
    pipe.generate("a red circle", [Image(np.zeros((64, 64, 3), np.uint8))], steps=1, frames=5)
    assert not [w for w in recwarn if "LoRA" in str(w.message)]


def test_a_lora_of_the_embedded_base_beside_the_embedded_adapter(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"pusa.pattern": "independent"})
    mine, own = lora(str(file)), lora("/e/pusa.safetensors")
    (said,) = advice("tiny", [own, mine], SETTINGS, given=True)
    assert "tiny brings its own, and tiny-base has none" in said
    assert advice("tiny-base", [mine], SETTINGS, given=True) == []
