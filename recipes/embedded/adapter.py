"""Step 5 of the embedded base: the adapter, a LoRA on the frozen text-to-video base with a timestep per frame.

    python recipes/embedded/adapter.py --base runs/embedded/base/step_006000 --out runs/embedded/adapter0 --seed 0

The objective is that of `pusa train` with the pattern `tasks`: half of the samples have an independent noise level per
frame, which is the method of the paper; the others have the levels of a task, with clean given frames that the loss
leaves out. `pusa reproduce k` compares mixtures. `pusa train recipes/embedded/adapter_mixed.yaml` trains by the same
objective. This file is three times as fast at it, since it looks at 16 text positions instead of 512 (see
`base.PaddedContext`; the output is the same) and computes in bfloat16 where the CPU can.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from base import CAPTION_DROPOUT, build_tokenizer, load, tokenize
from encode import load_shards, sampling_weights
from loop import bfloat16, train
from safetensors.torch import save_file
from torch import Tensor, nn

FRAMES = 5
RANK = 32
TASKS = {"independent": 0.5, "image-to-video": 0.25, "start-end": 0.1, "extension": 0.1, "text-to-video": 0.05}
NAMES = {"attn1.": "self_attn.", "attn2.": "cross_attn.", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o",
         "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}  # fmt: skip
"""diffusers' names of the layers with an adapter, in the names that LoRA files have."""


class Adapted(nn.Module):
    """A frozen linear layer with a LoRA, whose output is added."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear, self.scale = linear, 1.0
        self.a = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * ((x @ self.a.T.to(x.dtype)) @ self.b.T.to(x.dtype))


def adapt(transformer: nn.Module, rank: int) -> dict[str, Adapted]:
    """Freezes the transformer and puts a LoRA beside every layer that `pusa train` would; by LoRA names."""
    transformer.requires_grad_(False)
    layers = {}
    for number, block in enumerate(transformer.blocks):
        for name, module in list(block.named_modules()):
            told = name
            for ours, theirs in NAMES.items():
                told = told.replace(ours, theirs)
            if isinstance(module, nn.Linear) and told != name:
                parent, _, last = name.rpartition(".")
                layer = Adapted(module, rank)
                setattr(block.get_submodule(parent), last, layer)
                layers[f"diffusion_model.blocks.{number}.{told}"] = layer
    return layers


def levels(count: int, shares: dict[str, float], rng: torch.Generator) -> Tensor:
    """sigma [B, F] of a mixture of independent levels and rows of tasks, uniform and stratified over the batch."""
    device = rng.device

    def spread() -> Tensor:
        order = torch.randperm(count, generator=rng, device=device)
        return (order + torch.rand(count, generator=rng, device=device)) / count

    sigma = torch.stack([spread() for _ in range(FRAMES)], 1)
    together = spread()[:, None].expand(-1, FRAMES)
    bounds = torch.tensor(list(shares.values()), device=device).cumsum(0)
    kind = torch.searchsorted(bounds / bounds[-1], spread()).clamp(max=len(shares) - 1)
    given = torch.zeros(count, FRAMES, dtype=torch.bool, device=device)
    for index, task in enumerate(shares):
        mine = kind == index
        if task != "independent":
            sigma = torch.where(mine[:, None], together, sigma)
        if task in ("image-to-video", "start-end", "extension"):
            given[:, 0] |= mine
        if task == "start-end":
            given[:, -1] |= mine
        if task == "extension":
            given[:, 1] |= mine
            given[:, 2] |= mine & (torch.rand(count, generator=rng, device=device) < 0.5)
    return torch.where(given, 0.0, sigma)


def write(layers: dict[str, Adapted], weights: dict[str, Tensor], path: Path) -> None:
    """A LoRA file, float16. weights: by the layer's name and .a or .b."""
    tensors = {}
    for name in layers:
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            tensors[f"{name}.{theirs}.weight"] = weights[f"{name}.{ours}"].detach().half().cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt", "pusa.pattern": "tasks", "pusa.base": "tiny-base"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--latents", type=Path, default=Path("runs/embedded/latents_adapter"))
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/adapter0"))
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--camera-share", type=float, default=0.6, help="share of camera clips in the samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model, tokenizer = load(args.base), build_tokenizer()
    model.requires_grad_(False)
    layers = adapt(model.transformer, RANK)
    if not args.no_compile:  # as in base.py
        model.transformer.set_attention_backend("_native_math")
        model.transformer.compile_repeated_blocks(fullgraph=True)
    latents, texts = load_shards(args.latents)
    ids, mask = tokenize(tokenizer, texts)
    empty_ids, empty_mask = tokenize(tokenizer, [""])
    weights = sampling_weights(texts, args.camera_share)
    patch = model.transformer.config.patch_size[1]
    tokens = (latents.shape[3] // patch) * (latents.shape[4] // patch)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        pick = torch.multinomial(weights, args.batch, generator=rng)
        x0 = latents[pick].float()
        noise = torch.randn(x0.shape, generator=rng)
        sigma = levels(args.batch, TASKS, rng)
        wide = sigma[:, None, :, None, None]
        drop = (torch.rand(args.batch, generator=rng) < CAPTION_DROPOUT)[:, None]
        with torch.no_grad():
            context = model.context(torch.where(drop, empty_ids, ids[pick]), torch.where(drop, empty_mask, mask[pick]))
        timestep = 1000 * sigma.repeat_interleave(tokens, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
            v = model.transformer(torch.lerp(x0, noise, wide), timestep, context, return_dict=False)[0]
        learnt = (wide > 0).float()
        error = (v.float() - (noise - x0)).square() * learnt
        return error.sum() / (learnt.sum() * x0[0, :, 0].numel())

    parameters = {f"{name}.{k}": getattr(layer, k) for name, layer in layers.items() for k in ("a", "b")}
    names = {id(p): name for name, p in parameters.items()}
    own = {name: names[id(p)] for name, p in model.named_parameters() if id(p) in names}

    def save(step: int, average: dict[str, Tensor]) -> None:
        write(layers, {own[name]: value for name, value in average.items()}, args.out / "lora.safetensors")

    train(
        args.out,
        model,
        loss,
        parameters=parameters.values(),
        steps=args.steps,
        lr=args.lr,
        seed=args.seed,
        warmup=30,
        ema_decay=0.995,
        after_save=save,
    )


if __name__ == "__main__":
    main()
