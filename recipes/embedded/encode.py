"""Step 3 of the embedded base: encode the training clips once, by the closed form of `linear.py`.

    python recipes/embedded/encode.py --pictures runs/embedded/pictures.zip --out runs/embedded/latents

Writes shards of 256 latents (float16 [256, C, 5, h, w]) with their captions. The clips are those of `data.py`. A shard
that is there is kept, so the command resumes, and several copies (`--part 0/2`, `--part 1/2`) share the work.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from data import Pictures, clips
from decoder import load_linear
from linear import tensor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD = 256
FIRST_SEED = 1_000_000
"""The latents' seeds overlap neither those that the decoder saw nor those of the adapter's clips."""


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
    parser.add_argument("--linear", type=Path, default=Path("runs/embedded/linear"), help="a folder of linear.py")
    parser.add_argument("--pictures", type=Path, help="the pack of pictures.py")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/latents"))
    parser.add_argument("--clips", type=int, default=24576)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--part", default="0/1", help="I/N: this process takes every N-th shard")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    linear, pictures = load_linear(args.linear), Pictures(args.pictures)
    args.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, args.part.split("/"))
    started = time.monotonic()
    for index in range(part, args.clips // SHARD, parts):
        path = args.out / f"{index:05d}.safetensors"
        if path.exists():
            continue
        seeds = range(args.first_seed + index * SHARD, args.first_seed + (index + 1) * SHARD)
        made = [clips(seeds[i : i + 16], pictures) for i in range(0, SHARD, 16)]
        latents = torch.cat([linear.encode(tensor(frames)) for frames, _ in made]).half()
        captions = json.dumps([text for _, texts in made for text in texts])
        partial = path.with_suffix(".partial")
        save_file({"latents": latents}, partial, metadata={"captions": captions})
        partial.rename(path)
        print(f"{path.name} {time.monotonic() - started:.0f}s", flush=True)


if __name__ == "__main__":
    main()
