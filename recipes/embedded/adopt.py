"""Step 4 of the embedded base: the former model's transformer, as a beginning for one of other latents.

    python recipes/embedded/adopt.py --old runs/embedded/former/src/pusa/embedded/tiny \
        --pictures runs/embedded/pictures.zip --out runs/embedded/adopted

The tokens stand for the same places in both, so what a token of the old latents is can be read off the new one's by
least squares, and the other way round. Timestep, text embedding and the blocks stay, without those of `--drop`. The
transformer also becomes wider (`--heads`): see base.py. The new part of the stream begins with what the old first map
ignores, and nothing that is new writes into the old part before it is trained.

What this is worth is not in the loss: after 500 steps a base from nothing has the same. But it shows the motion of the
caption in 3 % of its clips at 1,000 steps and in 19 % at 3,000; one that begins here in 63 % at 500.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from base import TextToVideo, build_tokenizer
from data import Pictures, clips
from decoder import load_linear
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from linear import fit, tensor
from torch import Tensor
from transformers import UMT5EncoderModel


def encode(vae: AutoencoderKLWan, clips: np.ndarray) -> Tensor:
    """uint8 [B, N, H, W, 3] -> normalised latents float32 [B, C, F, h, w]."""
    with torch.no_grad():
        z = vae.encode(tensor(clips)).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (z - mean) / std


def tokens(z: Tensor, patch: int) -> Tensor:
    """[B, C, F, h, w] -> [B tokens, C patch patch], ordered as the patch embedding's weights are."""
    return z.unfold(3, patch, patch).unfold(4, patch, patch).permute(0, 2, 3, 4, 1, 5, 6).flatten(0, 3).flatten(1)


def grown(weight: Tensor, rows: int, columns: int, new_rows: float, new_columns: float) -> Tensor:
    """A matrix [rows, columns] with `weight` at its upper left.

    new_rows, new_columns: the scale of the random weights below and right of it, 1 for that of `weight`.
    """
    spread = weight.std() * torch.randn(rows, columns)
    below, right = spread * new_rows, spread[: len(weight), weight.shape[1] :] * new_columns
    below[: len(weight)] = torch.cat([weight, right], 1)
    return below


def widen(model: TextToVideo, state: dict[str, Tensor], stream: Tensor) -> None:
    """Writes the weights `state` of a narrower transformer into a wider one of as many blocks.

    stream: [tokens, width], what the narrow one's first map makes of clean tokens; the new part begins as loud.
    """
    own = model.transformer.state_dict()
    for name, value in state.items():
        target = own[name]
        if target.shape == value.shape:
            own[name] = value
        elif name == "patch_embedding.weight":
            old = value.flatten(1)
            _, _, basis = torch.linalg.svd(old)
            ignored = basis[-(len(target) - len(old)) :]
            own[name] = torch.cat([old, ignored * stream.square().mean().sqrt() / ignored.norm(dim=1).mean()])
            own[name] = own[name].view(target.shape)
        elif name.endswith("scale_shift_table"):
            # shift, 1 + scale and gate of attention, then of the feed-forward; the last table has no gates
            extra = torch.zeros(*target.shape[:2], target.shape[2] - value.shape[2])
            extra[:, 2::3] = 0.5
            own[name] = torch.cat([value, extra], 2)
        elif name.startswith("condition_embedder.time_proj."):
            parts = value.chunk(6)
            width = len(target) // 6
            if value.ndim == 1:
                own[name] = torch.cat([torch.cat([p, torch.zeros(width - len(p))]) for p in parts])
            else:
                own[name] = torch.cat([grown(p, width, target.shape[1], 0.0, 0.0) for p in parts])
        elif value.ndim == 1:
            fill = value.mean() if name.endswith(("norm_q.weight", "norm_k.weight", "norm2.weight")) else 0.0
            own[name] = torch.cat([value, torch.full((len(target) - len(value),), float(fill))])
        else:
            # Matrices that write into the stream begin without the new rows; those inside of a layer with random ones.
            writes = name.endswith(("to_out.0.weight", "ffn.net.2.weight", "proj_out.weight"))
            own[name] = grown(value, *target.shape, new_rows=0.0 if writes else 1.0, new_columns=0.0)
    model.transformer.load_state_dict(own)


def rename(name: str, blocks: dict[str, str]) -> str | None:
    """The name of a weight where only `blocks` (old prefix: new prefix) are left; None for those of other blocks."""
    if not name.startswith("blocks."):
        return name
    prefix = ".".join(name.split(".")[:2]) + "."
    return blocks[prefix] + name.removeprefix(prefix) if prefix in blocks else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="folder of the former model")
    parser.add_argument("--linear", type=Path, default=Path("runs/embedded/linear"))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--heads", type=int, default=8, help="of 32 channels each; more make the transformer wider")
    parser.add_argument("--drop", type=int, nargs="*", default=[7], help="blocks of the old base to leave out")
    parser.add_argument("--ffn", type=int, help="width of the feed-forward layers")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    frames, _ = clips(range(30_000_000, 30_000_000 + args.clips), Pictures(args.pictures))
    vae = AutoencoderKLWan.from_pretrained(args.old / "vae").eval()
    old = torch.cat([encode(vae, frames[i : i + 4]) for i in range(0, len(frames), 4)])
    new = load_linear(args.linear).encode(tensor(frames))
    known = WanTransformer3DModel.from_pretrained(args.old / "transformer")
    a, b = tokens(old, known.config.patch_size[1]), tokens(new, args.patch)
    to_old, old_bias = fit([b], [a], ridge=1e-2)
    to_new, new_bias = fit([a], [b], ridge=1e-2)
    left = (b @ to_old.T + old_bias - a).square().mean() / a.var()
    print(f"of the old latents' variance {float(1 - left):.3f} is in the new ones")
    torch.manual_seed(0)
    ffn = args.ffn or known.config.ffn_dim
    kept = [layer for layer in range(known.config.num_layers) if layer not in args.drop]
    shape = dict(num_attention_heads=args.heads, ffn_dim=ffn, num_layers=len(kept))
    model = TextToVideo(new.shape[1], patch_size=(1, args.patch, args.patch), **shape)
    state = known.state_dict()
    first = state["patch_embedding.weight"].flatten(1)
    kernel = model.transformer.patch_embedding.weight.shape[1:]
    state["patch_embedding.weight"] = (first @ to_old).view(-1, *kernel)
    state["patch_embedding.bias"] = state["patch_embedding.bias"] + first @ old_bias
    # The head's rows are (pixel of the patch, channel); tokens are (channel, pixel). Data enter a velocity as - data.
    channels, pixels = known.config.out_channels, known.config.patch_size[1] ** 2
    weight, bias = state["proj_out.weight"], state["proj_out.bias"]
    order = torch.arange(channels * pixels).view(pixels, channels).T.flatten()
    weight, bias = to_new @ weight[order], to_new @ bias[order] - new_bias
    order = torch.arange(b.shape[1]).view(new.shape[1], args.patch**2).T.flatten()
    state["proj_out.weight"], state["proj_out.bias"] = weight[order], bias[order]
    blocks = {f"blocks.{old}.": f"blocks.{new}." for new, old in enumerate(kept)}
    state = {renamed: value for name, value in state.items() if (renamed := rename(name, blocks)) is not None}
    widen(model, state, b @ (first @ to_old).T)
    model.transformer.save_pretrained(args.out / "transformer")
    UMT5EncoderModel.from_pretrained(args.old / "text_encoder").save_pretrained(args.out / "text_encoder")
    build_tokenizer().save_pretrained(args.out / "tokenizer")


if __name__ == "__main__":
    main()
