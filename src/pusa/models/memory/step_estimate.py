"""Estimate the memory of a training step of a LoRA, from the model's configuration alone.

The transformer is built on the meta device, where tensors have shapes and no data. There the step that will run is
rehearsed with its forward and backward pass, its LoRA, gradient checkpointing, and the storage of its base (see
`tensor_tracker`). Attention is assumed to be fused. The weights, gradients and optimiser states, which stay for the
whole training, are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from pusa.models.memory import frozen_base
from pusa.models.memory.estimate import CUDA_CONTEXT, FRAGMENTATION, RUNTIME
from pusa.models.memory.meta_networks import META
from pusa.models.memory.stored_weights import Storage
from pusa.models.memory.tensor_tracker import rehearse_step
from pusa.models.wan.text import TOKENS
from pusa.models.wan.transformer import VectorWanTransformer3DModel


@dataclass(frozen=True)
class StepNeeds:
    """What a training needs, in bytes.

    weights: the frozen base on the device. adapter: the trained weights, float32. gradients: theirs. optimiser: its
    state. activations: the greatest memory of everything else in a step. host: the peak in the machine's memory.
    swapped: the number of blocks whose weights are there.
    """

    weights: float
    adapter: float
    gradients: float
    optimiser: float
    activations: float
    host: float
    swapped: int

    @property
    def device(self) -> float:
        """The peak on the device, with the memory of CUDA."""
        return self.weights + self.adapter + self.gradients + self.optimiser + self.activations + CUDA_CONTEXT

    def record(self) -> dict[str, Any]:
        """Return the values for JSON, in bytes."""
        parts = ("weights", "adapter", "gradients", "optimiser", "activations", "host")
        return {"device": round(self.device), **{part: round(getattr(self, part)) for part in parts}} | {
            "swapped": self.swapped
        }


@dataclass(frozen=True)
class StepRehearsal:
    """One rehearsed step, from which `needs` computes every number of swapped blocks.

    rest: bytes of the base outside the stored layers. blocks: bytes of the stored layers, for each block. loaded: bytes
    of the base as it is loaded. trained: the number of trained parameters. peak: bytes of the temporary tensors.
    offloaded: bytes of the checkpoints in the machine's memory.
    """

    rest: int
    blocks: Sequence[int]
    loaded: int
    trained: int
    peak: int
    offloaded: int = field(default=0)

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        latents: tuple[int, int, int, int, int],
        *,
        rank: int,
        targets: Sequence[str],
        storage: Storage | None = None,
        checkpointing: bool = True,
        offload: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> StepRehearsal:
        """Rehearse a step on latents of shape `latents` (B, C, F, h, w).

        config: of the transformer. rank, targets: of the LoRA. storage: of the frozen linear layers of the blocks.
        checkpointing, offload: gradient checkpointing, and whether its checkpoints are in the machine's memory. dtype:
        the type in which the step computes.
        """
        options: dict[str, Any] = {"rank": rank, "targets": tuple(targets), "storage": storage, "dtype": dtype}
        options |= {"checkpointing": checkpointing, "offload": offload}
        two, three = (_rehearsed({**config, "num_layers": count}, latents, **options) for count in (2, 3))
        count = int(config.get("num_layers", 40))

        def all_blocks(of: Callable[[StepRehearsal], int]) -> int:
            """Return a number for all blocks; each adds the same."""
            return of(two) + (count - 2) * (of(three) - of(two))

        return cls(
            rest=all_blocks(lambda one: one.rest),
            blocks=[three.blocks[0]] * count,
            loaded=all_blocks(lambda one: one.loaded),
            trained=all_blocks(lambda one: one.trained),
            peak=all_blocks(lambda one: one.peak),
            offloaded=all_blocks(lambda one: one.offloaded),
        )

    def needs(self, swapped: int, state_bytes: float = 8) -> StepNeeds:
        """Return what the training needs with the weights of `swapped` blocks in the machine's memory.

        state_bytes: of the optimiser, for each trained parameter; 8 for Adam.
        """
        kept = len(self.blocks) - swapped
        away = sum(self.blocks[kept:])
        visiting = sum(sorted(self.blocks[kept:])[-2:])
        updating = 4.0 * self.trained  # the optimiser needs a copy of its second moments, when activations are free
        return StepNeeds(
            weights=float(self.rest + sum(self.blocks[:kept]) + visiting),
            adapter=4.0 * self.trained,
            gradients=4.0 * self.trained,
            optimiser=state_bytes * self.trained,
            activations=max(FRAGMENTATION * self.peak, updating),
            host=RUNTIME + max(self.loaded + self.widest, away + self.offloaded),
            swapped=swapped,
        )

    @property
    def widest(self) -> float:
        """The bytes of the largest block, which is stored while the base is still loaded."""
        return float(max(self.blocks, default=0))

    def fitting(self, limit: float, state_bytes: float = 8) -> StepNeeds | None:
        """Return the needs with the fewest swapped blocks that fit in `limit` bytes of the device; None if none do."""
        tries = (self.needs(swapped, state_bytes) for swapped in range(len(self.blocks) + 1))
        return next((needs for needs in tries if needs.device <= limit), None)


def _rehearsed(
    config: Mapping[str, Any],
    latents: tuple[int, int, int, int, int],
    *,
    rank: int,
    targets: Sequence[str],
    storage: Storage | None,
    checkpointing: bool,
    offload: bool,
    dtype: torch.dtype,
) -> StepRehearsal:
    """Rehearse a step of exactly the model in `config`."""
    with META:
        stock = WanTransformer3DModel.from_config(config)
    exact = set(WanTransformer3DModel._keep_in_fp32_modules)  # private; see meta_networks.build
    for key, parameter in stock.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if exact & set(key.split(".")) else dtype)
    model = VectorWanTransformer3DModel.upgrade(stock).requires_grad_(False)
    loaded = sum(p.nbytes for p in model.parameters())
    inject_adapter_in_model(LoraConfig(r=rank, target_modules=list(targets)), model, "trained", low_cpu_mem_usage=True)
    trained = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for p in trained.values():
        p.data = p.data.to(dtype)  # mixed precision computes with such copies
        p.requires_grad_(True)
    frozen_base.place(model, model.blocks, META, storage=storage, swapped=0)
    blocks = [
        sum(m.stored.nbytes for m in block.modules() if isinstance(m, frozen_base.FrozenLinear) and m.stored)
        for block in model.blocks
    ]
    rest = sum(p.nbytes for name, p in model.named_parameters() if name not in trained)
    if checkpointing:
        model.enable_gradient_checkpointing(frozen_base.offloading if offload else None)
    model.train()
    batch, _, slots, height, width = latents
    clip = torch.empty(latents, device=META, dtype=dtype)
    text = torch.empty(batch, TOKENS, model.config.text_dim, device=META, dtype=dtype)
    times = torch.empty(batch, slots, device=META)

    def step() -> None:
        predicted: Tensor = model._forward_per_frame(clip, times, text, None, return_dict=False, attention_kwargs=None)[
            0
        ]
        torch.autograd.backward(predicted.float().square().mean())

    peak = rehearse_step(step).peak
    _, high, wide = model.config.patch_size
    row = model.config.num_attention_heads * model.config.attention_head_dim * dtype.itemsize
    saved = len(blocks) * batch * slots * (height // high) * (width // wide) * row
    count = sum(p.numel() for p in trained.values())
    return StepRehearsal(rest, blocks, loaded, count, peak, saved if offload and checkpointing else 0)
