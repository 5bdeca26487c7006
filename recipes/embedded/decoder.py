"""Step 2 of the embedded base: train the decoder of the closed-form autoencoder. The latents stay what they are.

    python recipes/embedded/decoder.py --linear runs/embedded/linear --pictures runs/embedded/pictures.zip \
        --out runs/embedded/decoder

A part of the clips has a cut where a latent slot begins, after which another scene stands still or moves: so are
pictures given in the middle or at the end of a clip.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch
from data import Pictures, clips, heldout
from diffusers import AutoencoderKLWan
from linear import Linear, tensor
from loop import train
from torch import Tensor

SEED = 3
BATCHES = ((2, 9), (1, 17))
NOISE = 0.03
CUTS = 0.3
"""Share of the clips with a cut."""


def load_linear(folder: Path, device: str = "cpu") -> Linear:
    """The maps that `linear.py` saved."""
    maps = {key: value.to(device) for key, value in torch.load(folder / "linear.pt", weights_only=True).items()}
    return SimpleNamespace(**maps, encode=lambda x: Linear.encode(SimpleNamespace(**maps), x))  # type: ignore[return-value]


def decode(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """`vae.decode` without its loop over chunks and its clamp: all frames at once, the same numbers."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(z)))
    for block in decoder.up_blocks:
        for layer in block.resnets:
            x = layer(x)
        if block.upsamplers is not None:
            up = block.upsamplers[0]
            if x.shape[2] > 1:
                late = up.time_conv(x[:, :, 1:])
                x = torch.cat([x[:, :, :1], torch.stack(late.chunk(2, 1), 3).flatten(2, 3)], 2)
            b, _, t = x.shape[:3]
            x = up.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t)).transpose(1, 2)
    out: Tensor = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return out


@torch.no_grad()
def balance(vae: AutoencoderKLWan, z: Tensor) -> None:
    """Gains of the residual branches' first norms, so that fine detail reaches them as loudly as brightness does."""
    for name, norm in vae.decoder.named_modules():
        if name.endswith(("resnets.0.norm1", "resnets.1.norm1")):
            seen: list[Tensor] = []
            handle = norm.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            decode(vae, z)
            handle.remove()
            loud = seen[0].square().mean((0, 2, 3, 4)).sqrt().view_as(norm.gamma)
            norm.gamma.copy_(torch.where(loud < 1e-3, 1, (1 / loud.clamp(min=1e-3)).clamp(0.2, 10)))


def cut(x: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """x with another clip, moving or still, from the beginning of a random slot on (for good or for one slot)."""
    slots = (x.shape[2] - 1) // 4
    first = 1 + 4 * int(torch.randint(slots, (), generator=rng))
    last = first + 4 if torch.rand((), generator=rng) < 0.5 else x.shape[2]
    if torch.rand((), generator=rng) < 0.7:
        other = other[:, :, :1].expand_as(other)
    return torch.cat([x[:, :, :first], other[:, :, first:last], x[:, :, last:]], 2)


def batch(pictures: Pictures, step: int, rng: torch.Generator) -> Tensor:
    size, frames = BATCHES[step % len(BATCHES)]
    x = tensor(clips(range(10_000_000 + 4 * step, 10_000_000 + 4 * step + size + 1), pictures)[0])
    start = int(torch.randint(x.shape[2] - frames + 1, (), generator=rng))
    x, other = x[:size, :, start : start + frames], x[size:, :, :frames]
    return torch.cat([cut(one, other, rng) if torch.rand((), generator=rng) < CUTS else one for one in x.split(1)])


def distance(y: Tensor, x: Tensor) -> Tensor:
    """The first frame counts for four: it is what a picture is given as, and only one of 9 or 17."""
    weight = torch.ones(x.shape[2], device=x.device)
    weight[0] = 4
    error = y - x
    each = (4 * error.square() + 0.2 * error.abs()).mean((0, 1, 3, 4))
    return (weight * each).sum() / weight.sum()


def psnr(y: Tensor, x: Tensor) -> float:
    return float(-10 * torch.log10(((y.clamp(-1, 1) - x) / 2).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linear", type=Path, default=Path("runs/embedded/linear"))
    parser.add_argument("--init", type=Path, help="begin with the decoder of this autoencoder instead")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/decoder"))
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--muon-lr", type=float, default=0.001)
    parser.add_argument("--random", action="store_true", help="control: random weights instead of the linear inverse")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    vae = AutoencoderKLWan.from_pretrained(args.init or args.linear / "vae")
    if args.random:
        vae.decoder = AutoencoderKLWan.from_config(vae.config).decoder
    linear, pictures = load_linear(args.linear), Pictures(args.pictures)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    if args.init is None and not args.random and not (args.out / "state.pt").exists():
        balance(vae, linear.encode(tensor(clips(range(4), pictures)[0])))
    held = {kind: tensor(heldout(kind, 6)[0]) for kind in ("shape", "camera", "photograph")}

    def loss(step: int, rng: torch.Generator) -> Tensor:
        x = batch(pictures, step, rng)
        z = linear.encode(x)
        return distance(decode(vae, z + NOISE * torch.randn(z.shape, generator=rng)), x)

    def report(step: int, average: dict[str, Tensor]) -> None:
        live = {n: p.detach().clone() for n, p in vae.named_parameters()}
        vae.load_state_dict(average, strict=False)
        with torch.no_grad():
            numbers = {}
            for kind, x in held.items():
                y = torch.cat([decode(vae, linear.encode(one)) for one in x.split(1)])
                numbers[kind] = f"{psnr(y, x):.2f} (first {psnr(y[:, :, :1], x[:, :, :1]):.2f})"
        print(f"  step {step}: {numbers}", flush=True)
        vae.save_pretrained(args.out / "vae")
        vae.load_state_dict(live, strict=False)

    average = train(
        args.out,
        vae,
        loss,
        parameters=[p for p in vae.parameters() if p.requires_grad],
        steps=args.steps,
        lr=args.lr,
        muon=lambda name: ".resnets." in name and "shortcut" not in name and "norm" not in name,
        muon_lr=args.muon_lr,
        seed=SEED,
        warmup=30,
        ema_decay=0.995,
        save_every=50,
        after_save=report,
    )
    vae.load_state_dict(average, strict=False)
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
