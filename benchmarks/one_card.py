"""Predict what a card with a given amount of memory can make: the table in docs/memory.md.

    python benchmarks/one_card.py 24

Nothing is downloaded: the configurations of the published models are part of pusa.
"""

from __future__ import annotations

import argparse

from pusa.cli.shared.memory_report import memory_report
from pusa.cli.shared.options import Model

CLIPS = (
    ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (832, 480), 81),
    ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", (1280, 704), 121),
    ("Wan-AI/Wan2.1-T2V-14B-Diffusers", (832, 480), 81),
    ("Wan-AI/Wan2.1-T2V-14B-Diffusers", (1280, 720), 81),
    ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", (832, 480), 81),
    ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", (1280, 720), 81),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("gigabytes", type=float, nargs="?", default=24, help="memory of the card")
    gigabytes = parser.parse_args().gigabytes
    print("| model | clip | fastest profile that fits | memory of the card | memory of the machine |")
    print("| --- | --- | --- | ---: | ---: |")
    for source, size, frames in CLIPS:
        report = memory_report(
            Model(model=source), size=size, frames=frames, guidance=None, profile=None, rate=1.0
        ).record
        fitting = [row for row in report["profiles"] if row["profile"] != "cpu" and row["device"] <= gigabytes * 1e9]
        clip = f"{source.removeprefix('Wan-AI/').removesuffix('-Diffusers')} | {size[0]}x{size[1]}, {frames} frames"
        if not fitting:
            print(f"| {clip} | none | – | – |")
            continue
        best = fitting[0]
        print(f"| {clip} | `{best['profile']}` | {best['device'] / 1e9:.1f} GB | {best['host'] / 1e9:.1f} GB |")


if __name__ == "__main__":
    main()
