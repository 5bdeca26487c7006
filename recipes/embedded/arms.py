"""What the adapter is trained on: LoRAs of the same base, clips, noise and steps that differ in their rows of levels.

    python recipes/embedded/arms.py --pictures runs/embedded/pictures.zip --out runs/embedded/arms \
        --arm independent --arm half --arm mixed --seeds 0 1 2 --steps 200

`independent` is the method. `half` is half independent, half image-to-video. `mixed` is half independent, the rest
shared among the tasks. Each arm is measured before and after on held-out scenes that no arm was chosen on: PSNR of the
frames that were not given, pooled, 10 steps, guidance 1; and the loss, at the same noise, on rows that no task has.
Every (arm, seed) is one line of `arms.jsonl`; one that is there is skipped, so the command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from base import SHIFT, TextToVideo, build_tokenizer, tokenize
from data import Pictures, clips, heldout
from decoder import psnr
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from encode import encode
from gpu import FRAMES, STEPS, adapt, levels
from linear import tensor
from loop import generator, save_atomic
from torch import Tensor
from transformers import UMT5EncoderModel

ARMS = {
    "independent": {"independent": 1.0},
    "half": {"independent": 0.5, "image-to-video": 0.5},
    "mixed": {"independent": 0.5, "image-to-video": 0.2, "start-end": 0.1, "extension": 0.1, "text-to-video": 0.1},
    "tasks": {"image-to-video": 0.4, "start-end": 0.2, "extension": 0.2, "text-to-video": 0.2},
}
GIVEN = {"image-to-video": [0], "start-end": [0, 4], "extension": [0, 1, 2], "text-to-video": []}
FREE = {"image-to-video": slice(1, 17), "start-end": slice(4, 13), "extension": slice(9, 17)}


class Arm:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.vae = AutoencoderKLWan.from_pretrained(args.base / "vae").eval()
        self.tokenizer = build_tokenizer()
        self.latents, texts = self.cached("train", args.clips)
        self.ids, self.mask = tokenize(self.tokenizer, texts)
        self.held = {kind: heldout(kind, args.count) for kind in ("photograph", "shape")}
        self.known = {kind: self.encoded(frames) for kind, (frames, _) in self.held.items()}

    def encoded(self, frames: np.ndarray) -> Tensor:
        return torch.cat([encode(self.vae, frames[i : i + 8]) for i in range(0, len(frames), 8)])

    def cached(self, name: str, count: int) -> tuple[Tensor, list[str]]:
        path = self.args.out / f"{name}.pt"
        if not path.exists():
            frames, texts = clips(range(20_000_000, 20_000_000 + count), Pictures(self.args.pictures))
            save_atomic({"latents": self.encoded(frames).half(), "texts": texts}, path)
        kept = torch.load(path, weights_only=True)
        return kept["latents"].float(), kept["texts"]

    def begin(self) -> TextToVideo:
        model = TextToVideo(self.latents.shape[1])
        model.transformer.load_state_dict(
            WanTransformer3DModel.from_pretrained(self.args.base / "transformer").state_dict()
        )
        model.text_encoder.load_state_dict(
            UMT5EncoderModel.from_pretrained(self.args.base / "text_encoder").state_dict()
        )
        return model.eval().requires_grad_(False)

    def velocity(self, model: TextToVideo, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        out: Tensor = model.transformer(x, 1000 * sigma.repeat_interleave(16, 1), context, return_dict=False)[0]
        return out

    def train(self, model: TextToVideo, shares: dict[str, float], seed: int) -> None:
        args = self.args
        torch.manual_seed(seed)
        layers = adapt(model.transformer, 32)
        parameters = [p for layer in layers.values() for p in (layer.a, layer.b)]
        optimiser = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
        started = time.monotonic()
        for step in range(args.steps):
            progress = step / args.steps
            optimiser.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / 10) * min(1.0, 2 * (1 - progress))
            rng = generator(seed, step)
            pick = torch.randint(len(self.latents), (args.batch,), generator=rng)
            x0 = self.latents[pick]
            noise = torch.randn(x0.shape, generator=rng)
            sigma = levels(args.batch, shares, rng)
            wide = sigma[:, None, :, None, None]
            with torch.no_grad():
                context = model.context(self.ids[pick], self.mask[pick])
            v = self.velocity(model, torch.lerp(x0, noise, wide), sigma, context)
            learnt = (wide > 0).float()
            loss = ((v - (noise - x0)).square() * learnt).sum() / (learnt.sum() * x0[0, :, 0].numel())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if step % 20 == 0:
                print(f"  {step} {float(loss.detach()):.4f} {time.monotonic() - started:.0f} s", flush=True)

    @torch.no_grad()
    def measure(self, model: TextToVideo) -> dict[str, float]:
        row = {}
        for kind, (frames, scenes) in self.held.items():
            z0, x = self.known[kind], tensor(frames)
            context = model.context(*tokenize(self.tokenizer, [scene.caption for scene in scenes]))
            first = torch.randn(z0.shape, generator=torch.Generator().manual_seed(7))
            s = torch.linspace(1, 0, STEPS + 1)
            grid = (SHIFT * s / (1 + (SHIFT - 1) * s)).tolist()
            for task, free in FREE.items():
                mask = torch.ones(FRAMES)
                mask[GIVEN[task]] = 0
                wide = mask.view(1, 1, -1, 1, 1)
                z = torch.where(wide > 0, first, z0)
                for now, then in pairwise(grid):
                    z = z + (then - now) * wide * self.velocity(model, z, (now * mask).expand(len(z), -1), context)
                made = torch.cat([self.vae.decode(one).sample for one in z.split(4)])
                row[f"{kind} {task}"] = round(psnr(made[:, :, free], x[:, :, free]), 3)
            for name, rows in (("independent", levels(len(z0), {"independent": 1.0}, torch.Generator().manual_seed(1))),
                               ("shared", torch.linspace(0.05, 0.95, len(z0))[:, None].expand(-1, FRAMES)),
                               ("staircase", torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).expand(len(z0), -1))):  # fmt: skip
                v = self.velocity(model, torch.lerp(z0, first, rows[:, None, :, None, None]), rows, context)
                row[f"{kind} loss {name}"] = round(float((v - (first - z0)).square().mean()), 4)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("src/pusa/embedded/tiny"))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/arms"))
    parser.add_argument("--arm", action="append", choices=[*ARMS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    arm = Arm(args)
    path = args.out / "arms.jsonl"
    done = (
        {(row["arm"], row["seed"]) for row in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else set()
    )
    jobs = [("none", 0), *((name, seed) for seed in args.seeds for name in args.arm or ARMS)]
    for name, seed in jobs:
        if (name, seed) in done:
            continue
        model, started = arm.begin(), time.monotonic()
        if name != "none":
            arm.train(model, ARMS[name], seed)
        row = {
            "arm": name,
            "seed": seed,
            "steps": args.steps * (name != "none"),
            "seconds": round(time.monotonic() - started),
        }
        row |= arm.measure(model)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
