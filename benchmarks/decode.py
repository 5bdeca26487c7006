"""Time and memory of the autoencoder on a CPU, with the layers of diffusers and with those of the loader.

    python benchmarks/decode.py --json decode.json
    python benchmarks/decode.py --memory

The embedded autoencoder decodes and encodes a clip and encodes a picture, on one thread and on two. An autoencoder with
the dimensions of Wan2.1 and random weights does the same with a crop. The crop is high enough that PyTorch chooses the
same algorithm as for a whole frame of 832x480. Both kinds of layers take turns in one process, because other programs
may slow the machine. A ratio is the time with diffusers' layers divided by the time with the loader's layers in the
same turn. The table has the medians, the range of the ratios, and the largest difference of latents or pixels. Pixels
are in [-1, 1].

`--memory` measures the peak memory of larger crops, each in a process of its own, above what the process holds before.
It takes Linux.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from lora_step import forget_peak, peak_since
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pusa import embedded
from pusa.files import write_json
from pusa.models.wan import autoencoder, autoencoder_layers

EMBEDDED, TRUE = "embedded", "dimensions of Wan2.1"
CLIP, CROP, LARGE_CROP = (17, 64, 64), (5, 128, 32), (5, 256, 192)
"""frames, height, width"""
PASSES = ("decode", "encode", "encode a picture")


def build(name: str) -> AutoencoderKLWan:
    torch.manual_seed(0)
    cls = AutoencoderKLWan
    vae = cls.from_pretrained(embedded.folder() / "vae", torch_dtype=torch.float32) if name == EMBEDDED else cls()
    return vae.eval().requires_grad_(False)


def prepare(what: str, clip: tuple[int, int, int]) -> Callable[[AutoencoderKLWan], Tensor]:
    """Return the pass, as a function of the autoencoder that gives latents or pixels."""
    frames, height, width = clip
    if what == "decode":
        return partial(decode, clip=clip)
    count = 1 if what == "encode a picture" else frames
    noise = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return partial(autoencoder.encode, frames=noise)


@torch.no_grad()
def decode(vae: AutoencoderKLWan, clip: tuple[int, int, int]) -> Tensor:
    frames, height, width = clip
    factor = vae.config.scale_factor_spatial
    generator = torch.Generator().manual_seed(0)
    shape = (1, vae.config.z_dim, (frames + 3) // 4, height // factor, width // factor)
    return torch.cat(list(autoencoder.decoded(vae, torch.randn(shape, generator=generator))), dim=2)


def compare(name: str, clip: tuple[int, int, int], threads: int, turns: int) -> list[dict[str, Any]]:
    """Return for each pass the milliseconds of every turn, the ratios, and the largest difference."""
    torch.set_num_threads(threads)
    before = build(name)
    after = autoencoder_layers.upgrade(copy.deepcopy(before))
    rows = []
    for what in PASSES:
        run = prepare(what, clip)
        difference = float((run(before) - run(after)).abs().max())  # the warm-up, too
        times: dict[AutoencoderKLWan, list[float]] = {before: [], after: []}
        for turn in range(turns):
            for vae in (before, after) if turn % 2 == 0 else (after, before):
                started = time.perf_counter()
                run(vae)
                times[vae].append(1000 * (time.perf_counter() - started))
        rows.append({
            "autoencoder": name,
            "clip": clip,
            "pass": what,
            "threads": threads,
            "diffusers_ms": times[before],
            "pusa_ms": times[after],
            "ratios": [b / a for b, a in zip(times[before], times[after], strict=True)],
            "largest_difference": difference,
        })  # fmt: skip
    return rows


def peak(what: str, upgraded: bool) -> int:
    """Return the bytes that a pass needs above those that are held before it."""
    torch.set_num_threads(1)
    vae, run = build(TRUE), prepare(what, LARGE_CROP)
    if upgraded:
        autoencoder_layers.upgrade(vae)
    forget_peak(torch.device("cpu"))
    held = peak_since(torch.device("cpu"))
    run(vae)
    return peak_since(torch.device("cpu")) - held


def measure_times(smoke: bool) -> list[dict[str, Any]]:
    if smoke:
        return compare(EMBEDDED, CLIP, threads=1, turns=1)
    rows = [row for threads in (1, 2) for row in compare(EMBEDDED, CLIP, threads, turns=7)]
    return rows + compare(TRUE, CROP, threads=1, turns=3)


def measure_memory(smoke: bool) -> list[dict[str, Any]]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [
            {
                "autoencoder": TRUE,
                "clip": LARGE_CROP,
                "pass": what,
                "diffusers_bytes": pool.apply(peak, (what, False)),
                "pusa_bytes": pool.apply(peak, (what, True)),
            }
            for what in (PASSES[-1:] if smoke else PASSES)
        ]


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("autoencoder", "clip", "pass", "threads", "diffusers", "pusa", "ratio", "range", "difference"):
        table.add_column(column, justify="left" if column in ("autoencoder", "pass") else "right")
    for row in rows:
        frames, height, width = row["clip"]
        cells = [row["autoencoder"], f"{width}x{height}x{frames}", row["pass"]]
        if "ratios" in row:
            ratios = row["ratios"]
            cells += [str(row["threads"])]
            cells += [f"{statistics.median(row[key]):.0f} ms" for key in ("diffusers_ms", "pusa_ms")]
            cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
            cells += [f"{row['largest_difference']:.0e}"]
        else:
            before, after = row["diffusers_bytes"], row["pusa_bytes"]
            cells += ["1", f"{before / 2**20:.0f} MiB", f"{after / 2**20:.0f} MiB", f"{before / after:.2f}"]
        table.add_row(*cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure peak memory, not time")
    parser.add_argument("--smoke", action="store_true", help="only show that the measurement runs")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    rows = measure_memory(args.smoke) if args.memory else measure_times(args.smoke)
    Console(width=130).print(table_of(rows))
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
