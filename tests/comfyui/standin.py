"""A stand-in for the parts of ComfyUI that the nodes use, for tests without a checkout of it.

It has the names, the arguments, the shapes and the order of calls of ComfyUI. The network is a Wan of diffusers. Both
branches of guidance are one batch, the network gets one timestep per clip unless a wrapper changes it, and the answer
is the clean clip. `hosts.py` runs the same tests with ComfyUI itself.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

CHANNELS = 16


def install() -> None:
    """Register the modules. The names are those of ComfyUI."""
    contents: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.ldm": {},
        "comfy.ldm.wan": {},
        "comfy.ldm.wan.model": {"WanModel": WanModel},
        "comfy.model_management": {"intermediate_device": lambda: torch.device("cpu")},
        "comfy.model_patcher": {"create_model_options_clone": copy.deepcopy},
        "comfy.patcher_extension": {"WrappersMP": WrappersMP, "add_wrapper_with_key": add_wrapper_with_key},
        "comfy.sample": {"prepare_noise": prepare_noise, "sample_custom": sample_custom},
        "comfy.samplers": {"Sampler": Sampler, "CFGGuider": CFGGuider, "sampler_object": sampler_object},
        "comfy.utils": {"common_upscale": common_upscale, "PROGRESS_BAR_ENABLED": False},
        "latent_preview": {"prepare_callback": prepare_callback},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        if name not in sys.modules:
            sys.modules[name] = module
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], leaf, module)


class WrappersMP:
    SAMPLER_SAMPLE = "sampler_sample"
    DIFFUSION_MODEL = "diffusion_model"


def add_wrapper_with_key(
    kind: str, key: str, wrapper: Callable[..., Any], options: dict[str, Any], is_model_options: bool = False
) -> None:
    if is_model_options:
        options = options.setdefault("transformer_options", {})
    options.setdefault("wrappers", {}).setdefault(kind, {}).setdefault(key, []).append(wrapper)


class Executor:
    """Calls the wrappers of a kind around a method, the first one outermost."""

    def __init__(self, original: Callable[..., Any], class_obj: object, kind: str, options: dict[str, Any]) -> None:
        self.original, self.class_obj = original, class_obj
        self.wrappers = [one for group in options.get("wrappers", {}).get(kind, {}).values() for one in group]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        inner = copy.copy(self)
        inner.wrappers = self.wrappers[1:]
        return self.wrappers[0](inner, *args, **kwargs)


class WanModel(nn.Module):
    """The network: timesteps [N] or [N, F] for latents [N, C, F, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.patch_embedding = network.patch_embedding

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: None = None,
        time_dim_concat: None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        call = Executor(self._forward, self, WrappersMP.DIFFUSION_MODEL, options)
        return call(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)  # type: ignore[no-any-return]

    def _forward(self, x: Tensor, timestep: Tensor, context: Tensor, *unused: Any) -> Tensor:
        return self.network(x, timestep, context).sample  # type: ignore[no-any-return]


class Flow:
    """ModelSamplingDiscreteFlow and CONST: σ for a clip, with a shift, and timesteps 1000 σ."""

    def __init__(self) -> None:
        self.shift = 8.0

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 1000

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_input - model_output * _wide(sigma)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return _wide(sigma) * noise + (1 - _wide(sigma)) * latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - _wide(sigma))


def _wide(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1, 1, 1, 1)


class LatentFormat:
    """Latents of the VAE have another scale than those of the network."""

    latent_channels = CHANNELS

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - 0.3) / 1.7

    def process_out(self, latent: Tensor) -> Tensor:
        return latent * 1.7 + 0.3


class BaseModel:
    """The model below a MODEL."""

    def __init__(self, network: Any) -> None:
        self.diffusion_model = WanModel(network)
        self.model_sampling: Any = Flow()
        self.latent_format = LatentFormat()

    def apply_model(self, x: Tensor, t: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        timestep = self.model_sampling.timestep(t).float()
        output = self.diffusion_model(x, timestep, context=context, transformer_options=transformer_options)
        return self.model_sampling.calculate_denoised(t, output, x)  # type: ignore[no-any-return]


class ModelPatcher:
    """A MODEL: the shared base and the patches of this copy."""

    load_device = torch.device("cpu")

    def __init__(self, network: Any) -> None:
        self.model = BaseModel(network)
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.object_patches: dict[str, Any] = {}

    def clone(self) -> ModelPatcher:
        other = copy.copy(self)
        other.model_options = copy.deepcopy(self.model_options)
        other.object_patches = dict(self.object_patches)
        return other

    def add_object_patch(self, name: str, value: Any) -> None:
        self.object_patches[name] = value

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        add_wrapper_with_key(kind, key, wrapper, self.model_options, is_model_options=True)

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))

    def patched(self) -> BaseModel:
        base = copy.copy(self.model)
        base.__dict__.update(self.object_patches)
        return base


class CFGGuider:
    """Loads a model, and answers a sampler with the guided clean clip."""

    def __init__(self, model_patcher: ModelPatcher) -> None:
        self.model_patcher, self.cfg = model_patcher, 1.0
        self.conds: dict[str, Tensor] = {}

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.conds = {"positive": positive[0][0], "negative": negative[0][0]}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def __call__(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
        branches = ["positive"] if self.cfg == 1 else ["negative", "positive"]
        context = torch.cat([self.conds[branch].expand(len(x), -1, -1) for branch in branches])
        many = len(branches)
        x_in, t = x.repeat(many, 1, 1, 1, 1), timestep.expand(len(x)).repeat(many)
        out = self.inner_model.apply_model(x_in, t, context, model_options["transformer_options"]).chunk(many)
        return out[0] if many == 1 else out[0] + (out[1] - out[0]) * self.cfg

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        self.inner_model = self.model_patcher.patched()
        if latent_image.count_nonzero() > 0:
            latent_image = self.inner_model.latent_format.process_in(latent_image)
        if denoise_mask is not None:
            denoise_mask = denoise_mask.expand(*noise.shape)
        options = copy.deepcopy(self.model_patcher.model_options)
        call = Executor(sampler.sample, sampler, WrappersMP.SAMPLER_SAMPLE, options["transformer_options"])
        extra = {"model_options": options, "seed": seed}
        samples = call(self, sigmas, extra, callback, noise, latent_image, denoise_mask, disable_pbar)
        return self.inner_model.latent_format.process_out(samples.float())


class Sampler:
    pass


class KSAMPLER(Sampler):
    """A stock sampler: mixes noise at the start, and the given clip into every call if there is a mask."""

    def __init__(self, sampler_function: Callable[..., Tensor]) -> None:
        self.sampler_function = sampler_function

    def sample(
        self,
        model_wrap: CFGGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        mask = torch.ones(()) if denoise_mask is None else denoise_mask

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            x = x * mask + sampling.noise_scaling(sigma, noise, latent_image) * (1 - mask)
            return model_wrap(x, sigma, **extra_args) * mask + latent_image * (1 - mask)

        x = sampling.noise_scaling(sigmas[0], noise, latent_image)
        return sampling.inverse_noise_scaling(sigmas[-1], self.sampler_function(model, x, sigmas))  # type: ignore[no-any-return]


def sample_euler(model: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, after in pairwise(sigmas):
        x = x + (x - model(x, sigma.expand(len(x)))) / sigma * (after - sigma)
    return x


def sample_euler_ancestral(model: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, after in pairwise(sigmas):
        x = (1 - after) * model(x, sigma.expand(len(x))) + after * torch.randn_like(x)
    return x


def sampler_object(name: str) -> KSAMPLER:
    return KSAMPLER({"euler": sample_euler, "euler_ancestral": sample_euler_ancestral}[name])


def prepare_noise(latent_image: Tensor, seed: int, noise_inds: Any = None) -> Tensor:
    return torch.randn(latent_image.shape, dtype=latent_image.dtype, generator=torch.manual_seed(seed))


def sample_custom(
    model: ModelPatcher,
    noise: Tensor,
    cfg: float,
    sampler: Any,
    sigmas: Tensor,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    noise_mask: Tensor | None = None,
    callback: Any = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor:
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider.sample(noise, latent_image, sampler, sigmas, noise_mask, callback, disable_pbar, seed)


def common_upscale(samples: Tensor, width: int, height: int, upscale_method: str, crop: str) -> Tensor:
    if crop == "center":
        tall, wide = samples.shape[-2:]
        x = round((wide - tall * width / height) / 2) if wide * height > tall * width else 0
        y = round((tall - wide * height / width) / 2) if wide * height < tall * width else 0
        samples = samples[..., y : tall - y, x : wide - x]
    return interpolate(samples, size=(height, width), mode="bilinear", antialias=True)


def prepare_callback(model: ModelPatcher, steps: int) -> Callable[..., None]:
    progress.clear()

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        progress.append(SimpleNamespace(step=step, x0=x0, x=x, total=total_steps))

    return callback


progress: list[SimpleNamespace] = []
"""The steps of the last sampling that the progress bar saw."""
