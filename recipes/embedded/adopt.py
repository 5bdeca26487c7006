"""A base that was trained on other latents, as a beginning for new ones: only its first and last map are made anew.

    python recipes/embedded/adopt.py --old src/pusa/embedded/tiny --linear runs/embedded/linear \
        --pictures runs/embedded/pictures.zip --out runs/embedded/adopted

The tokens stand for the same places in both, so what a token of the old latents is can be read off the new one's by
least squares, and the other way round. Blocks, timestep and text embedding stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from base import TextToVideo, build_tokenizer
from data import Pictures, clips
from decoder import load_linear
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from encode import encode
from linear import fit, tensor
from torch import Tensor
from transformers import UMT5EncoderModel


def tokens(z: Tensor, patch: int) -> Tensor:
    """[B, C, F, h, w] -> [B tokens, C patch patch], ordered as the patch embedding's weights are."""
    return z.unfold(3, patch, patch).unfold(4, patch, patch).permute(0, 2, 3, 4, 1, 5, 6).flatten(0, 3).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, default=Path("src/pusa/embedded/tiny"))
    parser.add_argument("--linear", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--clips", type=int, default=96)
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
    model = TextToVideo(new.shape[1], patch_size=(1, args.patch, args.patch))
    state = known.state_dict()
    first = state["patch_embedding.weight"].flatten(1)
    shape = model.transformer.patch_embedding.weight.shape
    state["patch_embedding.weight"] = (first @ to_old).view(shape)
    state["patch_embedding.bias"] = state["patch_embedding.bias"] + first @ old_bias
    # The head's rows are (pixel of the patch, channel); tokens are (channel, pixel). Data enter a velocity as - data.
    channels, pixels = known.config.out_channels, known.config.patch_size[1] ** 2
    weight, bias = state["proj_out.weight"], state["proj_out.bias"]
    order = torch.arange(channels * pixels).view(pixels, channels).T.flatten()
    weight, bias = to_new @ weight[order], to_new @ bias[order] - new_bias
    order = torch.arange(b.shape[1]).view(new.shape[1], args.patch**2).T.flatten()
    state["proj_out.weight"], state["proj_out.bias"] = weight[order], bias[order]
    model.transformer.load_state_dict(state)
    model.transformer.save_pretrained(args.out / "transformer")
    UMT5EncoderModel.from_pretrained(args.old / "text_encoder").save_pretrained(args.out / "text_encoder")
    build_tokenizer().save_pretrained(args.out / "tokenizer")


if __name__ == "__main__":
    main()
