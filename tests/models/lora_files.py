"""LoRA files as each program writes them, with small dimensions: real names, alphas, types and metadata.

`written` takes the truth (factors and whole differences at strength 1) and returns the file; `merged` puts the same
truth into the weights of a stock model. Neither knows how `pusa.models` reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

RANK = 4
LINEARS = {
    "blocks.{i}.attn1.to_q": "blocks.{i}.self_attn.q",
    "blocks.{i}.attn1.to_k": "blocks.{i}.self_attn.k",
    "blocks.{i}.attn1.to_v": "blocks.{i}.self_attn.v",
    "blocks.{i}.attn1.to_out.0": "blocks.{i}.self_attn.o",
    "blocks.{i}.attn2.to_q": "blocks.{i}.cross_attn.q",
    "blocks.{i}.attn2.to_k": "blocks.{i}.cross_attn.k",
    "blocks.{i}.attn2.to_v": "blocks.{i}.cross_attn.v",
    "blocks.{i}.attn2.to_out.0": "blocks.{i}.cross_attn.o",
    "blocks.{i}.ffn.net.0.proj": "blocks.{i}.ffn.0",
    "blocks.{i}.ffn.net.2": "blocks.{i}.ffn.2",
}
"""what the official Pusa LoRA and most others change: {diffusers name: Wan's own name}"""
OUTER = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
"""what distilled LoRAs change besides"""
WHOLE = {
    "blocks.{i}.attn1.norm_q.weight": "blocks.{i}.self_attn.norm_q.diff",
    "blocks.{i}.attn1.norm_k.weight": "blocks.{i}.self_attn.norm_k.diff",
    "blocks.{i}.attn2.norm_q.weight": "blocks.{i}.cross_attn.norm_q.diff",
    "blocks.{i}.attn2.norm_k.weight": "blocks.{i}.cross_attn.norm_k.diff",
    "blocks.{i}.norm2.weight": "blocks.{i}.norm3.diff",
    "blocks.{i}.norm2.bias": "blocks.{i}.norm3.diff_b",
    "blocks.{i}.scale_shift_table": "blocks.{i}.diff_m",
    "blocks.{i}.attn1.to_q.bias": "blocks.{i}.self_attn.q.diff_b",
    "blocks.{i}.ffn.net.2.bias": "blocks.{i}.ffn.2.diff_b",
    "patch_embedding.weight": "patch_embedding.diff",
    "patch_embedding.bias": "patch_embedding.diff_b",
    "condition_embedder.time_proj.bias": "time_projection.1.diff_b",
    "proj_out.bias": "head.head.diff_b",
    "scale_shift_table": "head.diff_m",
}
"""whole differences as LightX2V's files name them, by diffusers parameter"""
BLOCKS = 2
Factors = dict[str, tuple[Tensor, Tensor]]
Whole = dict[str, Tensor]


def every_block(names: dict[str, str]) -> dict[str, str]:
    return {key.format(i=i): value.format(i=i) for i in range(BLOCKS) for key, value in names.items()}


def truth(
    model: WanTransformer3DModel, *, outer: bool = False, whole: bool = False, seed: int = 1, size: float = 0.2
) -> tuple[Factors, Whole]:
    """Random changes of a model: {module: (A, B)}, and {parameter: difference} where `whole`."""
    rng = torch.Generator().manual_seed(seed)
    modules = every_block(LINEARS) | (OUTER if outer else {})
    factors = {}
    for name in modules:
        layer = model.get_submodule(name)
        factors[name] = (
            torch.randn(RANK, layer.in_features, generator=rng) * size,
            torch.randn(layer.out_features, RANK, generator=rng) * size,
        )
    parameters = dict(model.named_parameters())
    changed = every_block(WHOLE) if whole else {}
    return factors, {name: torch.randn(parameters[name].shape, generator=rng) * size for name in changed}


@torch.no_grad()
def merged(model: WanTransformer3DModel, factors: Factors, whole: Whole, scale: float) -> WanTransformer3DModel:
    """Put scale * (B A) and scale * difference into the weights of a stock model, in float64 and rounded once."""
    parameters = dict(model.named_parameters())
    for name, (a, b) in factors.items():
        weight = parameters[f"{name}.weight"]
        weight.copy_(weight.double() + scale * (b.double() @ a.double()))
    for name, difference in whole.items():
        parameters[name].copy_(parameters[name].double() + scale * difference.double())
    return model


DIALECTS = (
    "diffusers",
    "diffusers with metadata",
    "peft",
    "peft rank-stabilised",
    "comfy",
    "kijai",
    "official pusa pt",
    "official pusa safetensors",
    "diffsynth",
    "kohya",
    "videox-fun",
    "lightx2v",
    "lightx2v with alpha",
    "fp8",
)
PLAIN = tuple(dialect for dialect in DIALECTS if not dialect.startswith("lightx2v"))
"""dialects that have factors only"""


def written(folder: Path, dialect: str, factors: Factors, whole: Whole, *, alpha: float | None = None) -> Path:
    """Write the file, or PEFT's folder. alpha: another than the right one, to see that it matters."""
    original = every_block(LINEARS) | OUTER
    path = folder / "style.safetensors"
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}

    def scaled(b: Tensor, by: float) -> Tensor:
        return b / (by if alpha is None else 1.0)

    for name, (a, b) in factors.items():
        wan = original[name]
        if dialect.startswith("diffusers"):
            twice = dialect.endswith("metadata")
            keys = {
                f"transformer.{name}.lora_A.weight": a,
                f"transformer.{name}.lora_B.weight": b / (2 if twice else 1),
            }
        elif dialect.startswith("peft"):
            by = 6 / RANK**0.5 if "stabilised" in dialect else 2.0
            keys = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b / by}
        elif dialect in ("comfy", "kijai"):
            kind = torch.bfloat16 if dialect == "kijai" else torch.float32
            keys = {
                f"diffusion_model.{wan}.lora_A.weight": a.to(kind),
                f"diffusion_model.{wan}.lora_B.weight": b.to(kind),
            }
        elif dialect == "fp8":
            kind = torch.float8_e4m3fn
            keys = {
                f"diffusion_model.{wan}.lora_down.weight": a.to(kind),
                f"diffusion_model.{wan}.lora_up.weight": b.to(torch.bfloat16),
                f"diffusion_model.{wan}.alpha": torch.tensor(float(RANK)),
            }
        elif dialect.startswith("official"):
            keys = {f"{wan}.lora_A.default.weight": a, f"{wan}.lora_B.default.weight": b}
        elif dialect == "diffsynth":
            keys = {f"pipe.dit.{wan}.lora_A.default.weight": a, f"pipe.dit.{wan}.lora_B.default.weight": b}
        elif dialect in ("kohya", "videox-fun"):
            stem = f"lora_unet_{'_' if dialect == 'videox-fun' else ''}{wan.replace('.', '_')}"
            keys = {
                f"{stem}.lora_down.weight": a,
                f"{stem}.lora_up.weight": scaled(b, 0.25),
                f"{stem}.alpha": torch.tensor(1.0 if alpha is None else alpha, dtype=torch.bfloat16),
            }
        else:
            by = 0.5 if dialect.endswith("alpha") else 1.0
            keys = {f"diffusion_model.{wan}.lora_down.weight": a, f"diffusion_model.{wan}.lora_up.weight": b / by}
            if by != 1:
                keys[f"diffusion_model.{wan}.alpha"] = torch.tensor(by * RANK)
        tensors |= keys
    named = every_block(WHOLE)
    tensors |= {f"diffusion_model.{named[name]}": value for name, value in whole.items()}
    tensors = {key: value.contiguous() for key, value in tensors.items()}

    if dialect.startswith("peft"):
        path = folder / "style" / "adapter_model.safetensors"
        path.parent.mkdir()
        stabilised = "stabilised" in dialect
        own = (6 if stabilised else 2 * RANK) if alpha is None else alpha
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": own, "use_rslora": stabilised, "bias": "none"}
        (path.parent / "adapter_config.json").write_text(json.dumps(config))
    if dialect == "diffusers with metadata":
        own = 2 * RANK if alpha is None else alpha
        metadata["lora_adapter_metadata"] = json.dumps({"transformer.r": RANK, "transformer.lora_alpha": own})
    if dialect == "official pusa pt":
        path = path.with_suffix(".pt")
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata)
    return path.parent if dialect.startswith("peft") else path
