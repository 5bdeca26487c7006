"""The node that gives a model per-frame noise levels, for ComfyUI's own samplers.

A stock sampler has one σ for the clip and moves x along (x − D) / σ, where D is the clean clip that the model answers.
A frame with multiplier m is at the level m σ, so its clean frame is D = x − m σ v, and (x − D) / σ = m v. This is the
derivative of the frame by σ. A sampler that takes the same step when all σ are scaled then treats the frame exactly
as one at m σ. The three formulas that contain σ are replaced: the mix with noise at the start, D, and the inverse of
the mix.

ComfyUI's noise mask does something else with fractional values: it mixes the given frame into x and D at every step. So
the LATENT must not have it any more.
"""

from __future__ import annotations

import copy
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from pusa.errors import InputError

from .latents import Latent, multipliers
from .timesteps import KEY, check_model, per_frame
from .widgets import CATEGORY

ACCEPTED = (
    *("euler", "heun", "heunpp2", "dpm_2", "dpm_fast", "dpm_adaptive", "dpmpp_2m", "dpmpp_2m_cfg_pp", "lcm", "lms"),
    *("ipndm", "ipndm_v", "res_multistep", "res_multistep_cfg_pp", "uni_pc", "uni_pc_bh2"),
    *("gradient_estimation", "gradient_estimation_cfg_pp"),
)
"""ComfyUI's samplers that treat a frame with multiplier m as one at m σ: uni_pc within 4e-4, the others within 2e-5.

`tests/comfyui/test_stock_samplers.py` measures every sampler.
"""


class PusaStockSamplers:
    """Moves the noise multipliers of a latent into the model."""

    TITLE = "Pusa: Per-Frame Noise for KSampler"
    DESCRIPTION = (
        "Gives a model the noise levels of the given frames, so that KSampler can be used. Connect both outputs to it, "
        "and set the shift of the model before this node."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MODEL", "LATENT")
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("MODEL",), "latent": ("LATENT",)}}

    def apply(self, model: Any, latent: Latent) -> tuple[Any, Latent]:
        check_model(model)
        levels = torch.tensor(multipliers(latent), dtype=torch.float32)
        patched = model.clone()
        patched.add_object_patch("model_sampling", per_frame_sampling(model.get_model_object("model_sampling"), levels))
        kinds = comfy.patcher_extension.WrappersMP
        rows = per_frame(lambda timestep: timestep[:, None] * levels.to(timestep))
        patched.add_wrapper_with_key(kinds.DIFFUSION_MODEL, KEY, rows)
        patched.add_wrapper_with_key(kinds.SAMPLER_SAMPLE, KEY, _checked)
        return patched, {key: value for key, value in latent.items() if key != "noise_mask"}


class PerFrameSampling:
    """The formulas of ComfyUI's flow matching (`CONST`) with the level m σ for a frame with multiplier m."""

    frame_multipliers: Tensor

    def _levels(self, sigma: Tensor) -> Tensor:
        """σ, one number or one per clip, to [B or 1, 1, F, 1, 1]."""
        return (sigma.reshape(-1, 1) * self.frame_multipliers.to(sigma))[:, None, :, None, None]

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_input - model_output * self._levels(sigma)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        levels = self._levels(sigma)
        return levels * noise + (1 - levels) * latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - self._levels(sigma))


def per_frame_sampling(sampling: Any, levels: Tensor) -> Any:
    """Return a copy of a model's sampling object with the multipliers `levels` [F]. Its grid and shift stay."""
    own = copy.deepcopy(sampling)
    own.__class__ = type("PerFrame" + type(sampling).__name__, (PerFrameSampling, type(sampling)), {})
    own.frame_multipliers = levels
    return own


def name_of(sampler: Any) -> str:
    """Return ComfyUI's name of a sampler object, by the name of its function."""
    function: str = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    return function.removeprefix("sample_").removesuffix("_function").replace("unipc", "uni_pc")


def _checked(
    executor: Any,
    model_wrap: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    disable_pbar: bool = False,
) -> Tensor:
    """Call a sampler, if the clip that it makes is right."""
    if denoise_mask is not None:
        raise InputError(f"The latent still has its noise mask: connect the latent of '{PusaStockSamplers.TITLE}'.")
    sampling = model_wrap.inner_model.model_sampling
    if not isinstance(sampling, PerFrameSampling):
        raise InputError(
            f"Another node replaced the sampling of the model after '{PusaStockSamplers.TITLE}': set the shift before."
        )
    if len(sampling.frame_multipliers) != noise.shape[2]:
        raise InputError(
            f"The model has noise levels for {len(sampling.frame_multipliers)} latent frames and the latent has "
            f"{noise.shape[2]}: connect the latent of '{PusaStockSamplers.TITLE}'."
        )
    name = name_of(executor.class_obj)
    if name not in ACCEPTED:
        raise InputError(
            f"The sampler {name} does not keep the noise levels of given frames: use {', '.join(ACCEPTED)}, or "
            "the Pusa sampler."
        )
    samples: Tensor = executor(
        model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
    )
    return samples
