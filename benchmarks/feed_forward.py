"""The feed-forward layers of the embedded model, with frames of equal noise level merged, beside the reuse of steps.

It is part of `reduction.py`. The PSNR is that of the frames that the sampler changes, to the plain clip. Methods are
compared at the same share of the operations of all blocks, by interpolation along the curve of each clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from merging import Likeness, calibrating, merging
from torch import Tensor

from pusa.embedded import world
from pusa.evaluation.acceleration.tasks import psnr
from pusa.evaluation.intervals import bootstrap
from pusa.generation.clip import GeneratedClip
from pusa.generation.given import Image
from pusa.generation.pipeline import load
from pusa.media.images import Frames

Point = tuple[float, float]
"""share of the operations of all blocks, PSNR in dB"""
TOLERANCES = (0.5, 0.7, 1.0)
POLICIES = {
    "uniform reuse of steps": [f"uniform,every=2,first={first}" for first in (0.4, 0.6, 0.8)],
    "reuse of frames": [f"frames,threshold={threshold}" for threshold in (0.03, 0.06, 0.1)],
}
MERGING = ("merged frames", "merged frames, copied")
SHARES = (0.9, 0.85)
"""of the operations, at which the methods are compared"""
CALIBRATION = 3
"""clips, after those that are measured"""


class Merging:
    """Held-out clips of the embedded model, plain, with an acceleration, and with merged frames."""

    def __init__(self, clips: int, steps: int, case: str) -> None:
        self.pipe = load("tiny", device="cpu")
        self.steps, self.case = steps, case
        scenes = [world.sample(seed, "heldout", "camera" if seed % 2 else "shape") for seed in range(clips)]
        self.prompts = [scene.caption for scene in scenes]
        self.pictures = [Image(world.render(scene, 1)[0]) for scene in scenes]
        self._plain: dict[int, Frames] = {}
        backbone, network = self.pipe.backbone, self.pipe.transformer
        self.layers = [block.ffn for block in network.blocks]
        tokens = backbone.geometry.latent_frames(world.FRAMES) * (world.SIZE // backbone.geometry.multiple) ** 2
        products = sum(2 * tokens * p.numel() for p in self.layers[0].parameters() if p.ndim == 2)
        self.part = products / backbone.block_operations(network, tokens, tokens)
        self._sigma = torch.zeros(1)

    def sigma(self) -> Tensor:
        return self._sigma

    def calibrated(self, clips: Sequence[int]) -> list[Likeness]:
        with self._levels_noted(), calibrating(self.layers, self.sigma) as found:
            for clip in clips:
                self._made(clip)
        return found()

    def merged(self, clip: int, likeness: Sequence[Likeness], tolerance: float) -> Point:
        with self._levels_noted(), merging(self.layers, likeness, tolerance, self.sigma) as merged:
            made = self._made(clip)
        return 1 - self.part * (1 - merged.fraction), self._psnr(clip, made.frames)

    def accelerated(self, clip: int, acceleration: str) -> Point:
        made = self._made(clip, acceleration)
        return made.recipe["acceleration"]["operations"], self._psnr(clip, made.frames)

    def _psnr(self, clip: int, frames: Frames) -> float:
        if clip not in self._plain:
            self._plain[clip] = self._made(clip).frames
        return psnr(frames, self._plain[clip], slice(1 if self.case == "image to video" else 0, None))

    def _made(self, clip: int, acceleration: str | None = None) -> GeneratedClip:
        conditions = [self.pictures[clip]] if self.case == "image to video" else []
        options: dict[str, Any] = {"steps": self.steps, "guidance": 3.0, "seed": clip, "guidance_batch": "off"}
        return self.pipe.generate(self.prompts[clip], conditions, accelerate=acceleration, **options)

    @contextmanager
    def _levels_noted(self) -> Iterator[None]:
        """Inside the context, `sigma` is that of the present call of the network."""
        backbone: Any = self.pipe.backbone
        usual = backbone.velocity

        def velocity(network: Any, latents: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._sigma = sigma[0]
            out: Tensor = usual(network, latents, sigma, *args, **kwargs)
            return out

        backbone.velocity = velocity
        try:
            yield
        finally:
            del backbone.velocity


def measured(clips: int, steps: int, case: str) -> tuple[dict[str, list[list[Point]]], list[float]]:
    """Return {method: the points of each clip, without the plain one}, and the error of each layer's `Likeness`."""
    own = Merging(clips + CALIBRATION, steps, case)
    learned = own.calibrated(range(clips, clips + CALIBRATION))
    copied = [Likeness(torch.zeros_like(each.slope), each.error) for each in learned]
    found: dict[str, list[list[Point]]] = {}
    for name, likeness in zip(MERGING, (learned, copied), strict=True):
        found[name] = [[own.merged(clip, likeness, each) for each in TOLERANCES] for clip in range(clips)]
        print(case, name, np.round(np.mean(found[name], 0), 3).tolist(), flush=True)
    for name, texts in POLICIES.items():
        found[name] = [[own.accelerated(clip, text) for text in texts] for clip in range(clips)]
        print(case, name, np.round(np.mean(found[name], 0), 3).tolist(), flush=True)
    return found, [each.error for each in learned]


def compared(points: Sequence[Sequence[Point]], share: float) -> list[float]:
    """The PSNR of each clip at a share of the operations, of those whose curve reaches it.

    A curve has only the settings that left something out.
    """
    curves = [sorted((x, y) for x, y in clip if x < 1) for clip in points]
    reaching = [curve for curve in curves if curve and curve[0][0] <= share <= curve[-1][0]]
    return [float(np.interp(share, *zip(*curve, strict=True))) for curve in reaching]


def table(case: str, found: dict[str, list[list[Point]]], errors: Sequence[float]) -> dict[str, Any]:
    """A table of the section."""
    rows = []
    for name, points in found.items():
        settings = [f"{100 * share:.0f} %: {value:.1f}" for share, value in np.mean(points, 0)]
        at = [_text(compared(points, share), len(points)) for share in SHARES]
        rows.append([name, ", ".join(settings), *at])
    return {
        "title": f"Merged frames in the feed-forward layers: {case}",
        "head": ["method", "operations: PSNR, of each setting", *(f"PSNR at {100 * share:.0f} %" for share in SHARES)],
        "rows": rows,
        "text": [
            "The same idea in the diffusion transformer, without training. In each block, a frame whose input is like "
            "that of a frame before it, at an equal noise level, takes the output of that frame, with or without a "
            "factor for each channel. Frames of different noise levels are never merged. The PSNR in dB is that of "
            "the embedded model's clips to the plain ones; operations are those of all blocks, where the feed-forward "
            "layers are about a third. A relative change of the input by 1 changes the output of the layers by "
            f"{min(errors):.1f} to {max(errors):.1f}."
        ],
    }


def verdict(case: str, found: dict[str, list[list[Point]]]) -> str:
    """One paragraph: merged frames against the reuse of steps at the first of `SHARES`."""
    merged, uniform = (_text(compared(found[name], SHARES[0]), len(found[name]))
                       for name in (MERGING[0], "uniform reuse of steps"))  # fmt: skip
    return (
        f"In the feed-forward layers of the diffusion transformer ({case}), merging frames of equal noise level is no "
        f"gain. At {100 * SHARES[0]:.0f} % of the operations, the PSNR to the plain clip is {merged} dB, and {uniform} "
        "dB if whole steps are reused at fixed places. So `--accelerate` has no name for it."
    )


def _text(values: Sequence[float], clips: int) -> str:
    """The mean and its interval. Where too few of the curves reach the share, there is none."""
    return bootstrap(values).text(1) if len(values) > clips / 2 else "not measured"
