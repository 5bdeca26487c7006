"""How the time and the memory of a denoising step grow with frames, pixels, batch and processes.

    python benchmarks/scaling.py --json docs/results/performance/scaling.json

A transformer of a quarter of the width of Wan2.1 1.3B and two blocks, with random weights. The points of a series take
turns. An exponent is the slope of a least-squares line through the logarithms of the medians, with its standard error.
Beside it stands the exponent of the counted operations. Memory is the most that the tensors of a step hold at once,
counted and not measured; weights are not in it.

The second part is arithmetic: seconds of a step of Wan2.1 14B on H100s, from its counted operations and from shares of
the peak that follow from published times of others.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import counting
import machine
import numpy as np
import torch
import workloads
from section import Section, Table
from torch import distributed as dist
from torch import multiprocessing
from true_size import H100, on_paper

from pusa.evaluation import plots
from pusa.models import context_parallel
from pusa.training.costs import scaled

DIMS = {"num_attention_heads": 6, "attention_head_dim": 64, "ffn_dim": 2240, "num_layers": 2, "text_dim": 512}
TOY = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 1, "text_dim": 32}
Point = tuple[float, workloads.Shape, int]
"""the size that is varied, the shape in latents, and the batch"""
CLIPS = {"480p": "832x480", "720p": "1280x720"}
FRAMES = 81
PUBLISHED = (
    ("diffusers", "480p", 1, 9.77, "README of LightX2V, August 2026, I2V 14B"),
    ("LightX2V", "480p", 1, 5.18, "README of LightX2V, August 2026, I2V 14B"),
    ("LightX2V", "480p", 8, 0.75, "README of LightX2V, August 2026, I2V 14B"),
    ("the code of Wan", "720p", 1, 1837.9 / 50, "README of Wan2.1, T2V 14B, 50 steps"),
    ("the code of Wan", "720p", 8, 287.9 / 50, "README of Wan2.1, T2V 14B, 50 steps"),
)
"""Published seconds of a step with guidance, two calls of the transformer, for 81 frames on H100s.

who, size, GPUs, seconds, where
"""


def series(smoke: bool) -> dict[str, list[Point]]:
    if smoke:
        return {
            "frames": [(n, ((n + 3) // 4, 4, 4), 1) for n in (17, 33, 65)],
            "pixels per frame": [(64 * side * side, (2, side, side), 1) for side in (4, 8, 16)],
            "batch": [(n, (2, 4, 4), n) for n in (1, 2, 4)],
        }
    return {
        "frames": [(n, ((n + 3) // 4, 16, 24), 1) for n in (17, 33, 65, 121, 181, 241)],
        "pixels per frame": [(64 * side * side, (5, side, side), 1) for side in (16, 24, 32, 48, 64)],
        "batch": [(n, (5, 16, 24), n) for n in (1, 2, 3, 4, 6, 8)],
    }


def sweep(model: Any, points: Sequence[Point], turns: int) -> dict[str, Any]:
    """Time and counted operations and memory of each point, and the exponents."""
    runs = {str(i): workloads.denoising_step(model, shape, batch) for i, (_, shape, batch) in enumerate(points)}
    seconds = list(machine.in_turns(runs, turns).values())
    counters = [counting.Counter().count(run) for run in runs.values()]
    found: dict[str, Any] = {
        "size": [size for size, _, _ in points],
        "tokens": [workloads.tokens(model, shape) * batch for _, shape, batch in points],
        "seconds": seconds,
        "flops": [counter.total.flops for counter in counters],
        "memory": [counter.peak for counter in counters],
    }
    medians = [statistics.median(one) for one in seconds]
    found["exponents"] = {
        name: exponent(found["size"], values)
        for name, values in (("time", medians), ("memory", found["memory"]), ("operations", found["flops"]))
    }
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of a line through (log x, log y), and its standard error."""
    u, v = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    u = u - u.mean()
    slope = float((u * v).sum() / (u * u).sum())
    rest = v - v.mean() - slope * u
    return slope, math.sqrt(float((rest * rest).sum()) / (len(x) - 2) / float((u * u).sum()))


def shared(rank: int, address: str, dims: dict[str, Any], shape: workloads.Shape, turns: int, out: str) -> None:
    """A process of two: the whole step on process 0 and the shared step on both, in turns. Process 0 writes seconds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about a call of diffusers
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    alone, together = workloads.transformer(dims), workloads.transformer(dims)
    context_parallel.enable([together], 2)
    whole, part = workloads.denoising_step(alone, shape), workloads.denoising_step(together, shape)
    apart = float((whole() - part()).abs().max())
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for turn in range(turns):
        for count in ("1", "2") if turn % 2 == 0 else ("2", "1"):
            dist.barrier()
            if count == "2" or rank == 0:
                seconds[count].append(machine.seconds(part if count == "2" else whole))
    if rank == 0:
        torch.save({"seconds": seconds, "apart": apart}, out)
    dist.barrier()
    dist.destroy_process_group()


def processes(dims: dict[str, Any], shape: workloads.Shape, turns: int) -> dict[str, Any]:
    """The seconds of one process and of two that share the tokens of a clip (context parallelism over gloo)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with tempfile.NamedTemporaryFile() as file:
        multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
            shared, (address, dims, shape, turns, file.name), nprocs=2, start_method="fork"
        )
        found: dict[str, Any] = torch.load(file.name)
    return found | {"speed_up": machine.ratio(found["seconds"]["1"], found["seconds"]["2"])}


def shares(flops: dict[str, float]) -> list[dict[str, Any]]:
    """The share of an H100's peak in each published time, from the operations of a call at each size."""
    return [
        {"who": who, "size": size, "gpus": gpus, "seconds": seconds, "source": source,
         "share": 2 * flops[size] / (seconds * gpus * H100)}
        for who, size, gpus, seconds, source in PUBLISHED
    ]  # fmt: skip


def projection(flops: dict[str, float], published: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of a step with guidance on 1 to 8 GPUs, for the smallest and the largest published shares.

    The shares on one GPU and on eight are published. Between them, each doubling lowers the share by the same factor.
    """
    rows = []
    plain = {1: min(one["share"] for one in published if one["gpus"] == 1),
             8: min(one["share"] for one in published if one["gpus"] == 8)}  # fmt: skip
    tuned = {1: max(one["share"] for one in published if one["gpus"] == 1),
             8: max(one["share"] for one in published if one["gpus"] == 8)}  # fmt: skip
    for size, count in flops.items():
        for gpus in (1, 2, 4, 8):
            row: dict[str, Any] = {"size": size, "gpus": gpus, "flops": 2 * count}
            for name, ends in (("plain", plain), ("tuned", tuned)):
                share = ends[1] * (ends[8] / ends[1]) ** (math.log2(gpus) / 3)
                row[name] = {"share": share, "seconds": 2 * count / (gpus * share * H100)}
            rows.append(row)
    return rows


def exponent_text(found: tuple[float, float]) -> str:
    return f"{found[0]:.2f} ± {found[1]:.2f}"


def tables(found: dict[str, Any], paper: dict[str, Any]) -> list[Table]:
    rows = [
        [name, f"{one['size'][0]:,} to {one['size'][-1]:,}", f"{one['tokens'][0]:,} to {one['tokens'][-1]:,}",
         str(len(one["size"])), *(exponent_text(one["exponents"][kind]) for kind in ("time", "operations", "memory"))]
        for name, one in found["series"].items()
    ]  # fmt: skip
    head = ["varied", "from, to", "tokens", "points", "time", "operations", "memory"]
    result = [Table(head, rows, "Exponents")]
    for name, one in found["series"].items():
        rows = [
            [f"{size:,}", f"{tokens:,}", scaled(flops, "FLOP"), machine.durations(seconds), scaled(memory, "B")]
            for size, tokens, flops, seconds, memory in zip(
                one["size"], one["tokens"], one["flops"], one["seconds"], one["memory"], strict=True
            )
        ]
        result.append(Table([name, "tokens", "operations", "time", "memory"], rows))
    if two := found.get("processes"):
        rows = [[count, machine.durations(two["seconds"][count])] for count in ("1", "2")]
        rows.append(["speed-up", machine.ratio_text(two["speed_up"])])
        result.append(Table(["processes, one thread each", "time"], rows, "Two processes share a clip"))
    rows = [
        [one["who"], one["size"], str(one["gpus"]), f"{one['seconds']:.2f} s", f"{one['share']:.0%}", one["source"]]
        for one in paper["published"]
    ]
    head = ["program", "size", "H100s", "step with guidance", "share of the peak", "source of the time"]
    result.append(
        Table(
            head,
            rows,
            "14B on H100s, by arithmetic",
            [
                f"Nothing in this part was measured here. The counted operations of Wan2.1 T2V 14B for {FRAMES} "
                f"frames, the published time of a step, and {H100 / 1e12:.0f} TFLOP/s, the dense bfloat16 peak of the "
                "data sheet, give the share of the peak. I2V has some more operations than are counted, so the true "
                "share of its rows is a little higher."
            ],
        )
    )
    rows = [
        [row["size"], str(row["gpus"]), scaled(row["flops"], "FLOP"),
         *(f"{row[name]['seconds']:.2f} s at {row[name]['share']:.0%}" for name in ("plain", "tuned"))]
        for row in paper["projection"]
    ]  # fmt: skip
    why = (
        "Seconds of a step with guidance, which calls the transformer twice. The shares on one and on eight GPUs are "
        "the smallest and the largest of the table above. On two and four GPUs the share is interpolated: it falls by "
        "the same factor with each doubling."
    )
    head = ["size", "H100s", "operations", "at the smallest shares", "at the largest shares"]
    result.append(Table(head, rows, "", [why]))
    return result


def draw(found: dict[str, Any], folder: Path) -> list[str]:
    """A picture of each series: time, operations and memory, in multiples of its first point."""
    names = []
    for name, one in found.items():
        medians = [statistics.median(seconds) for seconds in one["seconds"]]
        measured = {"time": medians, "operations": one["flops"], "memory": one["memory"]}
        drawn = {kind: [value / values[0] for value in values] for kind, values in measured.items()}
        file = f"scaling_{name.split()[0]}.png"
        labels = {"xlabel": name, "ylabel": "multiple of the first point"}
        plots.lines(folder / file, one["size"], drawn, log=True, log_y=True, **labels)
        names.append(file)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy size, in seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the section of docs/performance.md here, and plots beside it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = machine.facts()
    dims, turns = (TOY, 2) if options.smoke else (DIMS, options.turns)
    model = workloads.transformer(dims)
    found: dict[str, Any] = {"series": {}}
    for name, points in series(options.smoke).items():
        found["series"][name] = sweep(model, points, turns)
        print(f"{name}: time to the power of {exponent_text(found['series'][name]['exponents']['time'])}", flush=True)
    found["processes"] = processes(dims, (2, 4, 4) if options.smoke else (17, 16, 24), turns)
    flops = {name: float(on_paper(size, FRAMES, 1.0)["flops_per_step"]) for name, size in CLIPS.items()}
    published = shares(flops)
    paper = {"flops": flops, "published": published, "projection": projection(flops, published)}
    names = draw(found["series"], options.json.parent) if options.json else []
    exponents = {name: one["exponents"] for name, one in found["series"].items()}
    width = dims["num_attention_heads"] * dims["attention_head_dim"]
    text = [
        f"A transformer of {dims['num_layers']} blocks and width {width} with random weights, {facts['device']}. Time "
        "is the median of the turns, and the operations are counted. If time grows as the operations do, the exponents "
        "agree. An exponent of 1 is linear; attention alone would be 2. Memory is that of the tensors of a step, "
        "counted, without weights.",
        "The exponents of time and of operations are apart by "
        + ", ".join(f"{abs(e['time'][0] - e['operations'][0]):.2f} ({name})" for name, e in exponents.items())
        + ".",
    ]
    command = f"python benchmarks/scaling.py --threads {options.threads} --json docs/results/performance/scaling.json"
    Section("Scaling", command, facts, text, tables(found, paper), names, found | {"paper": paper}).write(options.json)


if __name__ == "__main__":
    main()
