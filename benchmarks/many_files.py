"""`pusa check` and `pusa prepare` on many small files: is time per file, and memory, flat in their number?

    python benchmarks/many_files.py --files 100 1000 10000 --json many_files.json

Makes folders of clips that differ (64 x 64, 5 frames, captions in a metadata.csv), runs both verbs on each in a process
of its own, and prints seconds, milliseconds per file and the peak memory of the process. What a run with one file takes
is taken off the time per file.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
from rich.console import Console
from rich.table import Table

from pusa.embedded import world

VERBS = ("check", "prepare")
FRAMES = 5


def make_clips(folder: Path, count: int) -> None:
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "text"])
        for seed in range(count):
            scene = world.sample(seed, kind="shape")
            with av.open(str(folder / f"{seed:06d}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=world.FPS, options={"preset": "ultrafast", "crf": "10"})
                stream.width = stream.height = world.SIZE
                stream.pix_fmt = "yuv420p"
                for frame in world.render(scene, FRAMES):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
                container.mux(stream.encode(None))
            writer.writerow([f"{seed:06d}.mp4", scene.caption])


def run(verb: str, folder: Path, cache: Path) -> dict[str, float]:
    """One command in a process of its own. seconds of wall and of CPU, peak memory in bytes."""
    command = [sys.executable, "-m", "pusa", verb, str(folder), "--model", "tiny-base", "--json", "--quiet"]
    command += ["--data.buckets", f"{world.SIZE}x{world.SIZE}x{FRAMES}"]
    if verb == "prepare":
        command += ["--data.cache", str(cache)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    # `check` says with 1 that something needs attention: here, that scenes of one seed or another look the same.
    if os.waitstatus_to_exitcode(status) not in ((0, 1) if verb == "check" else (0,)):
        raise SystemExit(f"pusa {verb} failed")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def measure(counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as room:
        alone = {}
        for turn, count in enumerate([1, 1, *counts]):  # the first run of all reads the libraries from the disk
            folder = Path(room) / str(turn)
            make_clips(folder, count)
            for verb in VERBS:
                took = run(verb, folder, Path(room) / f"cache{turn}")
                if turn < 2:
                    alone[verb] = took
                    continue
                per_file = {
                    f"ms_per_file{kind}": 1000 * (took[key] - alone[verb][key]) / count
                    for kind, key in (("", "seconds"), ("_cpu", "cpu_seconds"))
                }
                rows.append({"verb": verb, "files": count, **took, **per_file})
                print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    rows = measure(options.files)
    table = Table()
    for column in ("verb", "files", "seconds", "ms per file", "CPU ms per file", "peak memory"):
        table.add_column(column, justify="left" if column == "verb" else "right")
    for row in rows:
        table.add_row(
            row["verb"],
            f"{row['files']:,}",
            f"{row['seconds']:.1f}",
            f"{row['ms_per_file']:.1f}",
            f"{row['ms_per_file_cpu']:.1f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
        )
    Console().print(table)
    if options.json:
        from pusa.files import write_json

        write_json(options.json, rows)


if __name__ == "__main__":
    main()
