"""Write docs/results/benchmarks.md from what the other benchmarks wrote with `--json runs/benchmarks/NAME.json`.

python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def spread(seconds: list[float]) -> str:
    """The median, and the range where it says something."""
    least, most = min(seconds), max(seconds)
    text = f"{statistics.median(seconds):.1f} s"
    return f"{text} ({least:.0f} to {most:.0f})" if most > 1.2 * least else text


def disturbed(run: Json) -> bool:
    """Whether the steps of one kind took so differently long that something else must have run."""
    return any(max(one["seconds"]) > 1.5 * min(one["seconds"]) for one in run["steps"].values())


def lora_step_section(runs: list[Json]) -> str:
    """`benchmarks/lora_step.py`, once per run of it."""
    rows, commands = [], []
    for run in runs:
        o = run["options"]
        size = f"{o['size']} x {o['frames']}" + (", checkpointing" if o["checkpointing"] else "")
        mine, stock = run["steps"].values()
        for kind, one in run["steps"].items():
            parts = sorted(one["time"].items(), key=lambda item: -item[1])[:3]
            rows.append(
                [
                    f"{size}, a timestep {kind}",
                    spread(one["seconds"]),
                    f"{one['peak_bytes'] / 2**30:.2f} GiB",
                    f"{one['process_peak_bytes'] / 2**30:.2f} GiB",
                    "–" if disturbed(run) else percent(one["mfu"]),
                    ", ".join(f"{group} {100 * share:.0f} %" for group, share in parts),
                ]
            )
        faster, memory = stock["median_seconds"] / mine["median_seconds"], mine["peak_bytes"] / stock["peak_bytes"]
        speed = "–" if disturbed(run) else f"{faster:.2f} times as fast"
        rows.append([f"{size}: per frame", speed, f"{percent(memory)} of it", "", "", ""])
        commands.append(
            f"python benchmarks/lora_step.py --blocks {o['blocks']} --size {o['size']} --frames {o['frames']} "
            f"--precision {o['precision']} --threads {o['threads']} --steps {o['steps']}"
            + (" --checkpointing" if o["checkpointing"] else "")
        )
    o, first = runs[0]["options"], runs[0]
    apart = max(run["losses_apart"] for run in runs)
    agree = f"differ by {apart:.0e}" if apart else "are identical"
    ratios = [(run, *run["steps"].values()) for run in runs]
    quiet = [mine["median_seconds"] <= stock["median_seconds"] for run, mine, stock in ratios if not disturbed(run)]
    small = sum(mine["peak_bytes"] <= 0.85 * stock["peak_bytes"] for _, mine, stock in ratios)
    noise = "\nSeconds with a range come from a core that did other work at the same time. Do not compare them."
    shared = noise if len(quiet) < len(runs) else ""
    what = f"{o['blocks']} blocks with the dimensions of Wan2.1 1.3B, rank {o['rank']}, {o['precision']}"
    return f"""
## A LoRA step, per frame and per token

{what}, {first["device"]}.
The benchmark compares two ways to compute a step: a timestep per frame, as in pusa, and a timestep per token, as in
stock diffusers. It runs one step of each in turn. Two targets apply to the timestep per frame:

* It is at least as fast. Reached in {sum(quiet)} of {len(quiet)} settings that were measured undisturbed.
* It needs at most 85 % of the memory. Reached in {small} of {len(runs)} settings.

The peak of the steps includes the loaded model. The peak of the process also includes building the model in float32.
The losses of the two ways {agree}. MFU is the rate of a step as a share of the rate of one large matrix product.
The same run measures the matrix rate, such as
{first["matrix_rate"] / 1e9:,.0f} GFLOP/s.{shared}

{table(["", "median step", "peak of the steps", "of the process", "MFU", "where the time goes"], rows)}

The allocator of a CPU keeps a varying part of the freed memory. The share of memory therefore varies by ten points from
run to run (82 to 104 % with checkpointing). The saving is between 0 and 18 %.

```shell
{chr(10).join(commands)}
```
"""


def decode_section(times: list[Json], memory: list[Json]) -> str:
    """`benchmarks/decode.py`, and the same with `--memory`."""

    def size(row: Json) -> str:
        frames, height, width = row["clip"]
        return f"{width}x{height} x {frames}"

    rows = []
    for row in times:
        ratios = row["ratios"]
        before, after = (f"{statistics.median(row[key]):,.0f} ms" for key in ("diffusers_ms", "pusa_ms"))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([f"{row['autoencoder']}, {size(row)}: {row['pass']}", str(row["threads"]), before, after, ratio])
    apart = max(row["largest_difference"] for row in times)
    peaks = [
        [row["pass"], *(f"{row[key] / 2**20:,.0f} MiB" for key in ("diffusers_bytes", "pusa_bytes"))] for row in memory
    ]
    return f"""
## The autoencoder on a CPU

On an x86 CPU in float32, the loader gives the autoencoder other convolutions and norms than diffusers. This table
compares the times of both. They take turns in one process, and a ratio is that of one turn (median and range). Other
programs may have slowed both, so compare the ratios. Latents and pixels differ by {apart:.0e} at most.
Pixels are in [-1, 1].

{table(["", "threads", "diffusers", "pusa", "times as fast"], rows)}

The peak memory of a crop with the dimensions of Wan2.1, {size(memory[0])}, above what the process holds before:

{table(["", "diffusers", "pusa"], peaks)}

Repeated, a peak varies by 7 %.

```shell
python benchmarks/decode.py
python benchmarks/decode.py --memory
```
"""


def page(benchmarks: dict[str, Any]) -> str:
    """The document, of the benchmarks that were run."""
    text = "# Benchmarks\n\nEach section has the command that repeats the measurement.\n"
    if steps := [benchmarks[name] for name in sorted(benchmarks) if name.startswith("lora_step")]:
        text += lora_step_section(steps)
    if files := benchmarks.get("many_files"):
        rows = [
            [
                f"`pusa {row['verb']}`",
                f"{row['files']:,}",
                f"{row['seconds']:.0f} s",
                f"{row['ms_per_file_cpu']:.1f} ms",
                f"{row['peak_bytes'] / 2**20:.0f} MiB",
            ]
            for row in sorted(files, key=lambda row: (row["verb"], row["files"]))
        ]
        text += f"""
## Many small files

This table is for `pusa check` and `pusa prepare` on small files (64 x 64, 5 frames). Each command runs in its own
process:

{table(["", "files", "wall time", "CPU time per file", "peak memory"], rows)}

```shell
python benchmarks/many_files.py --files {" ".join(str(n) for n in sorted({row["files"] for row in files}))}
```
"""
    if times := benchmarks.get("decode"):
        text += decode_section(times, benchmarks["decode_memory"])
    text += """
## Twenty kills

This test kills a training twenty times at random with `kill -9`, three times while the training writes a checkpoint.
The weights and the log are bit-identical to those of an uninterrupted run:

```shell
pytest -m slow tests/training/test_trainer.py -k killed
```
"""
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    benchmarks = {path.stem: json.loads(path.read_text()) for path in args.runs.glob("*.json")}
    Path("docs/results/benchmarks.md").write_text(page(benchmarks))


if __name__ == "__main__":
    main()
