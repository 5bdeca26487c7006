"""A small random Wan as a pipeline and as a MODEL of ComfyUI: the same weights in both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pusa.generation.pipeline import Pipeline, load
from tests.comfyui import hosts

hosts.start()

PROMPT = "a red circle moves left on a black background"
FRAMES, SIDE = 17, 32
SLOTS = 5


class Vae:
    """A VAE of ComfyUI with the autoencoder of a pipeline. Pictures are float [N, H, W, 3] in [0, 1]."""

    def __init__(self, pipe: Pipeline, latent_format: Any) -> None:
        self.pipe, self.latent_format = pipe, latent_format

    def spacial_compression_encode(self) -> int:
        return self.pipe.backbone.geometry.spatial

    def encode(self, pixels: Tensor) -> Tensor:
        frames = (pixels * 255).round().to(torch.uint8).numpy()
        return self.latent_format.process_out(self.pipe.encode(frames))  # type: ignore[no-any-return]

    def decode(self, samples: Tensor) -> Tensor:
        frames = self.pipe.decode(self.latent_format.process_in(samples))
        return torch.from_numpy(np.asarray(frames)).float()[None] / 255


@dataclass
class Twins:
    """A pipeline and what ComfyUI has of the same model."""

    pipe: Pipeline
    model: Any
    low: Any
    vae: Vae
    positive: Any
    negative: Any

    def inside(self, latent: dict[str, Any]) -> Tensor:
        """The samples of a LATENT at the scale of the network."""
        return self.vae.latent_format.process_in(latent["samples"])  # type: ignore[no-any-return]

    def empty(self, batch: int = 1) -> dict[str, Any]:
        return {"samples": torch.zeros(batch, 16, SLOTS, SIDE // 8, SIDE // 8)}


@pytest.fixture(scope="session")
def twins(experts_folder: Path) -> Twins:
    pipe = load(experts_folder, device="cpu")
    for network in (pipe.transformer, pipe.transformer_2):  # so that the timestep of a frame has an effect on the clip
        with torch.no_grad():
            network.condition_embedder.time_proj.weight.mul_(10)
    model, low = hosts.model(pipe.transformer), hosts.model(pipe.transformer_2)
    text = pipe.encode_text([PROMPT, ""]).tokens
    vae = Vae(pipe, model.get_model_object("latent_format"))
    return Twins(pipe, model, low, vae, hosts.conditioning(text[:1]), hosts.conditioning(text[1:]))


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes() -> Iterator[None]:
    with torch.inference_mode():
        yield
