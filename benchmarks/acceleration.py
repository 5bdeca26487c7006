"""How near accelerated clips come to the plain ones, by what is computed: the policies, and controls for each of them.

    python benchmarks/acceleration.py --json docs/results/performance/acceleration.json

The embedded model makes held-out clips of four tasks, first plainly, then with every policy at several settings. The
PSNR is that of the frames that the sampler changes, to the plain clip. Policies are compared at the same share of
computed blocks, by interpolation along the curve of each clip; the brackets have 95 % bootstrap intervals over clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pusa import Clip, Image, load
from pusa.acceleration import running
from pusa.acceleration.policy import Policy
from pusa.acceleration.reuse import Reuse
from pusa.acceleration.tokens import TokenReuse
from pusa.core.timesteps import TimestepMatrix
from pusa.embedded import world
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames

Json = dict[str, Any]
Point = tuple[float, float, float]
"""share of computed blocks, share of operations, PSNR in dB"""
CASES = ("text to video", "image to video", "extension", "staircase")
KNOWN = 9
"""pixel frames of an extension that are given: 3 of 5 latent frames"""
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)


class Bench:
    """Clips of the embedded model, each made plainly once."""

    def __init__(self, clips: int, steps: int, guidance: float) -> None:
        self.pipe: Pipeline = load("tiny", device="cpu")
        self.steps, self.guidance = steps, guidance
        kinds = ("shape", "camera")
        self.scenes = [world.sample(seed, "heldout", kinds[seed % 2]) for seed in range(clips)]
        self.truth = [world.render(scene) for scene in self.scenes]
        self._plain: dict[tuple[str, int], Frames] = {}

    def options(self, case: str, clip: int) -> Json:
        options: Json = {"steps": self.steps, "guidance": self.guidance, "seed": clip, "guidance_batch": "off"}
        if case == "image to video":
            options["conditions"] = [Image(self.truth[clip][0])]
        if case == "extension":
            options["conditions"] = [Clip(self.truth[clip][:KNOWN])]
        if case == "staircase":
            options["schedule"] = f"staircase,block=1,delay={max(1, self.steps // 6)}"
        return options

    def plain(self, case: str, clip: int) -> Frames:
        if (case, clip) not in self._plain:
            self._plain[case, clip] = self.pipe.generate(self.scenes[clip].caption, **self.options(case, clip)).frames
        return self._plain[case, clip]

    def point(self, case: str, clip: int, acceleration: str) -> Point:
        """Make a clip with an acceleration, and compare it with the plain one."""
        made = self.pipe.generate(self.scenes[clip].caption, **self.options(case, clip), accelerate=acceleration)
        new = {"image to video": slice(1, None), "extension": slice(KNOWN, None)}.get(case, slice(None))
        error = np.square(made.frames[new].astype(float) - self.plain(case, clip)[new]).mean()
        record = made.recipe["acceleration"]
        return record["computed"], record.get("operations", record["computed"]), psnr(error)


def psnr(error: float) -> float:
    """dB of a mean squared error of 255 squared; at most 80, for clips that agree."""
    return float(min(80.0, -10 * np.log10(max(error, 1e-9) / 255**2)))


@contextmanager
def policies_made_by(make: Callable[[Any, TimestepMatrix], Policy]) -> Iterator[None]:
    """Inside the context, every named policy is one that `make` makes: for controls that have no name."""
    usual = running.policy_of
    running.policy_of = make
    try:
        yield
    finally:
        running.policy_of = usual


def apart(acceleration: Any, matrix: TimestepMatrix) -> Policy:
    """Reuse of steps in which each guidance branch decides for itself."""
    ((_, values),) = acceleration.parts
    return Reuse(values["threshold"], matrix.moves, values["first"], together=False)


def ranked(ranking: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Any, TimestepMatrix], Policy]:
    """Token reuse with another ranking."""
    return lambda acceleration, matrix: TokenReuse(acceleration.parts[0][1]["share"], ranking)


def by_chance(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    return torch.rand(len(change), generator=torch.Generator().manual_seed(int(waited.sum())))


def always_the_same(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    return torch.arange(len(change), 0, -1).float()


def by_change(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    return change


def at_share(points: Sequence[Point], share: float, axis: int = 0) -> float:
    """The PSNR of a clip's curve at a share, interpolated; NaN outside the curve."""
    curve = sorted({(point[axis], point[2]) for point in points})
    x, y = zip(*curve, strict=True)
    return float(np.interp(share, x, y)) if x[0] <= share <= x[-1] else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args.clips, args.steps, args.guidance)
    arms: dict[str, tuple[Callable[..., Policy] | None, list[str]]] = {
        "steps": (None, [f"steps,threshold={t}" for t in THRESHOLDS]),
        "steps, each branch for itself": (apart, [f"steps,threshold={t}" for t in THRESHOLDS]),
        "frames": (None, [f"frames,threshold={t}" for t in THRESHOLDS]),
        "uniform": (None, [f"uniform,every={n}" for n in (2, 3, 4, 6)]),
        "steps and held": (None, [f"steps,threshold={t}+held,every=4" for t in THRESHOLDS]),
        "frames and held": (None, [f"frames,threshold={t}+held,every=4" for t in THRESHOLDS]),
        "held": (None, [f"held,every={n}" for n in (2, 4, 8)]),
        "tokens": (None, [f"tokens,share={s}" for s in (0.3, 0.4, 0.5, 0.6)]),
        "tokens by chance": (ranked(by_chance), [f"tokens,share={s}" for s in (0.3, 0.4, 0.5, 0.6)]),
        "tokens, always the same": (ranked(always_the_same), [f"tokens,share={s}" for s in (0.3, 0.4, 0.5, 0.6)]),
        "first-block": (None, [f"first-block,threshold={t}" for t in THRESHOLDS]),
    }
    found: Json = {}
    for case in args.cases:
        for name, (make, texts) in arms.items():
            if args.arms and name not in args.arms:
                continue
            if name == "first-block" and case == "staircase":
                continue
            with policies_made_by(make) if make else policies_made_by(running.policy_of):
                table = [[bench.point(case, clip, text) for text in texts] for clip in range(args.clips)]
            found[f"{case}|{name}"] = table
            mean = np.array(table).mean(0)
            print(case, "|", name, "|", "  ".join(f"{a:.2f}/{b:.2f}:{c:.1f}" for a, b, c in mean), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
