"""The pieces of work that the performance benchmarks time: a denoising step, a decode, a LoRA step.

Weights and inputs are random; neither changes the time. The timesteps differ between the frames of a clip, so that the
network takes one per frame: the first frame is given, and the others are noise.

A denoising step needs torch and diffusers alone, so peft, and what decoding needs, are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from pusa import embedded
from pusa.core.objectives import flow_matching_loss
from pusa.models.wan.text import TOKENS
from pusa.models.wan.transformer import VectorWanTransformer3DModel

Shape = tuple[int, int, int]
"""latent frames, height and width in latents"""


def transformer(
    dims: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cls: type[WanTransformer3DModel] = VectorWanTransformer3DModel,
) -> Any:
    """A transformer of random weights, in the types in which pusa loads one."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that 14B is never there in float32
    try:
        with torch.device(device):
            model = cls(**dims)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in model.named_parameters():
        if set(cls._keep_in_fp32_modules) & set(name.split(".")):
            parameter.data = parameter.data.float()
    return model.eval().requires_grad_(False)


def embedded_transformer() -> Any:
    """The transformer of the embedded model."""
    stock = WanTransformer3DModel.from_pretrained(embedded.folder() / "transformer")
    return VectorWanTransformer3DModel.upgrade(stock).eval().requires_grad_(False)


def embedded_autoencoder() -> AutoencoderKLWan:
    """The autoencoder of the embedded model, with the layers that pusa gives it."""
    from pusa.models.wan import autoencoder_layers

    stock = AutoencoderKLWan.from_pretrained(embedded.folder() / "vae").eval().requires_grad_(False)
    return autoencoder_layers.upgrade(stock)


def inputs(model: Any, shape: Shape, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, C, F, h, w], the timestep of each frame [B, F], and a text [B, 512, D]."""
    frames, height, width = shape
    config, weight = model.config, model.proj_out.weight
    rng = torch.Generator(weight.device).manual_seed(1)
    options = {"generator": rng, "device": weight.device, "dtype": weight.dtype}
    latents = torch.randn(batch, config.in_channels, frames, height, width, **options)
    text = torch.randn(batch, TOKENS, config.text_dim, **options)
    times = torch.full((batch, frames), 900.0, device=weight.device)
    times[:, 0] = 0
    return latents, times, text


def tokens(model: Any, shape: Shape) -> int:
    """The tokens of one clip."""
    along = (side // patch for side, patch in zip(shape, model.config.patch_size, strict=True))
    return prod(int(number) for number in along)


def denoising_step(model: Any, shape: Shape, batch: int = 1) -> Callable[[], Any]:
    """One call of the transformer."""
    latents, times, text = inputs(model, shape, batch)

    @torch.no_grad()
    def run() -> Any:
        return model(latents, times, text, return_dict=False)[0]

    return run


def decode(vae: AutoencoderKLWan, shape: Shape) -> Callable[[], Any]:
    """A clip from latents to pixels."""
    from pusa.models.wan import autoencoder

    latents = torch.randn(1, vae.config.z_dim, *shape, generator=torch.Generator().manual_seed(1))
    return lambda: autoencoder.decode(vae, latents)


def lora_step(
    model: Any, shape: Shape, batch: int = 1, rank: int = 32, checkpointing: bool = False
) -> Callable[[], Any]:
    """A training step of a new LoRA: forward, backward and AdamW. The model keeps the LoRA."""
    from peft import LoraConfig

    from pusa.training.config.sections import TARGETS

    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    clean, times, text = inputs(model, shape, batch)
    noise, half = torch.randn_like(clean), clean.dtype != torch.float32

    def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            out: Tensor = model(x, 1000 * sigma, context, return_dict=False)[0]
        return out

    def run() -> None:
        loss = flow_matching_loss(velocity, clean, noise, times / 1000, text)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run
