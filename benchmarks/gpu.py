"""The parts of `gpu.sh`: what only a GPU can tell, each in a process of its own with a limit of time.

step           a denoising step at true size, beside stock diffusers per clip and per token, and the share of the card's
               measured matrix rate
attention      the attention functions that diffusers finds here
compile        compiled blocks beside plain ones, and the time to compile
fp8            linear layers stored as fp8 beside bfloat16
acceleration   a walk that reuses velocities beside a plain one, by the options of `pusa generate`
lora           a LoRA step with and without gradient checkpointing
tests          `pytest -m gpu`

Weights are random. The processes are forked, so that the imports are paid once; this process therefore never touches
the card.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import machine
import torch
from gpu_parts import PARTS, Place, Unavailable
from section import Section, Table


def child(name: str, out: Path, smoke: bool) -> None:
    """Run a part in this process, which is a new one, and write OUT/NAME.json or OUT/NAME.error."""
    os.setsid()
    torch.set_num_threads(1 if smoke else torch.get_num_threads())
    cuda = torch.cuda.is_available() and not smoke
    place = Place(torch.device("cuda" if cuda else "cpu"), smoke)
    error = out / f"{name}.error"
    try:
        if not cuda and not smoke:
            raise Unavailable("there is no GPU")
        facts = machine.facts(place.device)
        section = PARTS[name][1](place)
        section.machine = facts
        section.write(out / f"{name}.json")
    except (Unavailable, ModuleNotFoundError) as why:
        error.write_text(str(why))
    except Exception as why:
        traceback.print_exc()
        error.write_text(f"{type(why).__name__}: {why}".splitlines()[0])


def run(name: str, out: Path, smoke: bool, limit: float) -> dict[str, Any]:
    """Run a part and end it after `limit` seconds: its name, its state and its seconds."""
    for kind in ("json", "error"):
        (out / f"{name}.{kind}").unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=child, args=(name, out, smoke))
    started = time.monotonic()
    process.start()
    process.join(limit)
    if late := process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
    error = out / f"{name}.error"
    state = "done"
    if not (out / f"{name}.json").exists():
        ended = f"ended with exit code {process.exitcode}"
        state = f"took longer than {limit:.0f} s" if late else error.read_text() if error.exists() else ended
    error.unlink(missing_ok=True)
    return {"part": name, "state": state, "seconds": time.monotonic() - started}


def summary(out: Path, states: list[dict[str, Any]]) -> str:
    """The page: a line for each part, and the section of each that ran."""
    rows = [[one["part"], one["state"], f"{one['seconds']:.0f} s"] for one in states]
    sections = [Section.read(out / f"{one['part']}.json").page(".") for one in states if one["state"] == "done"]
    return "\n\n".join(["# One GPU", str(Table(["part", "state", "time"], rows)), *sections]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="toy size on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    states = []
    for name in options.parts:
        print(f"--- {name}", flush=True)
        states.append(run(name, options.out, options.smoke, PARTS[name][0]))
        print(json.dumps(states[-1]), flush=True)
        (options.out / "summary.md").write_text(summary(options.out, states), encoding="utf-8")
    return int(not any(one["state"] == "done" for one in states))


if __name__ == "__main__":
    sys.exit(main())
