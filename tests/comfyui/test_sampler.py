"""The sampler node makes the clip that the Python package makes from the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip
from pusa.generation.given import Clip, Image
from tests.comfyui.conftest import FRAMES, PROMPT, SLOTS, Twins

Latent = dict[str, Any]
TOLERANCE = 1e-4
ONE_EXPERT = {"boundary": 0.0}
"""The high-noise expert computes every step of the pipeline."""


def shown(frames: NDArray[np.uint8]) -> Tensor:
    """An IMAGE of ComfyUI."""
    return torch.from_numpy(frames).float() / 255


def matrix(latent: Latent, steps: int = 6, shift: float = 5.0, schedule: str = "synchronous") -> Any:
    from comfyui import PusaMatrix

    return PusaMatrix().build(latent, steps, shift, schedule, 1.0)[0]


def sampled(
    twins: Twins, latent: Latent, walked: Any = None, *, cfg: float = 2.5, solver: str = "euler", **more: Any
) -> Latent:
    from comfyui import PusaSampler

    walked = matrix(latent) if walked is None else walked
    options: Any = {"seed": 7, "cfg": cfg, "solver": solver} | more
    return PusaSampler().sample(twins.model, walked, twins.positive, twins.negative, latent, **options)[0]


def picture(twins: Twins, latent: Latent, frames: NDArray[np.uint8], frame: int, noise: float = 0.0) -> Latent:
    from comfyui import PusaPicture

    return PusaPicture().place(latent, twins.vae, shown(frames), frame, noise, "repeat", "crop")[0]


def made(twins: Twins, conditions: list[Any], **options: Any) -> GeneratedClip:
    options = {"steps": 6, "guidance": 2.5, "seed": 7} | ONE_EXPERT | options
    return twins.pipe.generate(PROMPT, conditions, **options)


def difference(twins: Twins, latent: Latent, clip: GeneratedClip) -> float:
    """The largest difference at the scale of the network; with `-s` it is printed."""
    largest = float((twins.inside(latent) - clip.latents).abs().max())
    print(f"{largest:.1e}")
    return largest


def test_text_to_video(twins: Twins) -> None:
    assert difference(twins, sampled(twins, twins.empty()), made(twins, [])) < TOLERANCE


def test_a_clean_first_frame(twins: Twins, noise_frames: Any) -> None:
    start = noise_frames(1)
    given = picture(twins, twins.empty(), start, 0)
    out = sampled(twins, given)
    clip = made(twins, [Image(start[0])])
    assert difference(twins, out, clip) < TOLERANCE
    assert "noise_mask" not in out
    assert difference(twins, sampled(twins, twins.empty()), clip) > 1e-2


def test_a_frame_without_noise_is_bit_identical(twins: Twins) -> None:
    """The scale of latents, to that of the network and back, would round it."""
    from comfyui.latents import given

    known = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    out = sampled(twins, given(twins.empty(), 1, known, [0.0, 0.3]))["samples"]
    assert torch.equal(out[:, :, 1], known[:, :, 0])
    assert not torch.equal(out[:, :, 2], known[:, :, 1])


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_keyframes_with_fractional_noise(twins: Twins, noise_frames: Any, solver: str) -> None:
    start, middle, end = noise_frames(1, 0), noise_frames(1, 1), noise_frames(1, 2)
    latent = picture(twins, twins.empty(), start, 0, 0.2)
    latent = picture(twins, latent, middle, 6, 0.4)
    latent = picture(twins, latent, end, -1)
    clip = made(twins, [Image(start[0], 0, 0.2), Image(middle[0], 6, 0.4), Image(end[0], -1)], solver=solver)
    assert difference(twins, sampled(twins, latent, solver=solver), clip) < TOLERANCE


def test_the_control_one_timestep_for_all_frames_is_far_away(
    twins: Twins, noise_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wrapper of the network, the same walk differs by a hundred times the tolerance."""
    from comfyui import sampler

    start = noise_frames(1)
    latent = picture(twins, twins.empty(), start, 0, 0.3)
    clip = made(twins, [Image(start[0], 0, 0.3)])
    assert difference(twins, sampled(twins, latent), clip) < TOLERANCE
    monkeypatch.setattr(sampler, "per_frame", lambda rows: lambda executor, *args, **more: executor(*args, **more))
    assert difference(twins, sampled(twins, latent), clip) > 1e-2


def test_a_clip_at_the_end_with_noise_per_latent_frame(twins: Twins, noise_frames: Any) -> None:
    from comfyui import PusaClip

    frames = noise_frames(8, 3)
    latent = PusaClip().place(twins.empty(), twins.vae, shown(frames), -1, "0.3, 0.1", "crop")[0]
    clip = made(twins, [Clip(frames, at=-1, noise=(0.3, 0.1))])
    assert difference(twins, sampled(twins, latent), clip) < TOLERANCE


def test_a_clip_at_the_beginning(twins: Twins, noise_frames: Any) -> None:
    from comfyui import PusaClip

    frames = noise_frames(9, 4)
    latent = PusaClip().place(twins.empty(), twins.vae, shown(frames), 0, "0, 0.3, 0.5", "crop")[0]
    clip = made(twins, [Clip(frames, noise=(0.0, 0.3, 0.5))])
    assert difference(twins, sampled(twins, latent), clip) < TOLERANCE


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_two_experts(twins: Twins, noise_frames: Any, solver: str) -> None:
    start = noise_frames(1)
    latent = picture(twins, twins.empty(), start, 0, 0.2)
    options = {"guidance_2": 1.5, "boundary": 0.875, "solver": solver}
    clip = made(twins, [Image(start[0], 0, 0.2)], **options)
    both: Any = {"low_noise_model": twins.low, "low_noise_cfg": 1.5, "boundary": 0.875, "solver": solver}
    assert difference(twins, sampled(twins, latent, **both), clip) < TOLERANCE
    swapped = {**both, "boundary": 0.95}
    assert difference(twins, sampled(twins, latent, **swapped), clip) > 1e-2
    assert difference(twins, sampled(twins, latent, solver=solver), clip) > 1e-2


def test_guidance_of_one_and_another_shift(twins: Twins) -> None:
    latent = twins.empty()
    out = sampled(twins, latent, matrix(latent, 4, 3.0), cfg=1.0)
    assert difference(twins, out, made(twins, [], steps=4, guidance=1.0, shift=3.0)) < TOLERANCE


def test_a_staircase(twins: Twins, noise_frames: Any) -> None:
    start = noise_frames(1)
    latent = picture(twins, twins.empty(), start, 0)
    walked = matrix(latent, 4, schedule="staircase,block=2,delay=1")
    clip = made(twins, [Image(start[0])], steps=4, schedule="staircase,block=2,delay=1")
    assert walked == clip.matrix
    assert difference(twins, sampled(twins, latent, walked), clip) < TOLERANCE


def test_an_edited_clip(twins: Twins, noise_frames: Any) -> None:
    from comfyui import PusaMatrix

    frames = noise_frames(FRAMES, 5)
    latent = {"samples": twins.vae.encode(shown(frames))}
    walked = PusaMatrix().build(latent, 6, 5.0, "synchronous", 0.6)[0]
    clip = made(twins, [], init=Clip(frames), strength=0.6)
    assert difference(twins, sampled(twins, latent, walked), clip) < TOLERANCE


def test_two_clips_at_once(twins: Twins, noise_frames: Any) -> None:
    """The noise of the second clip follows that of the first, as in ComfyUI's own samplers."""
    latent = picture(twins, twins.empty(2), noise_frames(1), 0, 0.3)
    assert latent["samples"].shape[0] == 2
    both = sampled(twins, latent)["samples"]
    one = sampled(twins, picture(twins, twins.empty(), noise_frames(1), 0, 0.3))["samples"]
    assert float((both[:1] - one).abs().max()) < TOLERANCE
    assert float((both[1:] - one).abs().max()) > 1e-2


def test_every_step_is_reported_and_can_stop_the_sampling(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui import sampler

    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def prepare(model: Any, steps: int) -> Any:
        def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            seen.append((step, total, tuple(x0.shape)))
            if step == 4:
                raise KeyboardInterrupt  # as ComfyUI's progress bar does when the user interrupts

        return callback

    monkeypatch.setattr(sampler.latent_preview, "prepare_callback", prepare)
    latent = twins.empty()
    with pytest.raises(KeyboardInterrupt):
        sampled(twins, latent, low_noise_model=twins.low)
    assert seen == [(step, 6, tuple(latent["samples"].shape)) for step in range(5)]


def test_a_matrix_of_another_latent_is_refused(twins: Twins, noise_frames: Any) -> None:
    latent = picture(twins, twins.empty(), noise_frames(1), 0)
    with pytest.raises(InputError, match="other given frames"):
        sampled(twins, latent, matrix(twins.empty()))
    with pytest.raises(InputError, match="other given frames"):
        sampled(twins, twins.empty(), matrix(latent))
    longer = {"samples": torch.zeros(1, 16, SLOTS + 1, 4, 4)}
    with pytest.raises(InputError, match="6 latent frames and the latent has 5"):
        sampled(twins, twins.empty(), matrix(longer))
    with pytest.raises(InputError, match="nothing is left"):
        sampled(twins, {**twins.empty(), "noise_mask": torch.zeros(1, 1, SLOTS, 4, 4)}, matrix(twins.empty()))


def test_what_cannot_be_sampled_is_refused(twins: Twins) -> None:
    from comfyui import PusaMatrix

    edited = PusaMatrix().build(twins.empty(), 4, 5.0, "synchronous", 0.5)[0]
    with pytest.raises(InputError, match="frame 0 starts below full noise and is empty"):
        sampled(twins, twins.empty(), edited)
    other = {"samples": torch.zeros(1, 48, SLOTS, 4, 4)}
    with pytest.raises(InputError, match="48 channels and the model makes 16"):
        sampled(twins, other)
    with pytest.raises(InputError, match="hides frames"):
        PusaMatrix().build(twins.empty(), 4, 5.0, "chunked,block=2", 1.0)


def test_other_networks_are_refused(twins: Twins) -> None:
    from comfyui.timesteps import check_model

    class VaceWanModel(torch.nn.Module):
        pass

    other = twins.model.clone()
    other.add_object_patch("diffusion_model", VaceWanModel())
    with pytest.raises(InputError, match="VaceWanModel, which takes one timestep per clip"):
        check_model(other)
    check_model(twins.model)
