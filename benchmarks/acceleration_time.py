"""How much time accelerations save at the dims of Wan2.1 1.3B: several blocks of random weights, on one thread.

    python benchmarks/acceleration_time.py --json docs/results/performance/acceleration_time.json

The clip is an extension, half of whose latent frames are given. Random weights do not change how long a policy takes
that decides by the step or by the frame. So `held`, `uniform` and `tokens` are timed, and not those that decide by a
threshold. Plain and accelerated walks take turns.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from machine import facts, in_turns, ratio
from section import Section, Table
from torch import Tensor
from true_size import WAN_13B
from workloads import transformer

from pusa.acceleration.accounting import Accounting
from pusa.acceleration.executor import Executor
from pusa.acceleration.names import Acceleration
from pusa.acceleration.running import policy_of
from pusa.core import sampler, schedules, sigmas
from pusa.models.backbone import Text
from pusa.models.wan import operations, partial_blocks, per_clip
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.text import TOKENS

ACCELERATIONS = ("held,every=2", "held,every=4", "held,every=8", "uniform,every=2,first=0.2", "tokens,share=0.5")


class Blocks:
    """The part of a backbone that an executor uses, for a transformer without autoencoder and text encoder."""

    blocks_run_by = staticmethod(partial_blocks.blocks_run_by)
    block_operations = staticmethod(operations.block_operations)


class Walk:
    """A clip of which half is given, sampled by a network of random weights."""

    def __init__(self, dims: dict[str, Any], shape: tuple[int, int, int], steps: int) -> None:
        self.network = transformer(dims)
        frames, height, width = shape
        given = dict.fromkeys(range(frames // 2 + 1), 0.0)
        self.matrix = schedules.conditioned(schedules.synchronous(sigmas.grid(steps, 5.0), frames), given)
        rng = torch.Generator().manual_seed(0)
        channels = self.network.config.in_channels
        self.latents = torch.randn(1, channels, frames, 2 * height, 2 * width, generator=rng)
        self.text = torch.randn(1, TOKENS, self.network.config.text_dim, generator=rng)
        self.text[:, 40:] = 0
        self.accounting: dict[str, Accounting] = {}

    @torch.inference_mode()
    def run(self, acceleration: str | None = None) -> Tensor:
        """Sample the clip."""
        chosen = None if acceleration is None else policy_of(Acceleration.parse(acceleration), self.matrix)
        running: Any = nullcontext() if chosen is None else Executor(chosen, Blocks(), [self.network])  # type: ignore[arg-type]

        def velocity(x: Tensor, sigma: Tensor, context: Any, call: sampler.Call) -> Tensor:
            with nullcontext() if executor is None else executor.call(self.network, "cond", call):
                return WanBackbone.velocity(self.network, x, sigma, context, frames=call.frames)

        with running as executor, per_clip.walk(self.network):
            out = sampler.sample(velocity, self.latents, self.matrix, Text(self.text))
        if executor is not None:
            self.accounting[str(acceleration)] = executor.accounting
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(13, 12, 20), help="frames, height and width in tokens")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    dims = WAN_13B | {"num_layers": args.blocks}
    if args.smoke:
        args.shape, args.turns = (5, 2, 2), 1
        dims |= {"num_attention_heads": 2, "ffn_dim": 64, "text_dim": 16}
    torch.set_num_threads(1)
    about = facts("cpu")
    walk = Walk(dims, tuple(args.shape), args.steps)
    names = (None, *ACCELERATIONS)
    walk.run()  # the first run in a process is slower
    taken = in_turns({str(name): lambda name=name: walk.run(name) for name in names}, args.turns, warm_up=False)  # type: ignore[misc]
    rows = []
    for name in ACCELERATIONS:
        speed, counted = ratio(taken["None"], taken[name]), walk.accounting[name]
        rows.append(
            [
                name,
                f"{speed['median']:.2f} ({speed['least']:.2f} to {speed['most']:.2f})",
                f"{100 * counted.fraction:.0f} %",
                f"{1 / counted.operations_fraction:.2f}",
                f"{counted.kept_bytes / 2**20:.0f} MiB",
            ]
        )
    frames, height, width = args.shape
    head = ["acceleration", "times as fast", "blocks computed", "by operations of the blocks", "kept for each branch"]
    section = Section(
        "Accelerations: time at true width",
        "python benchmarks/acceleration_time.py --json docs/results/performance/acceleration_time.json",
        about,
        [
            f"{args.blocks} blocks of Wan2.1 1.3B, {frames * height * width:,} tokens, {args.steps} steps without "
            f"guidance, float32, one thread. {frames // 2 + 1} of {frames} latent frames are given. What is kept grows "
            "with the number of blocks, except for steps and uniform."
        ],
        [Table(head, rows)],
    )
    section.write(args.json)


if __name__ == "__main__":
    main()
