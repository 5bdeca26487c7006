"""Step 2 of the embedded base: the autoencoder in closed form, a principal component analysis in stock layers.

    python recipes/embedded/linear.py --pictures runs/embedded/pictures.zip --out runs/embedded/linear

From random weights an autoencoder of this size learns for hours what a linear map does better: the 12 principal
components of 4 x 4 pixels x 4 frames (x 1 for the first frame) keep held-out photographs at 28 dB and their first frame
at 33 dB. So the encoder is that map, written into the convolutions of a stock `AutoencoderKLWan`: strided convolutions
gather, shortcuts pass on, every residual branch is zero. The decoder begins as the best linear inverse that its layers
allow, by two least-squares fits; `decoder.py` trains it further.

Why 4 x in space and not 8 x: a convolution after nearest upsampling sees the neighbours of a pixel but not whether the
pixel is the left or the right one of two, so every doubling blocks one frequency: patterns of 8 pixels' period at 8 x
(with patches of 2), which pictures are full of, and of 4 pixels' at 4 x. From the same components the best linear
decoder has 23.4 dB on held-out photographs at 8 x and 26 dB at 4 x.

How the linear map gets past the last normalisation: a channel that holds a large negative constant makes the norm
constant and is nothing after silu, and silu(y) - silu(-y) = y.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Pictures, clips, heldout
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 12
CONFIG: dict[str, Any] = dict(
    base_dim=24,  # 2 x 2 pixels in 3 colours of 2 frames: nothing is lost before the second halving
    decoder_base_dim=16,
    dim_mult=[1, 2, 3],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    scale_factor_spatial=4,
)
FINE = 12
"""Numbers of 2 x 2 pixels."""
WHITENING = 0.5
"""A latent channel's standard deviation is that of its component to the power of one minus this: 1 makes all equal, 0
keeps the pixels' own scale. In between, coarse structure outlives fine detail under noise, as it does in pictures."""
NOISE = 0.03
"""Standard deviation that the encoder claims."""
CONSTANT = 300.0
OUT_CONSTANT = 10.0


def principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(mean [D], the `count` orthonormal directions of most variance [count, D]) of samples [N, D]."""
    mean = x.mean(0)
    _, directions = torch.linalg.eigh((x - mean).T.double() @ (x - mean).double())
    return mean, directions[:, -count:].flip(1).T.float()


def gather(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, 4 C, T, H/2, W/2], ordered (channel, row, column) as `strided` weights are."""
    b, c, t, h, w = x.shape
    x = x.view(b, c, t, h // 2, 2, w // 2, 2).permute(0, 1, 4, 6, 2, 3, 5)
    return x.reshape(b, 4 * c, t, h // 2, w // 2)


def rows(x: Tensor) -> Tensor:
    """[B, C, ...] -> [N, C]"""
    return x.movedim(1, -1).flatten(0, -2)


def pairs(x: Tensor) -> Tensor:
    """[B, C, T, ...] -> [B, 2 C, T/2, ...]: every two frames together."""
    return torch.cat([x[:, :, 0::2], x[:, :, 1::2]], 1)


def apply(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.einsum("oc,bcthw->bothw", matrix, x)
    return y if bias is None else y + bias.view(1, -1, 1, 1, 1)


class Linear:
    """The maps that the encoder is made of.

    pair [24, 24]: two gathered frames to one, a rotation; rest [z, 192]: two gathered pairs to a latent; first [z, 48]:
    the gathered first frame to a latent; each with its bias.
    """

    def __init__(self, x: Tensor, channels: int, whitening: float) -> None:
        if channels not in (8, 12, 16):
            raise ValueError(f"{channels} channels: these layers have room for 8, 12 or 16")
        fine = gather(x)
        head, body = fine[:, :, :1], fine[:, :, 1:]
        mean, self.pair = principal(rows(pairs(body)), 2 * FINE)
        self.pair_bias = -self.pair @ mean
        coarse = gather(apply(self.pair, pairs(body), self.pair_bias))
        mean, rest = principal(rows(pairs(coarse)), channels)
        start = gather(head)
        start_mean, first = principal(rows(start), channels)
        # A still first frame should look to the transformer as a still group of four does: rotate it there.
        still = gather(apply(self.pair, torch.cat([head, head], 1), self.pair_bias))
        a = rows(start) @ first.T - first @ start_mean
        b = rows(torch.cat([still, still], 1)) @ rest.T - rest @ mean
        u, _, v = torch.linalg.svd((b - b.mean(0)).T @ a)
        first = (u @ v) @ first
        scale = (rows(pairs(coarse)) @ rest.T).std(0)
        start_scale = (rows(start) @ first.T).std(0)
        goal = scale ** (1 - whitening)
        goal = goal / goal.square().mean().sqrt()
        self.deviation = goal
        self.rest = rest * (goal / scale)[:, None]
        self.first = first * (goal / start_scale)[:, None]
        self.rest_bias, self.first_bias = -self.rest @ mean, -self.first @ start_mean

    def encode(self, x: Tensor) -> Tensor:
        """What the autoencoder's encoder does, in three matrix products: [B, 3, T, H, W] in [-1, 1] -> latents."""
        fine = gather(x)
        z = apply(self.first, gather(fine[:, :, :1]), self.first_bias)
        if x.shape[2] == 1:
            return z
        coarse = gather(apply(self.pair, pairs(fine[:, :, 1:]), self.pair_bias))
        return torch.cat([z, apply(self.rest, pairs(coarse), self.rest_bias)], 2)


def passing(layer: nn.Conv3d) -> Tensor:
    """Zeroes a causal convolution and returns the view of its tap at the present frame and pixel: [out, in]."""
    layer.weight.zero_()
    layer.bias.zero_()
    return layer.weight[:, :, -1, layer.weight.shape[3] // 2, layer.weight.shape[4] // 2]


@torch.no_grad()
def write_encoder(vae: AutoencoderKLWan, linear: Linear) -> None:
    encoder, z = vae.encoder, vae.config.z_dim
    block0, down0, block1, down1, block2 = encoder.down_blocks
    del block0  # passes on
    passing(encoder.conv_in)[:3] = torch.eye(3)
    down0.resample[1].weight.zero_()
    down0.resample[1].bias.zero_()
    for c in range(3):
        for y in range(2):
            for x in range(2):
                down0.resample[1].weight[4 * c + 2 * y + x, c, y, x] = 1
    down0.time_conv.weight.zero_()
    early, late = linear.pair.split(FINE, 1)
    down0.time_conv.weight[:, :FINE, 1, 0, 0], down0.time_conv.weight[:, :FINE, 2, 0, 0] = early, late
    down0.time_conv.bias.copy_(linear.pair_bias)
    width = 2 * FINE
    passing(block1.conv_shortcut)[:width] = torch.eye(width)
    # The first frame of a clip skips the steps in time, so a third group of channels carries what is its own.
    early, late = linear.rest.view(z, 2, 4 * width).unbind(1)
    first = functional.pad(linear.first, (0, 4 * width - 4 * FINE))
    down1.resample[1].weight.zero_()
    down1.resample[1].bias.zero_()
    for group, matrix in enumerate((early, late, first - early)):
        down1.resample[1].weight[group * z : (group + 1) * z, :width, :2, :2] = matrix.view(z, width, 2, 2)
    down1.resample[1].bias[2 * z : 3 * z] = linear.first_bias
    down1.time_conv.weight.zero_()
    down1.time_conv.bias.zero_()
    down1.time_conv.weight[:z, :z, 1, 0, 0] = down1.time_conv.weight[:z, z : 2 * z, 2, 0, 0] = torch.eye(z)
    down1.time_conv.bias[:z] = linear.rest_bias
    shortcut = passing(block2.conv_shortcut)
    for sign, row in ((1, 0), (-1, z)):
        shortcut[row : row + z, :z] = shortcut[row : row + z, 2 * z : 3 * z] = sign * torch.eye(z)
    block2.conv_shortcut.bias[-1] = -CONSTANT
    encoder.norm_out.gamma.fill_(CONSTANT / encoder.norm_out.scale)
    out = passing(encoder.conv_out)
    out[:z, :z], out[:z, z : 2 * z] = torch.eye(z), -torch.eye(z)
    encoder.conv_out.bias[z:] = 2 * float(np.log(NOISE))
    passing(vae.quant_conv)[:] = torch.eye(2 * z)


def silence(module: nn.Module) -> None:
    """Zeroes the last layer of every residual branch: the block passes on what it gets."""
    for name, layer in module.named_modules():
        if name.endswith(("conv2", ".proj")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def upsampled(x: Tensor) -> Tensor:
    """[B, C, T, h, w] -> [N, 9 C]: what a 3 x 3 convolution after nearest upsampling sees at each pixel."""
    b, c, t, h, w = x.shape
    x = functional.interpolate(x.transpose(1, 2).reshape(b * t, c, h, w), scale_factor=2.0, mode="nearest-exact")
    return functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 9 * c)


def fit(features: list[Tensor], targets: list[Tensor], ridge: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Least squares with an intercept over all the parts: weight [out, in], bias [out]."""
    size = features[0].shape[1] + 1
    gram, cross = torch.zeros(size, size, dtype=torch.double), torch.zeros(size, targets[0].shape[1]).double()
    for f, t in zip(features, targets, strict=True):
        f = torch.cat([f, torch.ones(len(f), 1)], 1)
        gram += (f.T @ f).double()
        cross += (f.T @ t).double()
    gram += ridge * gram.diagonal().mean() * torch.eye(size)
    solution = torch.linalg.solve(gram, cross).float().T
    return solution[:, :-1], solution[:, -1]


@torch.no_grad()
def write_decoder(vae: AutoencoderKLWan, linear: Linear, x: Tensor) -> None:
    """The best linear inverse, by two fits on clips x."""
    decoder, z = vae.decoder, vae.config.z_dim
    silence(decoder)
    width = 2 * FINE
    up0, up1, _ = decoder.up_blocks
    first_up, second_up = up0.upsamplers[0], up1.upsamplers[0]
    passing(vae.post_quant_conv)[:] = torch.eye(z)
    passing(decoder.conv_in)[2 * z : 3 * z] = torch.eye(z)
    first = passing(first_up.time_conv)
    half = first.shape[0] // 2
    first[:z, 2 * z : 3 * z] = first[half + z : half + 2 * z, 2 * z : 3 * z] = torch.eye(z)
    passing(up1.resnets[0].conv_shortcut)[:width] = torch.eye(width)
    second = passing(second_up.time_conv)
    half = second.shape[0] // 2
    second[:FINE, :width], second[half : half + FINE, :width] = linear.pair.T.split(FINE, 0)
    centre = linear.pair.T @ -linear.pair_bias
    second_up.time_conv.bias[:FINE], second_up.time_conv.bias[half : half + FINE] = centre.split(FINE)

    fine, latents = gather(x), linear.encode(x)
    zero = torch.zeros_like(latents[:, :, 1:])
    spare = torch.zeros_like(latents[:, :, :1]).repeat(1, first.shape[1] // z - 1, 1, 1, 1)
    at_first = torch.cat([spare[:, : 2 * z], latents[:, :, :1], spare[:, 2 * z :]], 1)
    at_early = torch.cat([latents[:, :, 1:], *[zero] * (first.shape[1] // z - 1)], 1)
    at_late = torch.cat([zero, latents[:, :, 1:], *[zero] * (first.shape[1] // z - 2)], 1)
    coarse = apply(linear.pair, pairs(fine[:, :, 1:]), linear.pair_bias)
    start = functional.pad(fine[:, :, :1].movedim(1, -1), (0, FINE)).movedim(-1, 1)
    goals = [part.movedim(1, -1).flatten(0, 3) for part in (start, coarse[:, :, 0::2], coarse[:, :, 1::2])]
    weight, bias = fit([upsampled(at_first), upsampled(at_early), upsampled(at_late)], goals)
    first_up.resample[1].weight.copy_(weight.view(width, -1, 3, 3))
    first_up.resample[1].bias.copy_(bias)

    def run(part: Tensor) -> Tensor:
        b, _, t, h, w = part.shape
        return (upsampled(part) @ weight.T + bias).view(b, t, 2 * h, 2 * w, width).movedim(-1, 1)

    made = torch.stack([run(at_early), run(at_late)], 3).flatten(2, 3)
    back = apply(linear.pair.T, made, centre)
    frames = torch.stack(list(back.split(FINE, 1)), 3).flatten(2, 3)
    frames = torch.cat([run(at_first)[:, :FINE], frames], 2)
    chosen = list(range(0, x.shape[2], 3))  # memory
    weight, bias = fit(
        [upsampled(frames[:, :, [t]]) for t in chosen],
        [x[:, :, t].movedim(1, -1).flatten(0, 2) for t in chosen],
    )
    last = second_up.resample[1]
    last.weight.zero_()
    last.bias.zero_()
    for sign, row in ((1, 0), (-1, 3)):
        last.weight[row : row + 3, :FINE] = sign * weight.view(3, FINE, 3, 3)
        last.bias[row : row + 3] = sign * bias
    last.bias[-1] = -OUT_CONSTANT
    decoder.norm_out.gamma.fill_(OUT_CONSTANT / decoder.norm_out.scale)
    out = passing(decoder.conv_out)
    out[:, :3], out[:, 3:6] = torch.eye(3), -torch.eye(3)


def tensor(frames: np.ndarray) -> Tensor:
    """uint8 [B, T, H, W, 3] -> float32 [B, 3, T, H, W] in [-1, 1]"""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def quality(vae: AutoencoderKLWan, kind: str, count: int) -> dict[str, float]:
    """Held-out clips through the autoencoder: pooled PSNR of all frames, of the first, of a still last picture in the
    last slot, and the first frame's SSIM."""
    from skimage.metrics import structural_similarity

    frames, _ = heldout(kind, count)

    def through(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            made = [vae.decode(vae.encode(tensor(one[None])).latent_dist.mode()).sample for one in clips]
        return ((torch.cat(made).permute(0, 2, 3, 4, 1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()

    def db(a: np.ndarray, b: np.ndarray) -> float:
        return float(20 * np.log10(255) - 10 * np.log10(np.square(a.astype(float) - b).mean()))

    made = through(frames)
    ssim = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(made[:, 0], frames[:, 0], strict=True)]
    # The last picture as start-end gives it: four copies after frames that have nothing to do with it.
    ends = frames.copy()
    ends[:, 13:] = np.roll(frames[:, -1:], 1, axis=0)
    last = through(ends)[:, -1]
    row = {"db": db(made, frames), "first_db": db(made[:, 0], frames[:, 0]), "first_ssim": float(np.mean(ssim))}
    return row | {"last_given_db": db(last, ends[:, -1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/linear"))
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--whitening", type=float, default=WHITENING)
    parser.add_argument("--measure", type=Path, help="only measure this autoencoder")
    parser.add_argument("--count", type=int, default=24, help="held-out clips of each kind")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure is None:
        torch.manual_seed(0)
        x = tensor(clips(range(args.clips), Pictures(args.pictures))[0])
        linear = Linear(x, args.channels, args.whitening)
        z = args.channels
        vae = AutoencoderKLWan(**CONFIG, z_dim=z, latents_mean=[0.0] * z, latents_std=[1.0] * z).eval()
        silence(vae.encoder)
        write_encoder(vae, linear)
        write_decoder(vae, linear, x[: args.clips // 6])
        with torch.no_grad():
            off = (vae.encode(x[:2]).latent_dist.mode() - linear.encode(x[:2])).abs().max()
        print(f"stock encoder against the matrices: at most {float(off):.4f} apart")
        print("deviation of the channels:", [round(v, 2) for v in linear.deviation.tolist()])
        vae.save_pretrained(args.out / "vae")
        torch.save(vars(linear), args.out / "linear.pt")
    else:
        vae = AutoencoderKLWan.from_pretrained(args.measure).eval()
    numbers = {kind: quality(vae, kind, args.count) for kind in ("shape", "camera", "photograph")}
    for kind, row in numbers.items():
        print(kind, {key: round(value, 3) for key, value in row.items()}, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "quality.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
