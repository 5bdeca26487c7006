"""One of two gloo processes: Wan with the tokens split between them, in the middle of a frame.

Usage: python context_parallel_worker.py RANK MODEL_FOLDER SCRATCH_FOLDER; process 0 writes SCRATCH_FOLDER/result.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import ContextParallelConfig
from torch import Tensor
from torch import distributed as dist

from pusa.errors import InputError
from pusa.models.wan.transformer import VectorWanTransformer3DModel


def grads(model: VectorWanTransformer3DModel, *inputs: Tensor) -> Tensor:
    model.zero_grad()
    model(*inputs).sample.square().mean().backward()
    parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    return torch.cat(parts)


def main(rank: int, folder: str, scratch: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{scratch / 'store'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    latents, text = torch.randn(1, 4, 5, 8, 8), torch.randn(1, 7, 16)
    timestep = torch.tensor([[0.0, 200.0, 937.0, 978.26086, 1000.0]])
    inputs = latents, timestep, text

    model = VectorWanTransformer3DModel.from_pretrained(folder)
    with torch.no_grad():
        alone, alone_scalar = model(*inputs).sample, model(latents, timestep[:, 2], text).sample
        some = torch.tensor([0, 3, 4, 9, 20])
        alone_some = model(*inputs, frame_positions=some).sample
    alone_grads = grads(model, *inputs)

    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    lengths: list[int] = []
    model.blocks[0].norm1.register_forward_hook(lambda _m, args, _out: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        split, split_scalar = model(*inputs).sample, model(latents, timestep[:, 2], text).sample
        split_some = model(*inputs, frame_positions=some).sample
    try:
        model(latents, timestep.repeat_interleave(16, dim=1), text)
        refusal = ""
    except InputError as error:
        refusal = str(error)
    distances = {}
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        if checkpointing:
            model.enable_gradient_checkpointing()
        summed = grads(model, *inputs)
        dist.all_reduce(summed)
        distances[name] = (summed - alone_grads).abs().max().item()

    sharded = VectorWanTransformer3DModel.from_pretrained(folder)
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (2,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    with torch.no_grad():
        fsdp = sharded(*inputs).sample
    if rank == 0:
        result = {
            "tokens": lengths[0],
            "split": (split - alone).abs().max().item(),
            "scalar": (split_scalar - alone_scalar).abs().max().item(),
            "positions": (split_some - alone_some).abs().max().item(),
            "moved": (alone_some - alone).abs().max().item(),
            "fsdp": (fsdp - alone).abs().max().item(),
            "fsdp_class": [type(sharded).__name__, json.loads(sharded.to_json_string())["_class_name"]],
            "grads": distances,
            "grad_scale": alone_grads.abs().max().item(),
            "refusal": refusal,
        }
        (scratch / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
