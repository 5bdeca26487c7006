"""What every stage of the embedded base has come to, kept in `history.json` beside this file.

A stage takes hours and its run folder is not part of the repository, so `report.py` writes here what later reports
need: steps and time of each stage, what the judge found at its snapshots, the numbers against the targets after it, and
how the strength of the present adapter was chosen. From the numbers follows what reaching a target would take.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]
FILE = Path(__file__).with_name("history.json")
BASES = ("base", "base2", "base3", "base4")
"""The stages of the base, each of which goes on from the one before."""
BATCH = 32
"""Clips in a step of the base."""


def read_log(path: Path) -> list[Json]:
    """The lines of a training log; after a resume the later line of a step counts."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def update(runs: Path, gains: Json) -> Json:
    """The history with what the logs and snapshots in `runs` add, written back. gains: of the present model."""
    history: Json = json.loads(FILE.read_text())
    for folder in sorted(runs.iterdir()):
        if (log := folder / "log.jsonl").is_file() and folder.name in ("vae", "decoder", *BASES):
            last = read_log(log)[-1]
            history["stages"][folder.name] = {"steps": last["step"] + 1, "minutes": round(last["seconds"] / 60)}
    found = runs / "snapshots.json"
    new = json.loads(found.read_text()) if found.is_file() else []
    shown = {(row["run"], row["step"]): row for row in history["snapshots"]}
    for row in new:
        kept = {key: row[key] if key in ("run", "step") else round(row[key], 3)
                for key in ("run", "step", "colour", "shape", "motion")}  # fmt: skip
        shown[row["run"], row["step"]] = kept
    history["snapshots"] = [shown[key] for key in sorted(shown)]
    if (found := runs / "strengths.json").is_file():
        history["strengths"] = [{key: round(x, 3) for key, x in row.items()} for row in json.loads(found.read_text())]
    stage = [name for name in BASES if name in history["stages"]][-1]
    row = {"run": stage, "steps": steps_until(history, stage), **{key: round(x, 3) for key, x in gains.items()}}
    history["measured"] = [old for old in history["measured"] if old["run"] != stage] + [row]
    lines = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in history[name]) + "\n ]"
        for name in ("snapshots", "measured", "strengths")
    ]
    stages = ",\n".join(f'  "{name}": {json.dumps(stage)}' for name, stage in history["stages"].items())
    FILE.write_text("{\n" + ",\n".join([f' "stages": {{\n{stages}\n }}', *lines]) + "\n}\n")
    return history


def steps_until(history: Json, stage: str) -> int:
    """Steps of the base from its beginning to the end of a stage."""
    return sum(history["stages"][name]["steps"] for name in BASES[: BASES.index(stage) + 1])


def snapshots(history: Json) -> list[tuple[int, Json]]:
    """(steps since the beginning, row) of every snapshot of the base."""
    before = {name: steps_until(history, name) - history["stages"][name]["steps"]
              for name in BASES if name in history["stages"]}  # fmt: skip
    return [(before[row["run"]] + row["step"], row) for row in history["snapshots"] if row["run"] in before]


def clips_for(history: Json, key: str, target: float) -> tuple[float, float]:
    """(gain for every doubling of the clips that the base saw, clips at which `target` is reached at that rate).

    A straight line through the stages, over the logarithm of the clips: what a curve that flattens would exceed.
    """
    clips = np.log2([BATCH * row["steps"] for row in history["measured"]])
    slope, intercept = np.polyfit(clips, [row[key] for row in history["measured"]], 1)
    if slope <= 0:
        return float(slope), math.inf
    return float(slope), float(2 ** ((target - intercept) / slope))
