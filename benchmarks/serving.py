"""What `pusa serve` does under load, when it is killed, and when its clients are careless.

    python benchmarks/serving.py kills
    python benchmarks/serving.py requests preview workers memory clients

Each measurement starts the server as a user would, and writes a section to docs/results/serving (`--out`). Then the
page beside that folder is written again from all sections. `--quick` makes small versions of all of them, which show
that they work and measure nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import serving_clients
import serving_kills
import serving_load
from section import Section

MEASUREMENTS: dict[str, Callable[[bool], Section]] = {
    "kills": serving_kills.measure,
    "requests": serving_load.requests,
    "preview": serving_load.preview,
    "workers": serving_load.workers,
    "memory": serving_load.memory,
    "clients": serving_clients.measure,
}
INTRODUCTION = """# The server under load

What `pusa serve` does with the embedded model when it is killed, when its clients are many or careless, and what it
costs. Server, clients and database are on one machine. Times depend on that machine and on what else it does. Lost,
doubled and different videos must be 0 everywhere."""


def page(folder: Path) -> str:
    """The document, of the sections that are there."""
    found = [folder / f"{name}.json" for name in MEASUREMENTS if (folder / f"{name}.json").is_file()]
    return "\n\n".join([INTRODUCTION, *(Section.read(path).page(folder.name) for path in found)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", nargs="+", choices=MEASUREMENTS)
    parser.add_argument("--out", type=Path, default=Path("docs/results/serving"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--videos", type=int, default=1000, help="of the measurement of memory (default: 1000)")
    options = parser.parse_args()
    measurements = MEASUREMENTS | {"memory": partial(serving_load.memory, many=options.videos)}
    for name in options.measurements:
        section = measurements[name](options.quick)
        asked = f" --videos {options.videos}" if name == "memory" else ""
        section.command = f"python benchmarks/serving.py {name}{asked}"
        section.write(options.out / f"{name}.json")
    options.out.with_suffix(".md").write_text(page(options.out), encoding="utf-8")


if __name__ == "__main__":
    main()
