"""Measuring accelerations on a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pusa.evaluation.acceleration.calibrate import calibrate
from pusa.evaluation.acceleration.proxies import SIGNS, spearman
from pusa.evaluation.acceleration.tasks import IDENTICAL, psnr
from pusa.generation.calibration import Calibration
from pusa.generation.pipeline import load

pytestmark = pytest.mark.filterwarnings("ignore:Some frames are given, and the model has no LoRA")


def test_speed_closeness_and_what_was_computed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUSA_CACHE", str(tmp_path))
    pipe = load(tiny_folder, device="cpu")
    seen: list[tuple[int, int]] = []
    names = ("steps,threshold=0", "steps,threshold=100,first=0")
    found = calibrate(
        pipe, ["a red circle"], names, lambda _, done, total: seen.append((done, total)), steps=8, guidance=2.0
    )
    exact, rough = (next(one for one in found.settings() if one.accelerate == name) for name in names)
    assert (exact.computed, exact.psnr) == (1.0, IDENTICAL)
    blocks = len(pipe.transformer.blocks)
    assert rough.computed == pytest.approx((blocks + 7) / (8 * blocks), abs=1e-3)
    assert rough.psnr < IDENTICAL
    assert {row.task for row in found.measured} == {"text to video", "image to video", "extension"}
    assert set(found.proxies) == set(SIGNS)
    assert seen[-1] == (10, 10)
    assert len(seen) == 11
    found.save()
    again = Calibration.find(pipe.backbone.source, 8)
    assert again.settings() == found.settings()


def test_measures() -> None:
    plain = np.full((3, 4, 4, 3), 100, np.uint8)
    made = plain.copy()
    assert psnr(made, plain, slice(None)) == IDENTICAL
    made[0] += 10
    assert psnr(made, plain, slice(1, None)) == IDENTICAL
    assert psnr(made, plain, slice(0, 1)) == pytest.approx(20 * np.log10(25.5))
    assert spearman([1, 2, 3, 9], [2, 3, 8, 80]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
