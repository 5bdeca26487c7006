"""Step 1 of the embedded base: train the video autoencoder on clips of the world.

    python recipes/embedded/vae.py --out runs/embedded/vae

A stock `AutoencoderKLWan` of 2.6 M parameters, causal in time: 17 x 64 x 64 pixels become 5 x 8 x 8 latents of
32 channels. Whole clips of 5, 9 and 17 frames: a decoder that saw crops only fails on whole clips (mid-block
attention), one that saw short clips only drifts in later frame groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from loop import bfloat16, train
from torch import Tensor

from pusa.embedded.world import FRAMES, render, sample

CONFIG = dict(
    base_dim=32,
    z_dim=32,
    dim_mult=[1, 2, 2],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=8,
    is_residual=True,  # Wan2.2's shortcuts
)
SEED = 1
MOST = 3
"""Seeds between two steps."""
BATCHES = ((3, 5), (2, 9), (3, 5), (1, FRAMES))
"""Clips and frames of the training batches, in turn."""
NOISE = 0.03
"""Standard deviation of the noise on training latents, whose own scale is about 1. Sampling from the posterior, which
starts at a deviation of 1, was still grey after 400 steps."""


def build() -> AutoencoderKLWan:
    z_dim = CONFIG["z_dim"]
    return AutoencoderKLWan(**CONFIG, latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim)


def batch(first: int, size: int, frames: int, rng: torch.Generator) -> Tensor:
    """Clips of the seeds from `first` on: float32 [size, 3, frames, 64, 64] in [-1, 1], from a random start frame."""
    clips = []
    for seed in range(first, first + size):
        start = int(torch.randint(FRAMES - frames + 1, (), generator=rng))
        clips.append(render(sample(seed), FRAMES)[start : start + frames])
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Per clip, of tensors [B, ...] in [-1, 1]."""
    return -10 * torch.log10(((a - b) / 2).square().flatten(1).mean(1))


def reconstruct(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.decode(vae.encode(x).latent_dist.mode()).sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/vae"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW, for gains and biases")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="of the training clips; a later stage takes new ones")
    parser.add_argument("--decoder-of", type=Path, help="train only the decoder of this one: its latents stay valid")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    if args.decoder_of is None:
        vae = build()
    else:
        vae = AutoencoderKLWan.from_pretrained(args.decoder_of)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    shapes = torch.from_numpy(np.stack([render(sample(s, "heldout", "shape")) for s in range(8)]))
    cameras = torch.from_numpy(np.stack([render(sample(s, "heldout", "camera")) for s in range(8)]))

    def loss(step: int, rng: torch.Generator) -> Tensor:
        size, frames = BATCHES[step % len(BATCHES)]
        x = batch(args.first_seed + step * MOST, size, frames, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
            mean = vae.encode(x).latent_dist.mean.float()
            y = vae.decode(mean + NOISE * torch.randn(mean.shape, generator=rng)).sample.float()
        error = y - x
        chroma = error - error.mean(1, keepdim=True)
        return 4 * (error.square() + chroma.square()).mean() + 0.5 * error.abs().mean() + 1e-5 * mean.square().mean()

    def report(step: int, average: dict[str, Tensor]) -> None:
        live = {n: p.detach().clone() for n, p in vae.named_parameters()}
        vae.load_state_dict(average, strict=False)
        for name, clips in (("shapes", shapes), ("cameras", cameras)):
            x = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            print(f"  step {step} {name}: {psnr(reconstruct(vae, x).clamp(-1, 1), x).mean():.2f} dB", flush=True)
        vae.load_state_dict(live, strict=False)

    average = train(
        args.out,
        vae,
        loss,
        parameters=[p for p in vae.parameters() if p.requires_grad],
        steps=args.steps,
        lr=args.lr,
        muon=lambda name: "norm" not in name,
        muon_lr=args.muon_lr,
        seed=SEED,
        warmup=30,
        after_save=report,
    )
    vae.load_state_dict(average, strict=False)
    if args.decoder_of is None:
        z = torch.cat(
            [vae.encode(batch(s, 16, FRAMES, torch.Generator())).latent_dist.mode().detach() for s in range(0, 256, 16)]
        )
        vae.register_to_config(
            latents_mean=z.mean((0, 2, 3, 4)).tolist(),
            latents_std=z.std((0, 2, 3, 4)).tolist(),
        )
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
