"""One LoRA training step with a timestep per frame, beside the same step through stock diffusers.

    python benchmarks/lora_step.py --blocks 4 --size 832x480 --frames 17 --json step.json

The stock `WanTransformer3DModel` can be told a timestep per token, which says the same at the price of one modulation
row per token; `VectorWanTransformer3DModel` takes one per frame (arXiv 2507.16116, section 2.3.1). Both run the same
weights, adapter, clip, noise and σ, each in a process of its own so that peak memory is its own, taking turns step by
step, so that whatever else the machine does meets both. The losses must agree.

Dimensions are by default those of Wan2.1 1.3B with fewer blocks and random weights. Printed are samples per second
(median step), peak memory, the share of the machine's own matrix rate (MFU) and, from a profile of one more step, where
the time goes. MFU counts for both what the per-frame step needs; the stock step does more, for the same result.

Peak memory is that of the timed steps: the high-water mark is set back after the warm-up, as building the model in
float32 may take more than a step does. That of the whole process stands beside it. CPU seconds stand beside those of
the clock: on one thread they do not count what other programs took of the core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from pusa.files import write_json

KINDS = ("per frame", "per token")
GROUPS = {
    "attention": ("attention", "sdpa", "flash"),
    "matrix products": ("mm", "linear", "gemm", "matmul", "conv", "mkldnn", "cutlass", "nvjet"),
    "optimiser": ("adam", "_foreach", "_fused"),
}
"""Parts of the names of operations; what matches none is arithmetic on single elements, norms, rotations and copies."""
REST = "elementwise, norms, copies"


def forget_peak(device: torch.device) -> None:
    """Set the high-water mark of memory back to what is held now. On a CPU that takes Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise SystemExit(f"The peak of the steps alone cannot be measured here ({error}); it takes Linux.") from error


def peak_since(device: torch.device) -> int:
    """Bytes: the most that was held since `forget_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


def work(kind: str, options: argparse.Namespace, pipe: Connection) -> None:
    """A process: set the step up, run one whenever told to, and report."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    from pusa.core.objectives import flow_matching_loss
    from pusa.models.wan.geometry import GEOMETRIES
    from pusa.models.wan.operations import StepCounter
    from pusa.models.wan.text import TOKENS
    from pusa.models.wan.transformer import VectorWanTransformer3DModel
    from pusa.training.config.sections import TARGETS
    from pusa.training.costs import device_name, matmul_rate, peak_memory

    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    width, height = (int(n) // 8 for n in options.size.split("x"))
    frames = GEOMETRIES[16].latent_frames(options.frames)
    per_frame = width * height // 4
    tokens = frames * per_frame

    torch.manual_seed(0)
    cls = VectorWanTransformer3DModel if kind == "per frame" else WanTransformer3DModel
    model = cls(
        num_layers=options.blocks,
        num_attention_heads=options.heads,
        attention_head_dim=options.hidden // options.heads,
        ffn_dim=options.ffn,
    ).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not any(part in name for part in cls._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    model.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=list(TARGETS)))
    model.to(device).train()
    if options.checkpointing:
        model.enable_gradient_checkpointing()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimiser = torch.optim.AdamW(trained, lr=1e-4)

    rng = torch.Generator().manual_seed(1)
    clip, noise = (torch.randn(1, 16, frames, height, width, generator=rng).to(device) for _ in range(2))
    text = torch.randn(1, TOKENS, 4096, generator=rng).to(device)
    sigma = torch.rand(1, frames, generator=rng).to(device)

    def velocity(x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        told = 1000 * sigma
        if kind == "per token":
            told = told.repeat_interleave(per_frame, dim=1)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            out: torch.Tensor = model(x.to(dtype), told, context.to(dtype), return_dict=False)[0]
        return out

    def step() -> float:
        loss = flow_matching_loss(velocity, clip, noise, sigma, text)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    held = torch.cuda.memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    pipe.send({"tokens": tokens, "latent_frames": frames, "device": device_name(device), "held": held})
    before = 0
    while (order := pipe.recv()) != "end":
        if order == "forget":
            before = peak_memory(device)
            forget_peak(device)
            continue
        started, spent = time.perf_counter(), time.process_time()
        loss = step()
        pipe.send((time.perf_counter() - started, time.process_time() - spent, loss))
    peak = peak_since(device)
    flops = StepCounter(model)(1, tokens, frames).model
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    spent: dict[str, float] = dict.fromkeys([*GROUPS, REST], 0.0)
    for event in profile.key_averages():
        name = event.key.lower()
        group = next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), REST)
        spent[group] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    total = sum(spent.values())
    pipe.send({
        "peak": peak,
        "process_peak": max(before, peak),
        "flops": flops,
        "rate": matmul_rate(device, dtype),
        "time": {group: share / total for group, share in spent.items()},
    })  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both kinds in turns; everything that is printed, as plain numbers."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    setup: dict[str, Any] = {}
    for kind in KINDS:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(kind, options, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        pipes[kind] = ours
        setup[kind] = ours.recv()

    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    losses: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(options.warmup + options.steps):
        if turn == options.warmup:
            for pipe in pipes.values():
                pipe.send("forget")
        for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
            pipes[kind].send("step")
            took, spent, loss = pipes[kind].recv()
            losses[kind].append(loss)
            if turn >= options.warmup:
                seconds[kind].append(took)
                cpu[kind].append(spent)
    ends: dict[str, Any] = {}
    for kind, pipe in pipes.items():
        pipe.send("end")
        ends[kind] = pipe.recv()
    for process in processes:
        process.join()

    mine, stock = losses.values()
    apart = max(abs(a - b) / abs(b) for a, b in zip(mine, stock, strict=True))
    tolerance = 1e-4 if options.precision == "fp32" else 2e-2
    if not apart < tolerance:
        raise SystemExit(f"The two steps differ: losses {mine} and {stock}.")
    rate, flops = max(end["rate"] for end in ends.values()), ends["per frame"]["flops"]
    return {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        **{key: setup["per frame"][key] for key in ("device", "tokens", "latent_frames")},
        "losses_apart": apart,
        "flops": flops,
        "matrix_rate": rate,
        "steps": {
            kind: {
                "seconds": seconds[kind],
                "median_seconds": statistics.median(seconds[kind]),
                "cpu_seconds": cpu[kind],
                "samples_per_second": 1 / statistics.median(seconds[kind]),
                "mfu": flops / statistics.median(seconds[kind]) / rate,
                "peak_bytes": ends[kind]["peak"],
                "process_peak_bytes": ends[kind]["process_peak"],
                "peak_above_the_loaded_model": ends[kind]["peak"] - setup[kind]["held"],
                "time": ends[kind]["time"],
            }
            for kind in KINDS
        },
    }


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    options, steps = result["options"], result["steps"]
    title = (
        f"{options['blocks']} blocks of {options['hidden']}, {options['size']} x {options['frames']} frames = "
        f"{result['tokens']:,} tokens, rank {options['rank']}, {options['precision']}, {result['device']}"
    )
    table = Table(title=title)
    table.add_column("timestep")
    for column in (
        "samples/s",
        "seconds (min to max)",
        "peak of the steps",
        "above the model",
        "of the process",
        "MFU",
    ):
        table.add_column(column, justify="right")
    for kind, step in steps.items():
        table.add_row(
            kind,
            f"{step['samples_per_second']:.4f}",
            f"{step['median_seconds']:.2f} ({min(step['seconds']):.2f} to {max(step['seconds']):.2f})",
            f"{step['peak_bytes'] / 2**30:.2f} GiB",
            f"{step['peak_above_the_loaded_model'] / 2**30:.2f} GiB",
            f"{step['process_peak_bytes'] / 2**30:.2f} GiB",
            f"{step['mfu']:.1%}",
        )
    console.print(table)
    mine, stock = steps.values()
    busy = ", ".join(f"{kind} {statistics.median(step['cpu_seconds']):.2f}" for kind, step in steps.items())
    console.print(f"CPU seconds of a step, median: {busy}")
    console.print(
        f"per frame is {stock['median_seconds'] / mine['median_seconds']:.2f} times as fast and takes "
        f"{mine['peak_bytes'] / stock['peak_bytes']:.0%} of the memory; losses agree to {result['losses_apart']:.1e}"
    )
    flops, rate = result["flops"] / 1e12, result["matrix_rate"] / 1e9
    console.print(f"{flops:.3f} TFLOP a step; the matrix rate of the machine is {rate:,.0f} GFLOP/s")
    for kind, step in steps.items():
        shares = sorted(step["time"].items(), key=lambda item: -item[1])
        console.print(f"{kind}: bound by " + "; ".join(f"{name} {share:.0%}" for name, share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--ffn", type=int, default=8960)
    parser.add_argument("--size", default="832x480", help="pixels, multiples of 16")
    parser.add_argument("--frames", type=int, default=17, help="pixel frames, 4n+1")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each kind that are not timed")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    result = measure(options)
    show(result)
    if options.json:
        write_json(options.json, result)
        print(json.dumps({"written": str(options.json)}))


if __name__ == "__main__":
    main()
