"""Step 7 of the embedded base: measure it on held-out scenes, beside the plain base and simple baselines.

    python recipes/embedded/measure.py --out runs/embedded/numbers.json

Text-to-video is judged from pixels alone. The tasks with a condition are compared with the truth, pixel by pixel: the
first frame and the caption determine the rest, up to what a moving camera brings into view. Every number is kept for
every scene; `report.py` makes means, differences and intervals of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from pusa import embedded
from pusa.core import sampler, schedules, sigmas
from pusa.embedded import judge, world
from pusa.media.images import Frames
from pusa.models.backbone import Text
from pusa.models.loading import checkpoints
from pusa.models.lora import runtime

STEPS, SHIFT = 10, 3.0
BATCH = 16
TUNING = 100_000
"""The first seed of the scenes that the adapter's strength is chosen on; those that are reported begin at 0."""
Arm = dict[str, list[float]]
"""A number for each scene, by its name; "error" is the mean squared error to the truth, of 255 squared."""
LATER, MIDDLE, END, HOLE = slice(1, None), slice(4, 13), slice(9, None), slice(5, 13)


class Model:
    """A checkpoint and how it is sampled: batches of scenes that share a timestep matrix."""

    def __init__(self, source: str, lora: Path | None = None, strength: float = embedded.STRENGTH) -> None:
        """lora: an adapter to load on the model, at `strength`; "tiny" has its own."""
        self.parts = checkpoints.load(source)
        if lora is not None:
            runtime.load(self.parts.transformer, lora, strength, name="pusa")
        self.grid = sigmas.grid(STEPS, SHIFT)
        self.guidance = self.parts.defaults.guidance

    def velocity(self, x: Tensor, sigma: Tensor, context: Tensor, call: sampler.Call) -> Tensor:
        return self.parts.velocity(self.parts.transformer, x, sigma, Text(context), frames=call.frames)

    @torch.no_grad()
    def encode(self, clips: Sequence[Frames]) -> Tensor:
        return torch.cat([self.parts.encode(clip) for clip in clips])

    @torch.no_grad()
    def decode(self, z: Tensor) -> list[Frames]:
        return [self.parts.decode(one[None]) for one in z]

    @torch.no_grad()
    def sample(
        self,
        captions: Sequence[str],
        known: Tensor | None = None,
        slots: Sequence[int] = (),
        seed: int = 0,
        noise: float = 0.0,
    ) -> Tensor:
        """Latents [B, C, 5, h, w] for captions, with `slots` given as the latents `known`.

        noise: the multiplier of the given slots, 0 to 1; 0 holds them.
        """
        out = []
        matrix = schedules.conditioned(schedules.synchronous(self.grid, 5), dict.fromkeys(slots, noise))
        velocity = sampler.guided(self.velocity, self.guidance)
        for first in range(0, len(captions), BATCH):
            part = list(captions[first : first + BATCH])
            seeds = range(seed + first, seed + first + len(part))
            side = world.SIZE // self.parts.geometry.spatial
            shape = (self.parts.vae.config.z_dim, 5, side, side)
            z = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in seeds])
            if known is not None:
                z[:, :, list(slots)] = torch.lerp(known[first : first + BATCH], z, noise)[:, :, list(slots)]
            text, empty = (self.parts.encode_text(p).tokens for p in (part, [""] * len(part)))
            out.append(sampler.sample(velocity, z, matrix, (text, empty)))
        return torch.cat(out)


def errors(clips: Sequence[Frames], truth: Sequence[Frames], frames: slice = slice(None)) -> list[float]:
    pairs = zip(clips, truth, strict=True)
    return [round(float(np.square(a[frames].astype(float) - b[frames]).mean()), 3) for a, b in pairs]


def verdicts(clips: Sequence[Frames], scenes: Sequence[world.Scene]) -> Arm:
    """1 where the judge finds what the caption says, else 0."""
    if isinstance(scenes[0], world.CameraScene):
        motions = [judge.judge_camera(clip) for clip in clips]
        return {"motion": [float(m == s.motion) for m, s in zip(motions, scenes, strict=True)]}
    found = [judge.judge(clip) for clip in clips]
    return {
        key: [float(getattr(v, key) == getattr(s, key)) for v, s in zip(found, scenes, strict=True)]
        for key in ("colour", "shape", "motion")
    }


def cross_fade(first: np.ndarray, last: np.ndarray, frames: int = world.FRAMES) -> Frames:
    weight = np.linspace(0, 1, frames)[:, None, None, None]
    return np.rint((1 - weight) * first + weight * last).astype(np.uint8)


def held(frame: np.ndarray) -> Frames:
    return np.repeat(frame[None], world.FRAMES, 0)


class Scenes:
    """Held-out scenes of a kind, as the model sees them: every task of them is a method.

    kind: "shape", "camera" (as the world mixes textures and photographs) or "photograph".
    """

    def __init__(self, kind: str, count: int, models: Mapping[str, Model]) -> None:
        self.models = models
        self.truth, self.scenes = data.heldout(kind, count)
        self.captions = [scene.caption for scene in self.scenes]
        self.adapted = models["adapted"]
        self.z = self.adapted.encode(self.truth)
        self.through = self.adapted.decode(self.z)

    def autoencoder(self) -> dict[str, Arm]:
        return {"through": {"error": errors(self.through, self.truth)}}

    def given(self) -> dict[str, Arm]:
        """How a picture comes back that is given as the first or as the last frame."""
        first = [t[:1] for t in self.truth]
        made = [clip[:1] for clip in self.adapted.decode(self.adapted.encode(first))]
        still = [np.concatenate([t[:1], np.repeat(t[-1:], 4, axis=0)]) for t in self.truth]
        ends = [clip[-1:] for clip in self.adapted.decode(self.adapted.encode(still))]
        alike = [structural_similarity(a[0], b[0], channel_axis=2) for a, b in zip(made, first, strict=True)]
        return {
            "first": {"error": errors(made, first), "ssim": [round(float(x), 4) for x in alike]},
            "last": {"error": errors(ends, [t[-1:] for t in self.truth])},
        }

    def text_to_video(self) -> dict[str, Arm]:
        rows = {"truth": verdicts(self.truth, self.scenes), "through": verdicts(self.through, self.scenes)}
        for name, model in self.models.items():
            rows[name] = verdicts(model.decode(model.sample(self.captions)), self.scenes)
        return rows

    def made(self, known: Tensor, slots: Sequence[int], frames: slice) -> dict[str, Arm]:
        """A task with given slots, by every model: errors over the free frames, and what the judge finds."""
        rows = {}
        for name, model in self.models.items():
            z = model.sample(self.captions, known, slots)
            if not torch.equal(z[:, :, list(slots)], known[:, :, list(slots)]):
                raise RuntimeError("the given latents are not bit-identical in the result")
            clips = model.decode(z)
            rows[name] = {"error": errors(clips, self.truth, frames)} | verdicts(clips, self.scenes)
        return rows | {"through": {"error": errors(self.through, self.truth, frames)}}

    def image_to_video(self) -> dict[str, Arm]:
        simple = errors([held(t[0]) for t in self.truth], self.truth, LATER)
        return self.made(self.z, [0], LATER) | {"simple": {"error": simple}}

    def start_end(self) -> dict[str, Arm]:
        known = self.z.clone()
        known[:, :, -1:] = self.adapted.encode([np.repeat(t[-1:], 5, axis=0) for t in self.truth])[:, :, 1:]
        simple = errors([cross_fade(t[0], t[-1]) for t in self.truth], self.truth, MIDDLE)
        return self.made(known, [0, 4], MIDDLE) | {"simple": {"error": simple}}

    def other_ends(self) -> dict[str, Arm]:
        """Start-end with other encodings of the last picture: one frame as a latent, and the true last four frames."""
        rows = {}
        for name, end in (
            ("single", self.adapted.encode([t[-1:] for t in self.truth])),
            ("true latent", self.z[:, :, -1:]),
        ):
            known = self.z.clone()
            known[:, :, -1:] = end
            clips = self.adapted.decode(self.adapted.sample(self.captions, known, [0, 4]))
            rows[name] = {"error": errors(clips, self.truth, MIDDLE)}
        return rows

    def extension(self) -> dict[str, Arm]:
        simple = errors([held(t[8]) for t in self.truth], self.truth, END)
        return self.made(self.z, [0, 1, 2], END) | {"simple": {"error": simple}}

    def completion(self) -> dict[str, Arm]:
        fades = [cross_fade(t[4], t[13], 10)[1:9] for t in self.truth]
        simple = errors(fades, [t[HOLE] for t in self.truth])
        return self.made(self.z, [0, 1, 4], HOLE) | {"simple": {"error": simple}}

    def noise(self, multiplier: float = 0.4) -> dict[str, Arm]:
        """The distance of the mean colour of a clip to that of its picture, of 255, in the worst of three channels."""
        clips = self.adapted.decode(self.adapted.sample(self.captions, self.z, [0], noise=multiplier))

        def distances(made: Sequence[Frames]) -> list[float]:
            pairs = zip(made, self.truth, strict=True)
            return [round(float(np.abs(clip.mean((0, 1, 2)) - t[0].mean((0, 1))).max()), 3) for clip, t in pairs]

        return {"adapted": {"colour_error": distances(clips)}, "truth": {"colour_error": distances(self.truth)}}


TASKS = {
    "shape": (
        *("autoencoder", "given", "text_to_video", "image_to_video", "start_end", "other_ends", "extension"),
        *("completion",),
    ),
    "camera": ("autoencoder", "image_to_video"),
    "photograph": ("autoencoder", "given", "image_to_video", "start_end", "extension", "noise"),
}


def measure(models: Mapping[str, Model], count: int, numbers: dict[str, Any], out: Path) -> None:
    """Adds every row that `numbers` lacks, and saves after each."""
    for kind, tasks in TASKS.items():
        if all(f"{kind} {task}" in numbers["rows"] for task in tasks):
            continue
        scenes = Scenes(kind, count, models)
        for task in tasks:
            if f"{kind} {task}" not in numbers["rows"]:
                numbers["rows"][f"{kind} {task}"] = getattr(scenes, task)()
                out.write_text(json.dumps(numbers) + "\n")
                print(f"{kind} {task}", flush=True)


def tune(model: Model, strengths: Sequence[float], count: int) -> list[dict[str, float]]:
    """Image-to-video and text-to-video at each strength of the adapter, on scenes of their own.

    The paper's best strength falls from 2 to 1.4 as its adapter trains longer (Table 4c).
    """
    shapes = [world.sample(TUNING + seed, "heldout", "shape") for seed in range(count)]
    cameras = [world.sample(TUNING + seed, "heldout", "camera") for seed in range(count)]
    rows = []
    for strength in strengths:
        runtime.set_scale(model.parts.transformer, "pusa", strength)
        row: dict[str, float] = {"strength": strength}
        for kind, scenes in (("shape", shapes), ("camera", cameras)):
            truth, captions = [world.render(s) for s in scenes], [s.caption for s in scenes]
            made = model.decode(model.sample(captions, model.encode(truth), [0]))
            row[f"{kind}_db"] = round(float(-10 * np.log10(np.mean(errors(made, truth, LATER)) / 255**2)), 3)
            row[f"{kind}_motion"] = float(np.mean(verdicts(made, scenes)["motion"]))
        free = model.decode(model.sample([s.caption for s in shapes]))
        row["t2v_motion"] = float(np.mean(verdicts(free, shapes)["motion"]))
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--base", default="tiny-base")
    parser.add_argument("--lora", type=Path, help="an adapter to load on --model, at --strength")
    parser.add_argument("--strength", type=float, default=embedded.STRENGTH)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tune", type=float, nargs="*", help="strengths of the adapter: compare these instead")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/numbers.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    adapted = Model(args.model, args.lora, args.strength)
    if args.tune:
        args.out.write_text(json.dumps(tune(adapted, args.tune, args.clips), indent=1) + "\n")
        return
    numbers: dict[str, Any] = {"clips": args.clips, "steps": STEPS, "shift": SHIFT, "rows": {}}
    numbers |= {
        "guidance": adapted.guidance,
        "fingerprint": adapted.parts.fingerprint,
        "strength": args.strength,
    }
    if args.out.exists():
        before = json.loads(args.out.read_text())
        same = all(before[key] == value for key, value in numbers.items() if key != "rows")
        numbers = before if same else numbers
    measure({"adapted": adapted, "base": Model(args.base)}, args.clips, numbers, args.out)


if __name__ == "__main__":
    main()
