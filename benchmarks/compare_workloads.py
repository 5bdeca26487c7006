"""The fixed pieces of work of `compare.py`, run in a process with the source of one commit.

    PYTHONPATH=CHECKOUT/src python benchmarks/compare_workloads.py < names

Each line that is read is the name of a piece of work; the answer is a line of JSON: {"seconds": 1.2}, or {"missing":
"why"} if that commit lacks what it needs. It is built and run once before its first time. Imports are inside the
functions, so that one that a commit lacks takes only its own work with it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]
PROMPT = "the camera zooms in over a photograph"


def text_to_video() -> Run:
    import pusa

    pipe = pusa.load("tiny")
    return lambda: pipe.generate(PROMPT, steps=3, seed=1)


def image_to_video() -> Run:
    import pusa
    from pusa import embedded

    pipe = pusa.load("tiny")
    picture = pusa.Image(embedded.folder().parent / "assets" / "photo.png")
    return lambda: pipe.generate(PROMPT, [picture], steps=3, seed=1)


def block() -> Run:
    import workloads
    from true_size import WAN_13B

    return workloads.denoising_step(workloads.transformer(WAN_13B | {"num_layers": 1}), (3, 30, 52))


def decode() -> Run:
    import workloads

    return workloads.decode(workloads.embedded_autoencoder(), (5, 16, 16))


def lora_step() -> Run:
    import workloads

    return workloads.lora_step(workloads.embedded_transformer(), (5, 16, 16))


def start() -> Run:
    return lambda: subprocess.run([sys.executable, "-m", "pusa", "--help"], check=True, stdout=subprocess.DEVNULL)


WORKLOADS: dict[str, Callable[[], Run]] = {
    "clip from text, embedded model": text_to_video,
    "clip from a picture, embedded model": image_to_video,
    "one block of 1.3B, 1,170 tokens": block,
    "decode, embedded model": decode,
    "LoRA step, embedded model": lora_step,
    "pusa --help": start,
}
SMOKE = ("pusa --help",)


def main() -> None:
    built: dict[str, Run] = {}
    answers = sys.stdout
    for line in sys.stdin:
        name = line.strip()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                if name not in built:
                    built[name] = WORKLOADS[name]()
                    built[name]()
                started = time.perf_counter()
                built[name]()
                found: dict[str, Any] = {"seconds": time.perf_counter() - started}
        except (
            ImportError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            OSError,
            subprocess.SubprocessError,
        ) as error:
            found = {"missing": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
