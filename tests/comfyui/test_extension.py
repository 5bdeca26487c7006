"""Extension from latents: the window, the join, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pusa.errors import InputError
from pusa.generation.pipeline import extend
from tests.comfyui.conftest import PROMPT, SLOTS, Twins
from tests.comfyui.test_sampler import ONE_EXPERT, TOLERANCE, difference, made, matrix, sampled


def window(twins: Twins, clip: Any, overlap: int = 9, frames: int = 8, noise: str = "0, 0.3, 0.5", **more: Any) -> Any:
    from comfyui import PusaExtend

    return PusaExtend().extend(clip, twins.vae, overlap, frames, noise, **more)[0]


def joined(clip: Any, after: Any) -> Any:
    from comfyui import PusaJoin

    return PusaJoin().join(clip, after)[0]


@pytest.fixture
def clip(twins: Twins) -> Any:
    return sampled(twins, twins.empty())


@pytest.mark.parametrize("decoded", [True, False])
def test_the_longer_clip_is_that_of_the_pipeline(twins: Twins, clip: Any, decoded: bool) -> None:
    before = made(twins, [])
    options: Any = {"overlap": 9, "frames": 8, "noise": (0.0, 0.3, 0.5), "steps": 6, "guidance": 2.5, "seed": 7}
    longer = extend(twins.pipe, before, PROMPT, **options, **ONE_EXPERT)
    images = {"images": twins.vae.decode(clip["samples"])[0]} if decoded else {}
    latent = window(twins, clip, **images)
    out = joined(clip, sampled(twins, latent, matrix(latent)))
    assert out["samples"].shape[2] == SLOTS + 2
    assert difference(twins, out, longer) < 20 * TOLERANCE  # a pixel may round the other way
    assert torch.equal(out["samples"][:, :, :SLOTS], clip["samples"])
    free = {"samples": torch.zeros_like(latent["samples"]), "pusa_overlap": 3}
    other = joined(clip, sampled(twins, free, matrix(free)))
    assert difference(twins, other, longer) > 1e-2


def test_the_window_begins_with_the_last_latents_of_the_clip(twins: Twins, clip: Any) -> None:
    from comfyui.latents import multipliers

    latent = window(twins, clip)
    assert torch.equal(latent["samples"][:, :, 1:3], clip["samples"][:, :, -2:])
    assert multipliers(latent) == pytest.approx([0, 0.3, 0.5, 1, 1])
    whole = window(twins, clip, overlap=17, noise="0.2")
    assert torch.equal(whole["samples"][:, :, :SLOTS], clip["samples"])


def test_what_does_not_fit_is_refused(twins: Twins, clip: Any) -> None:
    with pytest.raises(InputError, match=r"overlap is 21 frames of a clip of 17: give 4m\+1, from 5 to 17"):
        window(twins, clip, overlap=21)
    with pytest.raises(InputError, match="overlap is 1 frames"):
        window(twins, clip, overlap=1)
    with pytest.raises(InputError, match="6 frames cannot be added"):
        window(twins, clip, frames=6)
    with pytest.raises(InputError, match="2 numbers for 3 latent frames"):
        window(twins, clip, noise="0, 0.2")
    with pytest.raises(InputError, match="end of the clip is empty"):
        window(twins, twins.empty())
    with pytest.raises(InputError, match="latent has 2 clips"):
        window(twins, twins.empty(2))
    with pytest.raises(InputError, match="4 images for a clip of 17"):
        window(twins, clip, images=torch.zeros(4, 32, 32, 3))
    with pytest.raises(InputError, match="another size"):
        window(twins, clip, images=torch.zeros(17, 16, 32, 3))
    with pytest.raises(InputError, match="does not say how many frames"):
        joined(clip, clip)
    with pytest.raises(InputError, match="different sizes"):
        joined({"samples": torch.zeros(1, 16, 3, 8, 8)}, window(twins, clip))
