"""Step 2 of the embedded base: encode the training clips once.

    python recipes/embedded/encode.py --vae runs/embedded/vae/vae --out runs/embedded/latents

Writes shards of 256 normalised latents (float16 [256, C, 5, h, w]) with their captions. A shard that is there is kept,
so the command resumes, and several copies (`--part 0/2`, `--part 1/2`) share the work. With `--linear` the closed form
encodes (`linear.py`), in a hundredth of the time, and the clips are those of `data.py`, with the photographs of a pack.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from loop import bfloat16
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pusa.embedded.world import render, sample

SHARD = 256
FIRST_SEED = 1_000_000
"""The latents' seeds overlap neither those that the autoencoder saw nor those of the adapter's clips."""


def encode(vae: AutoencoderKLWan, clips: np.ndarray) -> Tensor:
    """uint8 [B, N, H, W, 3] -> normalised latents float32 [B, C, F, h, w]."""
    x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
        z = vae.encode(x).latent_dist.mode().float()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (z - mean) / std


def load_shards(folder: Path) -> tuple[Tensor, list[str]]:
    """All latents [N, C, F, h, w] (float16) and captions, in seed order."""
    latents, captions = [], []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            latents.append(shard.get_tensor("latents"))
            captions += json.loads(shard.metadata()["captions"])
    return torch.cat(latents), captions


def sampling_weights(captions: list[str], camera_share: float) -> Tensor:
    """Probability of each clip, [N], so that camera clips are `camera_share` of the samples."""
    camera = torch.tensor([caption.startswith("the camera") for caption in captions])
    return torch.where(camera, camera_share / camera.sum(), (1 - camera_share) / (~camera).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("runs/embedded/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/latents"))
    parser.add_argument("--clips", type=int, default=18432)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--part", default="0/1", help="I/N: this process takes every N-th shard")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--linear", type=Path, help="a folder of linear.py, instead of --vae")
    parser.add_argument("--pictures", type=Path, help="the pack of pictures.py, with --linear")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.linear is None:
        vae = AutoencoderKLWan.from_pretrained(args.vae).eval()
    else:
        from data import Pictures, clips
        from decoder import load_linear
        from linear import tensor

        linear, pictures = load_linear(args.linear), Pictures(args.pictures)
    args.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, args.part.split("/"))
    started = time.monotonic()
    for index in range(part, args.clips // SHARD, parts):
        path = args.out / f"{index:05d}.safetensors"
        if path.exists():
            continue
        first = args.first_seed + index * SHARD
        seeds = range(first, first + SHARD)
        if args.linear is None:
            scenes = [sample(seed) for seed in seeds]
            texts = [s.caption for s in scenes]
            latents = [encode(vae, np.stack([render(s) for s in scenes[i : i + 8]])) for i in range(0, SHARD, 8)]
        else:
            made = [clips(seeds[i : i + 16], pictures) for i in range(0, SHARD, 16)]
            latents, texts = (
                [linear.encode(tensor(frames)) for frames, _ in made],
                [text for _, some in made for text in some],
            )
        partial = path.with_suffix(".partial")
        captions = json.dumps(texts)
        save_file({"latents": torch.cat(latents).half()}, partial, metadata={"captions": captions})
        partial.rename(path)
        print(f"{path.name} {time.monotonic() - started:.0f}s", flush=True)


if __name__ == "__main__":
    main()
