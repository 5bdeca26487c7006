"""The numbers of the embedded base, on held-out scenes, with the plain base and simple baselines beside them.

    python recipes/embedded/measure.py --model src/pusa/embedded/tiny --out runs/embedded/numbers.json

Text-to-video is judged from pixels alone. The tasks with a condition are compared with the truth, pixel by pixel: the
first frame and the caption of a shape clip determine the rest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import data
import numpy as np
import torch
import yaml
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from skimage.metrics import structural_similarity
from torch import Tensor
from transformers import UMT5EncoderModel

from pusa import embedded
from pusa.core import sampler, schedules, sigmas
from pusa.embedded import judge, world
from pusa.media.images import Frames
from pusa.models.backbone import Text
from pusa.models.loading import checkpoints
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel

STEPS, GUIDANCE, SHIFT = 10, 3.0, 3.0
BATCH = 16
TUNING = 100_000
"""The first seed of the scenes that the adapter's strength is chosen on; those that are reported begin at 0."""


class Model:
    """A checkpoint and how it is sampled: batches of scenes that share a timestep matrix."""

    def __init__(self, source: str, lora: Path | None = None, strength: float = embedded.STRENGTH) -> None:
        """lora: an adapter to load on the model, at `strength`; "tiny" has its own."""
        self.parts = checkpoints.load(source)
        if lora is not None:
            runtime.load(self.parts.transformer, lora, strength, name="pusa")
        self.grid = sigmas.grid(STEPS, SHIFT)

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
        velocity = sampler.guided(self.velocity, GUIDANCE)
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


def pooled_psnr(clips: Sequence[Frames], truth: Sequence[Frames], frames: slice = slice(None)) -> float:
    """PSNR in dB of the mean squared error over all clips.

    A mean of PSNRs would be ruled by the clips in which nothing moves: repeating a frame is exact there.
    """
    errors = [np.square(a[frames].astype(float) - b[frames]).mean() for a, b in zip(clips, truth, strict=True)]
    return float(20 * np.log10(255) - 10 * np.log10(np.mean(errors)))


def rates(clips: Sequence[Frames], scenes: Sequence[world.ShapeScene]) -> dict[str, float]:
    """The share of clips whose colour, shape and motion the judge finds as the caption says."""
    verdicts = [judge.judge(clip) for clip in clips]
    right = {
        key: float(np.mean([getattr(v, key) == getattr(s, key) for v, s in zip(verdicts, scenes, strict=True)]))
        for key in ("colour", "shape", "motion")
    }
    moving = [v.speed for v, s in zip(verdicts, scenes, strict=True) if s.motion in world.DIRECTIONS and v.speed > 0]
    return right | {"speed": float(np.median(moving)) if moving else 0.0}


def cross_fade(first: np.ndarray, last: np.ndarray, frames: int) -> Frames:
    weight = np.linspace(0, 1, frames)[:, None, None, None]
    return np.rint((1 - weight) * first + weight * last).astype(np.uint8)


def measure(model: Model, plain: Model, count: int) -> dict[str, object]:
    scenes = [s for seed in range(count) if isinstance(s := world.sample(seed, "heldout", "shape"), world.ShapeScene)]
    cameras = [world.sample(seed, "heldout", "camera") for seed in range(count)]
    truth, views = [world.render(s) for s in scenes], [world.render(s) for s in cameras]
    captions = [s.caption for s in scenes]
    z, zc = model.encode(truth), model.encode(views)
    last = model.encode([np.repeat(t[-1:], 5, axis=0) for t in truth])[:, :, 1:]
    single = model.encode([t[-1:] for t in truth])
    later, middle = slice(1, None), slice(4, 13)

    numbers: dict[str, object] = {"clips": count, "steps": STEPS, "guidance": GUIDANCE, "shift": SHIFT}
    numbers["vae"] = {
        "shapes_db": pooled_psnr(model.decode(z), truth),
        "cameras_db": pooled_psnr(model.decode(zc), views),
    }
    numbers["text_to_video"] = {
        "truth": rates(truth, scenes),
        "truth_through_vae": rates(model.decode(z), scenes),
        "base": rates(plain.decode(plain.sample(captions)), scenes),
        "adapted": rates(model.decode(model.sample(captions)), scenes),
    }

    def task(
        known: Tensor, slots: list[int], frames: slice, with_judge: bool = False, with_base: bool = True
    ) -> dict[str, object]:
        rows: dict[str, object] = {}
        for name, one in (("adapted", model), ("base", plain)) if with_base else (("adapted", model),):
            made = one.sample(captions, known, slots)
            clips = one.decode(made)
            rows[name] = {"db": pooled_psnr(clips, truth, frames)}
            if with_judge:
                rows[name] |= rates(clips, scenes)  # type: ignore[operator]
                rows[name]["held"] = bool(torch.equal(made[:, :, slots], known[:, :, slots]))  # type: ignore[index]
        return rows

    numbers["image_to_video"] = task(z, [0], later, with_judge=True) | {
        "first_frame_repeated": {"db": pooled_psnr([np.repeat(t[:1], 17, 0) for t in truth], truth, later)},
        "truth_through_vae": {"db": pooled_psnr(model.decode(z), truth, later)},
    }
    fade = pooled_psnr([cross_fade(t[0], t[-1], 17) for t in truth], truth, middle)
    ends = {}
    for name, end in (("repeat", last), ("single", single), ("true_latent", z[:, :, -1:])):
        known = z.clone()
        known[:, :, -1:] = end
        ends[name] = task(known, [0, 4], middle, with_base=name == "repeat")
    numbers["start_end"] = ends | {"cross_fade": {"db": fade}}
    numbers["extension"] = task(z, [0, 1, 2], slice(9, None)) | {
        "frozen": {"db": pooled_psnr([np.repeat(t[8:9], 17, 0) for t in truth], truth, slice(9, None))}
    }
    numbers["completion"] = task(z, [0, 1, 4], slice(5, 13)) | {
        "cross_fade": {
            "db": pooled_psnr([cross_fade(t[4], t[13], 10)[1:9] for t in truth], [t[5:13] for t in truth]),
        }
    }
    numbers["camera_image_to_video"] = moving_camera(model, plain, cameras)
    photographs = [s for s in data.heldout("photograph", count)[1] if isinstance(s, world.CameraScene)]
    numbers["photograph_image_to_video"] = moving_camera(model, plain, photographs)
    numbers["given"] = {"shapes": given(model, truth)} | {
        "photographs": given(model, [world.render(s) for s in photographs])
    }
    numbers["noise"] = red_cast(model, photographs)
    return numbers


def moving_camera(model: Model, plain: Model, scenes: Sequence[world.CameraScene]) -> dict[str, object]:
    """Image-to-video with a moving camera: PSNR over frames 1-16, and the share of right directions."""
    truth, words, later = [world.render(s) for s in scenes], [s.caption for s in scenes], slice(1, None)
    z = model.encode(truth)
    rows: dict[str, object] = {
        "first_frame_repeated": {"db": pooled_psnr([np.repeat(t[:1], 17, 0) for t in truth], truth, later)},
        "truth_through_vae": {"db": pooled_psnr(model.decode(z), truth, later)},
    }
    for name, one in (("adapted", model), ("base", plain)):
        clips = one.decode(one.sample(words, z, [0]))
        right = float(np.mean([judge.judge_camera(c) == s.motion for c, s in zip(clips, scenes, strict=True)]))
        rows[name] = {"db": pooled_psnr(clips, truth, later), "motion": right}
    return rows


def given(model: Model, truth: Sequence[Frames]) -> dict[str, float]:
    """How a picture comes back that is given as the first or the last frame: PSNR in dB and, of the first, SSIM."""
    first = [t[:1] for t in truth]
    made = [clip[:1] for clip in model.decode(model.encode(first))]
    still = [np.concatenate([t[:1], np.repeat(t[-1:], 4, axis=0)]) for t in truth]
    ends = [clip[-1:] for clip in model.decode(model.encode(still))]
    alike = [structural_similarity(a[0], b[0], channel_axis=2) for a, b in zip(made, first, strict=True)]
    return {
        "first_db": pooled_psnr(made, first),
        "first_ssim": float(np.mean(alike)),
        "last_db": pooled_psnr(ends, [t[-1:] for t in truth]),
    }


def red_cast(model: Model, scenes: Sequence[world.CameraScene], noise: float = 0.4) -> dict[str, float]:
    """The distance of the mean colour of a clip to that of its picture, of 255, where the picture is given with noise.

    The mean over the clips of the largest of the three channels' distances; and the same for the true clips.
    """
    truth = [world.render(s) for s in scenes]
    clips = model.decode(model.sample([s.caption for s in scenes], model.encode(truth), [0], noise=noise))

    def distance(made: Sequence[Frames]) -> float:
        means = [np.abs(c.mean((0, 1, 2)) - t[0].mean((0, 1))).max() for c, t in zip(made, truth, strict=True)]
        return float(np.mean(means))

    return {"multiplier": noise, "colour_error": distance(clips), "colour_error_of_the_truth": distance(truth)}


def tune(model: Model, strengths: Sequence[float], count: int) -> list[dict[str, float]]:
    """Image-to-video and text-to-video at each strength of the adapter, on scenes of their own.

    The paper's best strength falls from 2 to 1.4 as its adapter trains longer (Table 4c).
    """
    scenes = [world.sample(TUNING + seed, "heldout", "shape") for seed in range(count)]
    truth, captions = [world.render(s) for s in scenes], [s.caption for s in scenes]
    z = model.encode(truth)
    rows = []
    for strength in strengths:
        runtime.set_scale(model.parts.transformer, "pusa", strength)
        made, plain = model.decode(model.sample(captions, z, [0])), model.decode(model.sample(captions))
        row = {"strength": strength, "i2v_db": pooled_psnr(made, truth, slice(1, None))}
        row |= {"i2v_motion": rates(made, scenes)["motion"], "t2v_motion": rates(plain, scenes)["motion"]}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def curve(runs: Sequence[Path], count: int) -> list[dict[str, float]]:
    """Image-to-video and text-to-video before adaptation and at every checkpoint of the training folders `runs`.

    A row has the seed and the clips seen; both are 0 in the first row, the base's.
    """
    scenes = [world.sample(seed, "heldout", "shape") for seed in range(count)]
    truth, captions = [world.render(s) for s in scenes], [s.caption for s in scenes]
    model = Model("tiny-base")
    z = model.encode(truth)

    def point(seed: int, samples: int) -> dict[str, float]:
        made, plain = model.decode(model.sample(captions, z, [0])), model.decode(model.sample(captions))
        row = {"seed": seed, "samples": samples, "i2v_db": pooled_psnr(made, truth, slice(1, None))}
        row |= {"i2v_motion": rates(made, scenes)["motion"], "t2v_motion": rates(plain, scenes)["motion"]}
        row |= {"t2v_colour": rates(plain, scenes)["colour"]}
        print(json.dumps(row), flush=True)
        return row

    points = [point(0, 0)]
    for run in runs:
        settings = yaml.safe_load((run / "config.yaml").read_text())["train"]
        for folder in sorted((run / "checkpoints").iterdir()):
            runtime.load(model.parts.transformer, folder / "lora.safetensors", embedded.STRENGTH, name="pusa")
            step = int(folder.name.removeprefix("step_"))
            points.append(point(settings["seed"], step * settings["batch"] * settings["accumulate"]))
    return points


def base_curve(snapshots: Sequence[Path], vae: Path, count: int) -> list[dict[str, float]]:
    """Text-to-video at each snapshot of the base's training, with the autoencoder that it was trained with."""
    scenes = [world.sample(seed, "heldout", "shape") for seed in range(count)]
    points = []
    for folder in snapshots:
        model = Model("tiny-base")
        model.parts.vae = AutoencoderKLWan.from_pretrained(vae).eval()
        stock = WanTransformer3DModel.from_pretrained(folder / "transformer")
        model.parts.transformer = VectorWanTransformer3DModel.upgrade(stock).eval().requires_grad_(False)
        model.parts.text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
        clips = model.decode(model.sample([s.caption for s in scenes]))
        step = int(folder.name.removeprefix("step_"))
        points.append({"run": folder.parent.name, "step": step, **rates(clips, scenes)})
        print(json.dumps(points[-1]), flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--base", default="tiny-base")
    parser.add_argument("--lora", type=Path, help="an adapter to load on --model, at --strength")
    parser.add_argument("--strength", type=float, default=embedded.STRENGTH)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--curve", type=Path, nargs="*", help="runs of `pusa train`: measure their checkpoints instead")
    parser.add_argument("--tune", type=float, nargs="*", help="strengths of the adapter: compare these instead")
    parser.add_argument("--snapshots", type=Path, nargs="*", help="base snapshots: measure these instead, as a curve")
    parser.add_argument("--vae", type=Path, default=Path("src/pusa/embedded/tiny/vae"), help="of the snapshots")
    parser.add_argument("--out", type=Path, help="default runs/embedded/numbers.json, curve.json or snapshots.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.tune:
        out = args.out or Path("runs/embedded/strengths.json")
        model = Model(args.model, args.lora, args.strength)
        out.write_text(json.dumps(tune(model, args.tune, args.clips), indent=2) + "\n")
        return
    if args.curve:
        out = args.out or Path("runs/embedded/curve.json")
        out.write_text(json.dumps(curve(args.curve, args.clips), indent=2) + "\n")
        return
    if args.snapshots:
        out = args.out or Path("runs/embedded/snapshots.json")
        rows = {(row["run"], row["step"]): row for row in (json.loads(out.read_text()) if out.exists() else [])}
        rows |= {(row["run"], row["step"]): row for row in base_curve(args.snapshots, args.vae, args.clips)}
        out.write_text(json.dumps([rows[key] for key in sorted(rows)], indent=2) + "\n")
        return
    args.out = args.out or Path("runs/embedded/numbers.json")
    numbers = measure(Model(args.model, args.lora, args.strength), Model(args.base), args.clips)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
