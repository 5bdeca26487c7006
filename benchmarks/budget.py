"""Where the time of a denoising step, a decode and a LoRA step goes, beside the least that this machine could need.

    python benchmarks/budget.py --json docs/results/performance/budget.json

The floor of a stage is the larger of two times: its operations at the rate of a large matrix product, and its least
bytes at the rate of a large copy. Both rates are measured beside every run, because other programs may slow the
machine. A ratio is that of one run to its own floor. The parts of a step are measured around each operation
(`counting.py`), and their floors follow in the same way from their operations and their least bytes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import counting
import machine
import torch
import workloads
from diffusers import AutoencoderKLWan
from section import Section, Table
from true_size import WAN_13B

from pusa.training.costs import scaled

EMBEDDED_CLIP = (5, 16, 16)
"""17 frames of 64x64 pixels, in latents of the embedded autoencoder"""
SMALL = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 256, "num_layers": 1, "text_dim": 64}


@dataclass
class Stage:
    """name: for the page. build: makes the piece of work. turns: timed runs. parts: counts by part, if it is shown."""

    name: str
    build: Callable[[], Callable[[], Any]]
    turns: int
    parts: Callable[[], counting.Counter] | None = None


def stages(smoke: bool) -> list[Stage]:
    turns = 2 if smoke else 9
    small = workloads.embedded_transformer()
    trained = workloads.embedded_transformer
    clip = "embedded model, 17 frames of 64x64"
    in_decode = partial(counting.Counter, None, counting.kind_in_autoencoder)
    found = [
        Stage(f"denoising step, {clip}", partial(workloads.denoising_step, small, EMBEDDED_CLIP), turns,
              partial(counting.Counter, small, counting.kind_in_wan)),
        Stage(f"decode, {clip}", lambda: workloads.decode(workloads.embedded_autoencoder(), EMBEDDED_CLIP), turns,
              in_decode),
        Stage(f"LoRA step, {clip}", lambda: workloads.lora_step(trained(), EMBEDDED_CLIP), turns),
    ]  # fmt: skip
    dims, shape = (SMALL, (2, 8, 8)) if smoke else (WAN_13B | {"num_layers": 2}, (6, 40, 60))
    vae = {"base_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if smoke else {}
    pixels = (2, 4, 4) if smoke else (2, 16, 16)
    what = "toy transformer" if smoke else f"{dims['num_layers']} blocks of 1.3B"
    size = f"{4 * (shape[0] - 1) + 1} frames of {8 * shape[2]}x{8 * shape[1]}"
    decoder = "toy autoencoder" if smoke else "autoencoder of Wan2.1"
    decoder += f", {4 * (pixels[0] - 1) + 1} frames of {8 * pixels[2]}x{8 * pixels[1]}"
    large = workloads.transformer(dims)
    return [
        *found,
        Stage(f"denoising step, {what}, {size}", partial(workloads.denoising_step, large, shape), 3,
              partial(counting.Counter, large, counting.kind_in_wan)),
        Stage(f"decode, {decoder}", lambda: workloads.decode(AutoencoderKLWan(**vae).eval(), pixels), 3, in_decode),
        Stage(f"LoRA step, {what}, {size}", lambda: workloads.lora_step(workloads.transformer(dims), shape), 2),
    ]  # fmt: skip


def measure(stage: Stage, smoke: bool) -> dict[str, Any]:
    """Everything about a stage, as plain numbers."""
    size, copied = (256, 2**20) if smoke else (1024, 2**26)
    run = stage.build()
    run()
    whole = counting.Counter().count(run).total
    turns = []
    for _ in range(stage.turns):
        rates = [machine.matrix_rate("cpu", torch.float32, size), machine.copy_rate("cpu", copied)]
        seconds = machine.seconds(run)
        parts = stage.parts().count(run).parts if stage.parts else {}
        turns.append({"matrix_rate": rates[0], "copy_rate": rates[1], "floor": floor(whole, *rates),
                      "seconds": seconds, "parts": {name: one.seconds for name, one in parts.items()}})  # fmt: skip
    found = {"name": stage.name, "flops": whole.flops, "least": whole.least, "moved": whole.moved, "turns": turns}
    if stage.parts:
        found["parts"] = kinds(parts, turns)
    return found


def floor(counts: counting.Counts, matrix_rate: float, copy_rate: float) -> float:
    """Seconds, see the docstring of the module."""
    return max(counts.flops / matrix_rate, counts.least / copy_rate)


def kinds(parts: dict[str, counting.Counts], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a step, the largest gap between time and floor first. Times are medians over the turns."""
    rows = []
    for name, counts in parts.items():
        seconds = statistics.median(turn["parts"][name] for turn in turns)
        least = statistics.median(floor(counts, turn["matrix_rate"], turn["copy_rate"]) for turn in turns)
        rows.append({"part": name, "launches": counts.launches, "flops": counts.flops, "moved": counts.moved,
                     "least": counts.least, "seconds": seconds, "floor": least})  # fmt: skip
    between = statistics.median(turn["seconds"] - sum(turn["parts"].values()) for turn in turns)
    if between > 0:
        rows.append({"part": "Python between the operations", "launches": 0, "flops": 0, "moved": 0, "least": 0,
                     "seconds": between, "floor": 0.0})  # fmt: skip
    return sorted(rows, key=lambda row: row["floor"] - row["seconds"])


def section(found: list[dict[str, Any]], facts: dict[str, Any], half_rate: float, command: str) -> Section:
    rates = {name: [turn[name] for one in found for turn in one["turns"]] for name in ("matrix_rate", "copy_rate")}
    rows = []
    for one in sorted(found, key=lambda one: -from_floor(one)):
        seconds, floors = ([turn[key] for turn in one["turns"]] for key in ("seconds", "floor"))
        rows.append([one["name"], scaled(one["flops"], "FLOP"), scaled(one["least"], "B"), scaled(one["moved"], "B"),
                     machine.duration(statistics.median(floors)), machine.duration(statistics.median(seconds)),
                     machine.ratio_text(machine.ratio(seconds, floors))])  # fmt: skip
    head = ["stage", "operations", "least bytes", "bytes moved", "floor", "measured", "measured / floor"]
    tables = [Table(head, rows), *(parts_table(one) for one in found if "parts" in one)]
    text = [
        "The floor of a stage is the larger of two times: its operations at the rate of a large matrix product, and "
        "its least bytes at the rate of a large copy. The least bytes are the weights and inputs, each read once. The "
        "bytes moved are those that the operations really read and write. Both rates are measured beside every run, "
        "because other programs may slow the machine. The range of a ratio is that of the runs.",
        f"This machine multiplies {machine.span_text(rates['matrix_rate'], 'GFLOP/s', 1e-9)} in float32 and "
        f"{half_rate / 1e9:.0f} GFLOP/s in bfloat16. It copies {machine.span_text(rates['copy_rate'], 'GB/s', 1e-9)}, "
        "read and written bytes together.",
        f"The stage furthest from its floor is the {max(found, key=from_floor)['name']}.",
        "The largest gaps between a time and its floor, as shares of the time:",
        "\n".join(gaps(one) for one in found if "parts" in one),
        "In the tables of parts, a floor follows from the operations and the least bytes of the part. The least bytes "
        "would be moved if neighbouring operations of a part were a single pass. The gap is the time above the floor.",
    ]
    return Section("Budget", command, facts, text, tables, numbers={"stages": found, "half_rate": half_rate})


def from_floor(one: dict[str, Any]) -> float:
    """The ratio of a stage: its time over its floor."""
    return float(statistics.median(turn["seconds"] / turn["floor"] for turn in one["turns"]))


def parts_table(one: dict[str, Any]) -> Table:
    total = sum(row["seconds"] for row in one["parts"])
    rows = [
        [row["part"], str(row["launches"]), scaled(row["flops"], "FLOP") if row["flops"] else "–",
         scaled(row["moved"], "B"), scaled(row["least"], "B"), machine.duration(row["seconds"]),
         f"{row['seconds'] / total:.0%}",
         machine.duration(row["floor"]), machine.duration(row["seconds"] - row["floor"])]
        for row in one["parts"]
    ]  # fmt: skip
    head = ["part", "calls", "operations", "bytes moved", "least bytes", "time", "share", "floor", "gap"]
    return Table(head, rows, f"Parts of the {one['name']}")


def gaps(one: dict[str, Any]) -> str:
    """An item of a list: the parts with the largest gaps."""
    total = sum(row["seconds"] for row in one["parts"])
    large = [row for row in one["parts"] if row["seconds"] - row["floor"] >= 0.05 * total][:4]
    named = ", ".join(f"{row['part']} ({(row['seconds'] - row['floor']) / total:.0%})" for row in large)
    text = next((row["seconds"] / total for row in one["parts"] if row["part"] == "text"), 0.0)
    again = f". The text takes {text:.0%}; while a clip is sampled, it is computed once" if text >= 0.05 else ""
    return f"* {one['name']}: {named or 'none above 5 %'}{again}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy size, in seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the section of docs/performance.md here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = machine.facts()
    found = []
    for stage in stages(options.smoke):
        found.append(measure(stage, options.smoke))
        print(f"{stage.name}: {machine.duration(found[-1]['turns'][-1]['seconds'])}", flush=True)
    half = machine.matrix_rate("cpu", torch.bfloat16, 256 if options.smoke else 1024)
    command = f"python benchmarks/budget.py --threads {options.threads} --json docs/results/performance/budget.json"
    section(found, facts, half, command).write(options.json)


if __name__ == "__main__":
    main()
