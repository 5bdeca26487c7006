"""Leave out the latent channels that carry nothing, in the autoencoder, the cached latents and the base.

    python recipes/embedded/reduce.py --vae runs/embedded/decoder/vae --latents runs/embedded/latents \
        --base runs/embedded/base2/step_008800 --out runs/embedded/reduced

The autoencoder has 32 latent channels, and 12 directions among them hold all but 0.02 % of the variance (printed here;
the reconstruction is the same to 0.01 dB). To the transformer each of the other 20 is noise that it has to carry
through every block: with patches of 2 x 2, 128 numbers of noise in 192 channels of width. Every map next to the latents
is linear, so the principal directions are folded into the autoencoder's last and first convolution and into the
transformer's patch embedding and output projection. What comes out are ordinary, smaller models.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from encode import load_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

NOISE = 0.03
"""Standard deviation that the new encoder claims: of the noise that the decoder was trained with."""


def principal(latents: Tensor, channels: int) -> Tensor:
    """The `channels` orthonormal directions of most variance, [C, channels], of latents [N, C, F, h, w]."""
    values = latents.float().movedim(1, -1).flatten(0, -2)
    shares, directions = torch.linalg.eigh(torch.cov(values.T))
    kept = float(shares[-channels:].sum() / shares.sum())
    print(f"{channels} of {latents.shape[1]} channels keep {100 * kept:.3f} % of the variance", flush=True)
    return directions[:, -channels:].flip(1)


def resized(model: Any, state: dict[str, Tensor], **sizes: Any) -> Any:
    """The same architecture with other `sizes` in its configuration, and the weights `state`."""
    smaller = type(model).from_config({**model.config, **sizes})
    smaller.load_state_dict(state)
    return smaller


def reduce_vae(vae: AutoencoderKLWan, directions: Tensor) -> AutoencoderKLWan:
    """The autoencoder whose latents are `directions.T @ normalised latents`: mean 0 and deviation 1 in its config."""
    channels = directions.shape[1]
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    state = vae.state_dict()

    def flat(convolution: nn.Module) -> Tensor:
        return convolution.weight.detach()[:, :, 0, 0, 0]

    # Encoder: conv_out, quant_conv's rows of the mean, normalisation and directions are one linear map.
    width = vae.config.z_dim
    after = (directions / std[:, None]).T
    quant = after @ flat(vae.quant_conv)[:width]
    last = vae.encoder.conv_out
    weight = torch.einsum("ij,jkthw->ikthw", quant, last.weight.detach())
    bias = quant @ last.bias.detach() + after @ (vae.quant_conv.bias.detach()[:width] - mean)
    deviation = 2 * torch.full((channels,), NOISE).log()
    state["encoder.conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    state["encoder.conv_out.bias"] = torch.cat([bias, deviation])
    state["quant_conv.weight"] = torch.eye(2 * channels)[:, :, None, None, None]
    state["quant_conv.bias"] = torch.zeros(2 * channels)

    # Decoder: a constant cannot pass the zero padding of conv_in but inside the channels' own span; the rest of it
    # goes to the bias, which is wrong at the borders only.
    before = flat(vae.post_quant_conv) @ (std[:, None] * directions)
    constant = flat(vae.post_quant_conv) @ mean + vae.post_quant_conv.bias.detach()
    inside = torch.linalg.lstsq(before, constant[:, None]).solution[:, 0]
    first = vae.decoder.conv_in
    state["post_quant_conv.weight"] = torch.eye(channels)[:, :, None, None, None]
    state["post_quant_conv.bias"] = inside
    state["decoder.conv_in.weight"] = torch.einsum("ikthw,kj->ijthw", first.weight.detach(), before)
    state["decoder.conv_in.bias"] = first.bias.detach() + first.weight.detach().sum((2, 3, 4)) @ (
        constant - before @ inside
    )
    return resized(vae, state, z_dim=channels, latents_mean=[0.0] * channels, latents_std=[1.0] * channels)


def reduce_transformer(transformer: WanTransformer3DModel, directions: Tensor) -> WanTransformer3DModel:
    """The transformer that sees and predicts `directions.T @ latents`."""
    channels = directions.shape[1]
    state = transformer.state_dict()
    state["patch_embedding.weight"] = torch.einsum("dcthw,ck->dkthw", state["patch_embedding.weight"], directions)
    for part in ("weight", "bias"):  # rows are (pixel of the patch, channel)
        rows = state[f"proj_out.{part}"].unflatten(0, (-1, directions.shape[0]))
        state[f"proj_out.{part}"] = torch.einsum("pc...,ck->pk...", rows, directions).flatten(0, 1).contiguous()
    return resized(transformer, state, in_channels=channels, out_channels=channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--latents", type=Path, default=Path("runs/embedded/latents"))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/reduced"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    latents, _ = load_shards(args.latents)
    directions = principal(latents[::8], args.channels)
    reduce_vae(AutoencoderKLWan.from_pretrained(args.vae), directions).save_pretrained(args.out / "vae")
    base = WanTransformer3DModel.from_pretrained(args.base / "transformer")
    reduce_transformer(base, directions).save_pretrained(args.out / "base" / "transformer")
    UMT5EncoderModel.from_pretrained(args.base / "text_encoder").save_pretrained(args.out / "base" / "text_encoder")
    AutoTokenizer.from_pretrained(args.base / "tokenizer").save_pretrained(args.out / "base" / "tokenizer")
    (args.out / "latents").mkdir(exist_ok=True)
    for path in sorted(args.latents.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            reduced = torch.einsum("bcfhw,ck->bkfhw", shard.get_tensor("latents").float(), directions)
            save_file({"latents": reduced.half().contiguous()}, args.out / "latents" / path.name, shard.metadata())


if __name__ == "__main__":
    main()
