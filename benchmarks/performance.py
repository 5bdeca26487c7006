"""Write docs/performance.md from the sections in docs/results/performance/*.json.

    python benchmarks/performance.py

Each file is the section of one benchmark, and `section.py` has its format. A benchmark that was not run has no section.
Files that the order below does not name come last, by name. Those of `gpu.sh` are copied there as `gpu_NAME.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from section import Section

FOLDER = Path("docs/results/performance")
ORDER = ("budget", "exact_step", "acceleration", "acceleration_time", "tokens", "reduction", "scaling", "gpu_step",
         "gpu_attention", "gpu_compile", "gpu_fp8", "gpu_acceleration", "gpu_lora", "gpu_tests",
         "compare")  # fmt: skip
INTRODUCTION = """# Performance

How fast pusa is, how far that is from what the machine allows, and how it grows. Each section has the command that
repeats the measurement. Weights are random unless a section says otherwise: they do not change the time of a step.

Two things that are compared run in turns in one process or in two, and a ratio is the median of neighbouring pairs with
its range. So other work on the machine changes the seconds more than the ratios.

To compare two commits on your machine, run `python benchmarks/compare.py main`. The tests fail when the counted
operations or bytes of a step grow by more than 10 %. After a deliberate change, record them again:

```shell
UPDATE_COUNTS=1 python -m pytest tests/benchmarks/test_counts_recorded.py
```"""

NO_GPU = (
    "Nothing on this page was measured on a GPU. `bash benchmarks/gpu.sh` makes the tables about one in eight minutes."
)


def page(folder: Path) -> str:
    """The document, of the sections that are there."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    plots = folder.relative_to("docs").as_posix() if folder.parts[0] == "docs" else folder.as_posix()
    without = [] if any(name.startswith("gpu_") for name in names) else [NO_GPU]
    return (
        "\n\n".join([INTRODUCTION, *without, *(Section.read(folder / f"{name}.json").page(plots) for name in names)])
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    options.out.write_text(page(options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
