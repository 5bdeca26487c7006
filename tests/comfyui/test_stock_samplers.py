"""ComfyUI's own samplers with per-frame noise in the model: which are exact, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pusa.core import sigmas
from pusa.errors import InputError
from tests.comfyui import hosts
from tests.comfyui.conftest import SLOTS, Twins
from tests.comfyui.test_sampler import TOLERANCE, matrix, picture, sampled

STEPS, FRACTION = 8, 0.3
GRID = sigmas.grid(STEPS, 5.0).float()
LATENT = torch.randn(1, 16, SLOTS, 4, 4, generator=torch.Generator().manual_seed(3))


def run(twins: Twins, model: Any, latent: Any, name: str = "euler", grid: Tensor = GRID, **more: Any) -> Tensor:
    import comfy.sample
    import comfy.samplers

    samples, sampler = latent["samples"], comfy.samplers.sampler_object(name)
    noise = more.pop("noise", comfy.sample.prepare_noise(samples, 7))
    options = {"noise_mask": latent.get("noise_mask"), "disable_pbar": True, "seed": 7} | more
    return comfy.sample.sample_custom(
        model, noise, 2.5, sampler, grid, twins.positive, twins.negative, samples, **options
    )


def applied(twins: Twins, latent: Any, model: Any = None) -> tuple[Any, Any]:
    from comfyui import PusaStockSamplers

    return PusaStockSamplers().apply(twins.model if model is None else model, latent)


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference of two samples; with `-s` it is printed."""
    largest = float((one - other).abs().max())
    print(f"{largest:.1e}")
    return largest


def masked(levels: list[float]) -> dict[str, Tensor]:
    from comfyui.latents import mask_of

    return {"samples": LATENT, "noise_mask": mask_of(levels, LATENT)}


def test_euler_makes_the_clip_of_the_pusa_sampler(twins: Twins, noise_frames: Any) -> None:
    latent = picture(twins, twins.empty(), noise_frames(1, 0), 0)
    latent = picture(twins, latent, noise_frames(1, 1), -1, 0.4)
    ours = sampled(twins, latent, matrix(latent, STEPS))["samples"]
    assert far(run(twins, *applied(twins, latent)), ours) < TOLERANCE


def test_the_control_the_noise_mask_alone_is_far_away(twins: Twins, noise_frames: Any) -> None:
    latent = picture(twins, twins.empty(), noise_frames(1, 0), 0, 0.4)
    ours = sampled(twins, latent, matrix(latent, STEPS))["samples"]
    assert far(run(twins, twins.model, latent), ours) > 1e-1


def test_the_control_a_clean_clip_of_one_noise_level_is_far_away(
    twins: Twins, noise_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network gets the timesteps of all frames, but the model answers x − σ v with one σ for the clip."""
    from comfyui.stock_samplers import PerFrameSampling

    latent = picture(twins, twins.empty(), noise_frames(1, 0), 0, 0.4)
    ours = sampled(twins, latent, matrix(latent, STEPS))["samples"]
    model, free = applied(twins, latent)
    plain = type(twins.model.get_model_object("model_sampling")).calculate_denoised
    monkeypatch.setattr(PerFrameSampling, "calculate_denoised", plain)
    assert far(run(twins, model, free), ours) > 1e-1


def test_two_experts_one_after_the_other(twins: Twins, noise_frames: Any) -> None:
    """As with two advanced KSamplers: the first one leaves noise in the clip, the second one adds none."""
    latent = picture(twins, twins.empty(), noise_frames(1, 0), 0, 0.2)
    walked = matrix(latent, STEPS)
    ours = sampled(twins, latent, walked, low_noise_model=twins.low, low_noise_cfg=2.5, boundary=0.875)["samples"]
    at = int((walked.model_sigma.amax(dim=1) >= 0.875).sum())
    high, free = applied(twins, latent)
    low, _ = applied(twins, latent, twins.low)
    noisy = run(twins, high, free, grid=GRID[: at + 1])
    stock = run(twins, low, {"samples": noisy}, grid=GRID[at:], noise=torch.zeros_like(noisy))
    assert far(stock, ours) < TOLERANCE


def names() -> list[str]:
    if not hosts.REAL:
        return ["euler"]
    import comfy.samplers

    return list(comfy.samplers.SAMPLER_NAMES)


@pytest.mark.parametrize("name", names())
def test_which_samplers_are_exact(twins: Twins, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every frame has the multiplier m, the clip is that of the plain model with noise levels m σ.

    A frame without noise keeps its latent. The list of the node has the samplers for which both hold.
    """
    import comfy.samplers

    from comfyui import stock_samplers

    function = stock_samplers.name_of(comfy.samplers.sampler_object(name))
    listed = function in stock_samplers.ACCEPTED
    monkeypatch.setattr(stock_samplers, "ACCEPTED", (function,))
    scaled = run(twins, *applied(twins, masked([FRACTION] * SLOTS)), name)
    plain = run(twins, twins.model, {"samples": LATENT}, name, FRACTION * GRID)
    fraction = far(scaled, plain)
    mixed = run(twins, *applied(twins, masked([0, FRACTION, 1, 1, 1])), name)
    held = far(mixed[:, :, 0], LATENT[:, :, 0])
    assert listed == (fraction < 1e-3 and held < 1e-5), (fraction, held)


def test_a_sampler_that_adds_noise_of_its_own_is_refused(twins: Twins) -> None:
    model, latent = applied(twins, masked([0, 1, 1, 1, 1]))
    with pytest.raises(InputError, match="euler_ancestral does not keep the noise levels"):
        run(twins, model, latent, "euler_ancestral")


def test_the_latent_with_its_mask_is_refused(twins: Twins) -> None:
    latent = masked([0, 1, 1, 1, 1])
    model, free = applied(twins, latent)
    assert "noise_mask" not in free
    with pytest.raises(InputError, match="still has its noise mask"):
        run(twins, model, latent)


def test_another_length_is_refused(twins: Twins) -> None:
    model, _ = applied(twins, masked([0, 1, 1, 1, 1]))
    with pytest.raises(InputError, match="for 5 latent frames and the latent has 4"):
        run(twins, model, {"samples": LATENT[:, :, :4]})


def test_a_second_node_or_a_later_shift_is_refused(twins: Twins) -> None:
    latent = masked([0, 1, 1, 1, 1])
    model, free = applied(twins, latent)
    with pytest.raises(InputError, match="noise levels per frame already"):
        applied(twins, latent, model)
    later = model.clone()
    later.add_object_patch("model_sampling", twins.model.get_model_object("model_sampling"))
    with pytest.raises(InputError, match="set the shift before"):
        run(twins, later, free)


def test_the_model_itself_does_not_change(twins: Twins) -> None:
    before = run(twins, twins.model, {"samples": LATENT})
    run(twins, *applied(twins, masked([0, 1, 1, 1, 1])))
    assert torch.equal(run(twins, twins.model, {"samples": LATENT}), before)
