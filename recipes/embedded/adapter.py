"""Step 4 of the embedded base: vectorized timestep adaptation, a LoRA on the frozen text-to-video base.

    python recipes/embedded/adapter.py --base runs/embedded/base2/step_008800 --out runs/embedded/adapter

The method of the paper, and nothing else: every latent frame gets a t of its own, independent and uniform on [0, 1]
(eq. 5-11, PTSS with p = 1), the loss is the plain squared error over all frames, and no frame is treated specially.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from base import CAPTION_DROPOUT, PaddedContext, TextToVideo, stratified, tokenize
from diffusers import WanTransformer3DModel
from encode import load_shards, sampling_weights
from loop import train
from peft import LoraConfig
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from pusa.core.objectives import flow_matching_loss
from pusa.models import lora
from pusa.models.wan import VectorWanTransformer3DModel

SEED = 3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def load_base(folder: Path) -> TextToVideo:
    """The trained base with per-frame modulation."""
    model = TextToVideo()
    model.transformer = VectorWanTransformer3DModel.upgrade(
        WanTransformer3DModel.from_pretrained(folder / "transformer")
    )
    model.text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    model.padding = PaddedContext()
    for block in model.transformer.blocks:
        block.attn2.processor = model.padding
    return model.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--latents", type=Path, default=Path("runs/embedded/latents"))
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/adapter"))
    parser.add_argument("--steps", type=int, default=528)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--save-every", type=int, default=132)
    parser.add_argument("--camera-share", type=float, default=0.4, help="share of camera clips in the samples")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    model = load_base(args.base)
    tokenizer = AutoTokenizer.from_pretrained(args.base / "tokenizer")
    model.transformer.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS), "pusa")
    latents, texts = load_shards(args.latents)
    ids, mask = tokenize(tokenizer, texts)
    empty_ids, empty_mask = tokenize(tokenizer, [""])
    weights = sampling_weights(texts, args.camera_share)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        pick = torch.multinomial(weights, args.batch, generator=rng)
        x0 = latents[pick].float()
        noise = torch.randn(x0.shape, generator=rng)
        sigma = torch.stack([stratified(args.batch, rng) for _ in range(x0.shape[2])], dim=1)
        drop = (torch.rand(args.batch, generator=rng) < CAPTION_DROPOUT)[:, None]
        context = model.context(torch.where(drop, empty_ids, ids[pick]), torch.where(drop, empty_mask, mask[pick]))

        def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            return model.transformer(x, 1000 * sigma, context, return_dict=False)[0]

        return flow_matching_loss(velocity, x0, noise, sigma, context)

    def snapshot(step: int, average: dict[str, Tensor]) -> None:
        trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        model.load_state_dict(average, strict=False)
        lora.save(
            model.transformer, args.out / f"pusa_{step:06d}.safetensors", metadata={"samples": str(step * args.batch)}
        )
        model.load_state_dict(trained, strict=False)

    train(
        args.out,
        model,
        loss,
        parameters=[p for p in model.parameters() if p.requires_grad],
        steps=args.steps,
        lr=args.lr,
        seed=SEED,
        warmup=10,
        ema_decay=0.97,
        save_every=args.save_every,
        after_save=snapshot,
    )


if __name__ == "__main__":
    main()
