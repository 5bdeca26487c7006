"""The path and the loss against the equations, written out frame by frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pusa.core import flow_matching_loss, interpolate, sigmas
from pusa.core.objectives import WEIGHTINGS, bell
from pusa.errors import InputError

G = torch.Generator().manual_seed(0)
X0, NOISE, WRONG = (torch.randn(3, 4, 5, 2, 2, generator=G) for _ in range(3))
SIGMA = torch.rand(3, 5, generator=G)


def wrong(x: Tensor, sigma: Tensor, context: None) -> Tensor:
    return WRONG


def frame_errors() -> Tensor:
    return torch.stack(
        [
            torch.stack([((WRONG - NOISE + X0)[b, :, f] ** 2).mean() for f in range(5)])
            for b in range(3)
        ]
    )  # fmt: skip


def test_published_noising_of_a_condition() -> None:
    z, eps = torch.full((1, 1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1, 1), -1.0)
    assert interpolate(z, eps, 0.2).item() == pytest.approx(1.4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_each_frame_is_mixed_at_its_own_level(dtype: torch.dtype) -> None:
    x0, noise = X0.to(dtype, copy=True), NOISE.to(dtype, copy=True)
    x0[0, 0, 0, 0, 0], noise[0, 0, 0, 0, 0] = -0.0, 1.0
    sigma = SIGMA.clone()
    sigma[:, 0], sigma[:, 4] = 0, 1
    mixed = interpolate(x0, noise, sigma)
    assert mixed.dtype == dtype
    for b in range(3):
        for f in range(5):
            s = sigma[b, f].item()
            expected = (1 - s) * x0[b, :, f].double() + s * noise[b, :, f].double()
            assert (mixed[b, :, f].double() - expected).abs().max() < 4 * torch.finfo(dtype).eps + 1e-6
    assert torch.equal(mixed[:, :, 0].view(torch.uint8), x0[:, :, 0].contiguous().view(torch.uint8))
    assert torch.equal(mixed[:, :, 4], noise[:, :, 4])


def test_loss_is_the_mean_squared_error_of_the_velocity() -> None:
    loss = flow_matching_loss(wrong, X0, NOISE, SIGMA)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(frame_errors().mean().item(), abs=1e-6)
    assert flow_matching_loss(lambda x, s, c: NOISE - X0, X0, NOISE, SIGMA).item() == 0


def test_the_model_gets_the_noisy_clip_in_its_dtype_the_levels_in_float32_and_the_context() -> None:
    seen = {}

    def look(x: Tensor, sigma: Tensor, context: str) -> Tensor:
        seen.update(x=x, sigma=sigma, context=context)
        return x

    flow_matching_loss(look, X0.bfloat16(), NOISE.bfloat16(), SIGMA.double(), "words")
    assert torch.equal(seen["x"], interpolate(X0.bfloat16(), NOISE.bfloat16(), SIGMA))
    assert seen["x"].dtype == torch.bfloat16
    assert torch.equal(seen["sigma"], SIGMA)
    assert seen["sigma"].dtype == torch.float32
    assert seen["context"] == "words"


def test_masked_frames_have_no_loss_and_no_gradient_whatever_they_hold() -> None:
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 2] = mask[2, 4] = True
    prediction = WRONG.clone()
    prediction[1] = float("nan")
    prediction.requires_grad_()
    loss = flow_matching_loss(lambda x, s, c: prediction, X0, NOISE, SIGMA, mask=mask)
    assert loss.item() == pytest.approx(frame_errors()[mask].mean().item(), abs=1e-6)
    loss.backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad.abs().amax(dim=(1, 3, 4)) > 0, mask)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_multiply_the_error_of_each_frame(name: str) -> None:
    weight = WEIGHTINGS[name](SIGMA)
    loss = flow_matching_loss(wrong, X0, NOISE, SIGMA, weight=weight)
    assert loss.item() == pytest.approx((weight * frame_errors()).mean().item(), abs=1e-6)


def test_bell_has_the_published_values() -> None:
    published = {1000: 0.0, 900: 0.6309, 800: 1.2086, 700: 1.6714, 500: 2.0764, 300: 1.6713, 100: 0.6380, 5: 0.0319}
    # printed for the nearest point of the 1000-point grid, which lies up to 0.0025 from the level named
    grid = sigmas.grid(1000)[:-1]
    for t, w in published.items():
        nearest = grid[(grid - t / 1000).abs().argmin()]
        assert bell(nearest).item() == pytest.approx(w, abs=5.1e-5)
    assert bell(grid).mean().item() == pytest.approx(1.0, abs=1e-9)


def test_official_weighting_is_the_clips_error_times_the_mean_of_the_bell() -> None:
    loss = flow_matching_loss(wrong, X0, NOISE, SIGMA, weight=WEIGHTINGS["official"](SIGMA))
    errors = frame_errors()
    assert loss.item() == pytest.approx((errors.mean(dim=1) * bell(SIGMA).mean(dim=1)).mean().item(), abs=1e-6)
    per_frame = flow_matching_loss(wrong, X0, NOISE, SIGMA, weight=bell(SIGMA))
    assert abs(loss - per_frame) > 1e-4, "the control: the quirk is not the per-frame weighting"


def test_official_weighting_hardly_varies_as_published() -> None:
    draws = sigmas.ptss(
        20_000, 21, 1.0, law=sigmas.shifted(5.0, levels=1000), generator=torch.Generator().manual_seed(0)
    )
    weight = WEIGHTINGS["official"](draws)[:, 0]
    assert weight.mean().item() == pytest.approx(1.0, abs=0.005)
    assert weight.std().item() == pytest.approx(0.147, abs=0.003)
    assert bell(draws).std() > 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interpolate(X0, NOISE[1:], SIGMA), "both be"),
        (lambda: interpolate(X0[0], NOISE[0], 0.5), "both be"),
        (lambda: interpolate(X0, NOISE, SIGMA[:, :1]), "sigma has shape"),
        (lambda: interpolate(X0, NOISE, SIGMA + 1), "outside"),
        (lambda: interpolate(X0, NOISE, float("nan")), "outside"),
        (lambda: flow_matching_loss(wrong, X0, NOISE, SIGMA[:, 0]), "sigma has shape"),
        (lambda: flow_matching_loss(wrong, X0, NOISE, SIGMA, mask=torch.ones(5, dtype=torch.bool)), "mask has shape"),
        (lambda: flow_matching_loss(wrong, X0, NOISE, SIGMA, mask=torch.zeros(3, 5, dtype=torch.bool)), "no frame"),
        (lambda: flow_matching_loss(wrong, X0, NOISE, SIGMA, weight=torch.ones(3)), "weight has shape"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
