"""The size of each deliberate difference from the official code, on the embedded model.

    python benchmarks/official.py [--scenes 4]

Each row makes the same clips twice: as pusa does, and with one thing as the official code (or Kijai's nodes) does it.
The numbers are the relative differences of the latents of the frames that are made, |a - b| / |b|, in the mean over
held-out scenes. Other rows give the size of a difference in its own unit. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pusa
from pusa.core import sigmas
from pusa.core.timesteps import TimestepMatrix
from pusa.evaluation.synthetic.tasks import SceneTask
from pusa.media.images import fit

TASK, NOISE, SHIFT = "image-to-video", 0.2, 5.0
TILE, STRIDE = (30, 52), (15, 26)
"""latents, the defaults of the official pipelines"""


@contextmanager
def told(pipe: pusa.Pipeline, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, the network receives changed timesteps."""

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"timestep": change(kwargs["timestep"])}

    handle = pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def floored(timestep: Tensor) -> Tensor:
    return timestep.floor()


def as_official(timestep: Tensor) -> Tensor:
    """bfloat16 for the clip, times the multiplier, then whole numbers: as the official pipelines with conditions."""
    top = timestep.max(dim=1, keepdim=True).values
    shares = timestep / top
    return (top.bfloat16().float() * shares).bfloat16().long().bfloat16().float()


def clips(pipe: pusa.Pipeline, scenes: int, steps: int, noise: float, change: Any = None) -> list[Tensor]:
    """The latents of the frames that are made. change: a function of a matrix."""
    made = []
    for scene in range(scenes):
        entry = SceneTask(TASK, scene)
        given = [pusa.Image(entry.truth()[0], noise=noise)]
        plan_matrix = None
        if change is not None:
            first = pipe.generate(entry.scene.caption, given, steps=steps, shift=SHIFT, seed=scene)
            plan_matrix = change(first.matrix)
            given = [replace(given[0], noise=0.0)]
        options: dict[str, Any] = {"seed": scene}
        options |= {"steps": steps, "shift": SHIFT} if plan_matrix is None else {"matrix": plan_matrix}
        made.append(pipe.generate(entry.scene.caption, given, **options).latents[:, :, 1:])
    return made


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return float(np.mean([(a - b).norm() / a.norm() for a, b in zip(ours, theirs, strict=True)]))


def stays_clean(matrix: TimestepMatrix) -> TimestepMatrix:
    """The given frame stays clean, and the model is told m t, as in Kijai's WanVideoWrapper by default."""
    sigma = matrix.sigma.clone()
    sigma[:, 0] = 0
    return TimestepMatrix.from_sigma(sigma, model_sigma=matrix.model_sigma.clone())


def tiles(vae: Any) -> tuple[float, float]:
    """The relative difference of encoding and decoding in the official tiles, for a picture of 60x104 latents."""
    factor = vae.config.scale_factor_spatial
    picture = torch.from_numpy(fit(SceneTask(TASK, 0).truth()[:1], (104 * factor, 60 * factor)).copy())
    picture = picture.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    picture += 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    whole = vae.encode(picture).latent_dist.mode()
    decoded = vae.decode(whole).sample
    vae.enable_tiling(*(factor * length for length in (*TILE, *STRIDE)))
    try:
        tiled, again = vae.encode(picture).latent_dist.mode(), vae.decode(whole).sample
    finally:
        vae.disable_tiling()
    return float((whole - tiled).norm() / whole.norm()), float((again - decoded).norm() / decoded.norm())


def law(name: str, levels: Tensor) -> str:
    shares = ", ".join(f"{float((levels > at).double().mean()):.0%} above {at:g}" for at in (0.5, 0.9))
    return f"{name}: mean σ {float(levels.mean()):.3f}, {shares}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    scenes = parser.parse_args().scenes
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pipe = pusa.load("tiny", device="cpu")
    print("| difference | size |\n| --- | ---: |")
    for steps in (4, 10):
        ours = clips(pipe, scenes, steps, NOISE)
        for name, change in (("floored to whole numbers", floored), ("in bfloat16, then floored", as_official)):
            with told(pipe, change):
                theirs = clips(pipe, scenes, steps, NOISE)
            print(f"| timesteps {name}, {steps} steps, noise {NOISE:g} | {apart(ours, theirs):.1e} |", flush=True)
        kijai = clips(pipe, scenes, steps, NOISE, stays_clean)
        print(f"| the given frame is told m t and stays clean, {steps} steps | {apart(ours, kijai):.1e} |", flush=True)
        other = clips(pipe, scenes, steps, 0.0)
        print(f"| control: noise 0 instead of {NOISE:g}, {steps} steps | {apart(ours, other):.1e} |", flush=True)
    with torch.no_grad():
        encoded, decoded = tiles(pipe.vae)
    print(f"| encoding in tiles of {TILE[0]}x{TILE[1]} latents | {encoded:.1e} |")
    print(f"| decoding in such tiles | {decoded:.1e} |", flush=True)
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    print(f"| initial noise in bfloat16 | {float((noise - noise.bfloat16()).norm() / noise.norm()):.1e} |")
    values = np.linspace(-1, 1, 1_000_001)
    exact = (values + 1) * 127.5
    error = np.floor(exact) - np.rint(exact)
    print(f"| pixels cut to uint8 instead of rounded, in levels, mean | {error.mean():.2f} |")
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    print(f"| training law | {law('paper', sigmas.uniform(u))}; {law('official', sigmas.shifted(5.0, 1000)(u))} |")


if __name__ == "__main__":
    main()
