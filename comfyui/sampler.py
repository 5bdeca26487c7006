"""The node that walks a timestep matrix with ComfyUI's models.

`pusa.core.walk` takes the steps, as in the Python package. ComfyUI's guider loads the weights, applies LoRAs and other
patches, and combines the branches of guidance. It works with one noise level σ per clip and answers with the clean clip
D = x − σ v. Here σ is the level of the noisiest frame, the network gets the timesteps of all frames, and the velocity
is v = (x − D) / σ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from pusa.core import Call, Step, TimestepMatrix, add_noise, walk
from pusa.errors import InputError

from .latents import Latent, multipliers, samples_of
from .matrix import MATRIX
from .timesteps import KEY, check_model, per_frame
from .widgets import CATEGORY, widget


class PusaSampler:
    """Samples a clip along a matrix, with one model or with the two experts of Wan2.2 A14B."""

    TITLE = "Pusa: Sampler"
    DESCRIPTION = "Samples a clip in which each latent frame has its own noise level."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        scale: dict[str, Any] = {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.1}
        seed = widget("The seed of the noise.", default=0, min=0, max=2**64 - 1, control_after_generate=True)
        solver = widget("euler: first order, as in the official code. dpm++2m: second order, a history per frame.")
        boundary = widget(
            "The high-noise expert computes the steps whose noisiest frame is at this level or above.",
            default=0.875,
            min=0.0,
            max=1.0,
            step=0.005,
        )
        return {
            "required": {
                "model": ("MODEL",),
                "matrix": (MATRIX,),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent": ("LATENT", widget("The latent for which the matrix was built.")),
                "seed": ("INT", seed),
                "cfg": ("FLOAT", widget("The scale of guidance; 1 is none.", **scale)),
                "solver": (["euler", "dpm++2m"], solver),
            },
            "optional": {
                "low_noise_model": (
                    "MODEL",
                    widget("Wan2.2 A14B: the low-noise expert. `model` is then the high-noise expert."),
                ),
                "low_noise_cfg": ("FLOAT", widget("The scale of guidance of the low-noise expert.", **scale)),
                "boundary": ("FLOAT", boundary),
            },
        }

    def sample(
        self,
        model: Any,
        matrix: TimestepMatrix,
        positive: Any,
        negative: Any,
        latent: Latent,
        seed: int,
        cfg: float,
        solver: str,
        low_noise_model: Any = None,
        low_noise_cfg: float = 3.0,
        boundary: float = 0.875,
    ) -> tuple[Latent]:
        samples = samples_of(latent).float()
        experts = {True: (model, cfg)} | ({False: (low_noise_model, low_noise_cfg)} if low_noise_model else {})
        for one, _ in experts.values():
            check_model(one)
        check_latent(latent, matrix, model)
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
        callback = latent_preview.prepare_callback(model, matrix.steps)
        steps = MatrixWalk(matrix, solver)
        noisiest = matrix.model_sigma.amax(dim=1).tolist()
        for high, group in groupby(low_noise_model is None or level >= boundary for level in noisiest):
            expert, scale = experts[high]
            samples = _guided(expert, positive, negative, scale).sample(
                noise,
                samples,
                steps.sampler(len(list(group))),
                matrix.sigma.amax(dim=1).float(),
                callback=callback,
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=seed,
            )
        samples = samples.to(comfy.model_management.intermediate_device())
        held = torch.tensor(multipliers(latent)) == 0
        samples[:, :, held] = latent["samples"][:, :, held].to(samples)  # bit-identical, without the scale of latents
        return ({**{key: value for key, value in latent.items() if key != "noise_mask"}, "samples": samples},)


def check_latent(latent: Latent, matrix: TimestepMatrix, model: Any) -> None:
    """Raise InputError unless the matrix belongs to the latent and the latent to the model."""
    samples, levels = samples_of(latent), multipliers(latent)
    if (channels := model.get_model_object("latent_format").latent_channels) != samples.shape[1]:
        raise InputError(
            f"The latent has {samples.shape[1]} channels and the model makes {channels}: make another latent."
        )
    if matrix.frames != len(levels):
        raise InputError(
            f"The matrix has {matrix.frames} latent frames and the latent has {len(levels)}: build it for this latent."
        )
    multiplier, start = torch.tensor(levels, dtype=torch.float64), matrix.sigma[0]
    if not multiplier.any():
        raise InputError("Every frame is given without noise, so nothing is left to sample: leave frames free.")
    highest = (start / multiplier)[multiplier > 0].amax()
    if highest > 1 + 1e-6 or not torch.allclose(start, multiplier * highest, rtol=0, atol=1e-6):
        raise InputError("The matrix was built for a latent with other given frames: build it for this latent.")
    empty = ~samples.flatten(3).any(dim=3).any(dim=1).any(dim=0)
    if (missing := empty & (start < 1)).any():
        raise InputError(
            f"Latent frame {int(missing.nonzero()[0])} starts below full noise and is empty: give a clip to edit, or a "
            "strength of 1."
        )


class MatrixWalk:
    """A walk through a matrix whose steps are computed by several guiders, one after the other."""

    def __init__(self, matrix: TimestepMatrix, solver: str) -> None:
        self._matrix, self._solver = matrix, solver
        self._steps: Iterator[Step] | None = None
        self._predict: Callable[[Tensor, Tensor], Tensor]

    def sampler(self, steps: int) -> comfy.samplers.Sampler:
        """Return a ComfyUI sampler that takes the next steps of this walk."""
        return _Steps(self, steps)

    def begin(self, clean: Tensor, noise: Tensor) -> None:
        """Mix the given latents with noise once, unless the walk has begun. Both are [B, C, F, h, w]."""
        if self._steps is None:
            start = self._matrix.sigma[:1].expand(len(clean), -1)
            x = add_noise(clean.float(), noise.float(), start)
            self._steps = walk(self._velocity, x, self._matrix, solver=self._solver)  # type: ignore[arg-type]

    def take(self, steps: int, predict: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Step]:
        """Take steps with `predict`: the velocity of latents [B, C, F, h, w] at the noise levels [B, F]."""
        assert self._steps is not None
        self._predict = predict
        return islice(self._steps, steps)

    def _velocity(self, x: Tensor, sigma: Tensor, context: None, call: Call) -> Tensor:
        return self._predict(x, sigma)


class _Steps(comfy.samplers.Sampler):
    """Some steps of a walk, in the form that ComfyUI's guider calls."""

    def __init__(self, steps: MatrixWalk, count: int) -> None:
        self._walk, self._count = steps, count

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        assert latent_image is not None
        timesteps = model_wrap.inner_model.model_sampling.timestep
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        levels = noise.new_zeros(0)

        def rows(scalar: Tensor) -> Tensor:
            clips: Tensor = timesteps(levels)
            return clips.repeat(len(scalar) // len(levels), 1)  # the branches of guidance are a batch

        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        comfy.patcher_extension.add_wrapper_with_key(kind, KEY, per_frame(rows), options, is_model_options=True)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal levels
            levels, noisiest = sigma, sigma.amax(dim=1)
            clean: Tensor = model_wrap(x, noisiest, model_options=options, seed=extra_args["seed"])
            return (x - clean) / noisiest[:, None, None, None, None]

        self._walk.begin(latent_image, noise)
        for step in self._walk.take(self._count, velocity):
            if callback is not None:
                callback(step.index, step.denoised, step.latents, step.steps)
        return step.latents


def _guided(model: Any, positive: Any, negative: Any, cfg: float) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider
