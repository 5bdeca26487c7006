"""The caches of diffusers by name: they skip, they are counted, and they are refused where they would lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pusa.errors import InputError
from pusa.generation.pipeline import Pipeline, load

PROMPT = "a red circle moves left on a black background"


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder, device="cpu")


@pytest.mark.parametrize("name", ["first-block,threshold=0.5", "taylorseer,every=2"])
def test_they_compute_less_and_the_sidecar_says_how_much(pipe: Pipeline, name: str) -> None:
    plain = pipe.generate(PROMPT, steps=8, guidance=2.0)
    clip = pipe.generate(PROMPT, steps=8, guidance=2.0, accelerate=name)
    assert 0.2 < clip.recipe["acceleration"]["computed"] < 1
    assert not torch.equal(clip.latents, plain.latents)
    assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("name", ["first-block", "taylorseer"])
def test_frames_at_different_levels_are_refused_before_sampling(pipe: Pipeline, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} has one noise level for the clip, and step 2 moves frames at diff"):
        pipe.generate(PROMPT, steps=8, schedule="staircase,block=1,delay=1", accelerate=name)
    pipe.generate(PROMPT, steps=2, accelerate=name)  # and nothing was left enabled
