"""Compare the speed of two commits on this machine, in one run.

    python benchmarks/compare.py main                 # main beside the working tree
    python benchmarks/compare.py HEAD~5 HEAD --pairs 9

Each commit is checked out into a temporary git worktree and runs in a process of its own. The two processes take turns,
so other work on the machine meets both. Printed is the time of the second commit over that of the first: the median of
the pairs and their range.

A loss is certain if every pair is above 1.10. If the true median were 1.10 or less, seven of seven pairs would be above
it with a probability of at most 0.8 %. The exit code is then 1. Work that a commit does not have is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import compare_workloads as cases
import machine
from section import Section, Table

ROOT = Path(__file__).absolute().parents[1]
TREE = "the working tree"


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The folder with the files of a revision."""
    if revision == TREE:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="pusa-compare-") as folder:
        place = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", "--quiet", place, revision], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{revision} cannot be checked out: {done.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", place], check=True)


@contextmanager
def worker(place: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    """A process of `compare_workloads.py` with the source of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": str(threads)}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "compare_workloads.py")]
    process = subprocess.Popen(command, env=environment, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def ask(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    found: dict[str, Any] = json.loads(line) if line else {"missing": "the process ended"}
    return found


def pairs(workers: Sequence[subprocess.Popen[str]], name: str, turns: int) -> tuple[list[list[float]], str]:
    """The seconds of each revision in each turn, or why one of them cannot run it."""
    seconds: list[list[float]] = [[], []]
    for turn in range(turns):
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            found = ask(workers[i], name)
            if "missing" in found:
                return [], f"{'first' if i == 0 else 'second'}: {found['missing']}"
            seconds[i].append(found["seconds"])
    return seconds, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="a commit, branch or tag")
    parser.add_argument("second", nargs="?", default=TREE, help="another; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=cases.WORKLOADS, default=list(cases.WORKLOADS), metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="one piece of work, two pairs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the section of docs/performance.md here")
    options = parser.parse_args()
    names, turns = (cases.SMOKE, 2) if options.smoke else (options.only, options.pairs)
    facts = machine.facts()
    rows, numbers = [], {}
    with ExitStack() as stack:
        places = [stack.enter_context(checkout(revision)) for revision in (options.first, options.second)]
        workers = [stack.enter_context(worker(place, options.threads)) for place in places]
        for name in names:
            seconds, missing = pairs(workers, name, turns)
            if missing:
                rows.append([name, "–", "–", "–", f"left out ({missing})"])
                continue
            ratio = machine.ratio(seconds[1], seconds[0])
            said = machine.verdict(ratio)
            rows.append([name, *(machine.durations(one) for one in seconds), machine.ratio_text(ratio), said])
            numbers[name] = {"seconds": seconds, "ratio": ratio, "verdict": said}
            print(f"{name}: {machine.ratio_text(ratio)}, {said}", flush=True)
    commits = [_commit(revision) for revision in (options.first, options.second)]
    text = [
        f"The time of {commits[1]} over that of {commits[0]}, in {turns} pairs of neighbours: median and range. Slower "
        "or faster is said only if every pair is beyond 10 %."
    ]
    head = ["work", commits[0], commits[1], "ratio", ""]
    command = f"python benchmarks/compare.py {options.first}" + (f" {options.second}" if options.second != TREE else "")
    Section("Two commits", command, facts, text, [Table(head, rows)], numbers=numbers).write(options.json)
    return int(any(one["verdict"] == "slower" for one in numbers.values()))


def _commit(revision: str) -> str:
    if revision == TREE:
        return revision
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", revision]
    short = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return short if revision.startswith(short) else f"{revision} ({short})"


if __name__ == "__main__":
    sys.exit(main())
