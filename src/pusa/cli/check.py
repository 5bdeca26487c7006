"""`pusa check`: which clips there are, what becomes of them, and what a training on them will take."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import number
from pusa.cli.shared.options import MODEL, Many, Talk, Whole, of_model
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.training.data.samples import Bucket, Plan
    from pusa.training.estimate import Estimate

SAMPLES = Group.create_ordered("Samples")
RUN = Group.create_ordered("The run that is estimated")

HARMLESS = {"unused"}
"""Kinds of problems that need nobody's attention."""
CROPPED = 0.1
"""Clips that lose more of their picture to the shape of their bucket are pointed out."""


def check(
    data: str,
    *,
    buckets: Annotated[
        tuple[str, ...],
        Many,
        Parameter(name="--data.buckets", group=SAMPLES, metavar="WxHxF...", consume_multiple=True),
    ] = (),
    fps: Annotated[float | None, Parameter(name="--data.fps", group=SAMPLES, show_default=of_model)] = None,
    cut: Annotated[Literal["head", "uniform", "slide"], Parameter(name="--data.cut", group=SAMPLES)] = "head",
    model: Annotated[str, Parameter(name="--model.source", group=MODEL)] = "tiny-base",
    steps: Annotated[int, Whole, Parameter(name="--train.steps", group=RUN)] = 900,
    batch: Annotated[int, Whole, Parameter(name="--train.batch", group=RUN)] = 1,
    rank: Annotated[int, Whole, Parameter(name="--lora.rank", group=RUN)] = 32,
    price: Annotated[float | None, Parameter(group=RUN)] = None,
    talk: Talk = Talk(),
) -> Report:
    """Say what clips there are, which samples become of them, and what a training will take. No weight is loaded.

    Exit code 1 when a clip is unreadable, cut off, too short, too small, a duplicate, missing or without a caption.

    Parameters
    ----------
    data
        A folder of clips with captions, a table of them, or the hub id of a dataset.
    buckets
        Sizes and lengths of samples, for example 832x480x81 480x832x81; each clip goes to the one that suits it best.
        By default the model's own.
    fps
        Frames per second that clips are resampled to.
    cut
        Samples of a longer clip: one from its head, as many as fit spread uniformly, or one every half length.
    model
        tiny-base, a diffusers folder or a hub id, of which only the configs are fetched.
    steps
        Optimiser steps.
    batch
        Samples of a step.
    rank
        Rank of the LoRA; 0 is full fine-tuning.
    price
        Money for one hour of this machine.
    """
    terminal = Terminal(talk.talkative)
    for flag, value, least in (("--train.steps", steps, 1), ("--train.batch", batch, 1), ("--lora.rank", rank, 0)):
        if value < least:
            raise InputError(f"{flag} {value}: give {least} or more.")
    if fps is not None and not 0 < number(str(fps), "--data.fps", "frame rate") <= 1000:
        raise InputError(f"--data.fps {fps:g}: give a rate above 0 and at most 1000.")
    if price is not None and number(str(price), "--price", "price") < 0:
        raise InputError(f"--price {price:g}: give 0 or more.")
    with terminal.status("Starting"):
        import torch

        from pusa.models.loading import checkpoints, sources
        from pusa.training.costs import device_name, matmul_rate
        from pusa.training.data import samples
        from pusa.training.estimate import estimate, sizes_for

        name, folder = sources.find(model, parts=())
        checkpoints.check(name, folder)
        defaults = checkpoints.defaults_of(folder)
        shape, sizes = sizes_for(name, folder, buckets)
    with terminal.counting() as progress:
        plan = samples.survey(
            data,
            sizes,
            fps or defaults.fps,
            shape.geometry,
            cut,
            progress=partial(progress, "Looking at the clips"),
            workers=min(16, os.cpu_count() or 1),
        )
    with terminal.status("Measuring this machine"):
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        rate, number_size = matmul_rate(device, dtype, seconds=0.3), dtype.itemsize
    run = estimate(shape, plan.buckets, steps=steps, batch=batch, rank=rank, rate=rate, number=number_size, price=price)
    counts = {bucket: plan.buckets.get(bucket, 0) for bucket in dict.fromkeys(sizes)}
    record = _record(name, plan, counts, cut, run, device_name(device))
    attention = any(problem.kind not in HARMLESS for problem in plan.problems) or not plan.cuts
    from pusa.cli.shared import check_report

    text = (
        f"{check_report.share(_used(plan), plan.found)} used"
        if talk.quiet
        else check_report.render(record, plan, run, shape.geometry)
    )
    return Report({**record, "attention": attention}, text, exit_code=int(attention))


def _used(plan: Plan) -> int:
    return len({cut.file.path for cut in plan.cuts})


def _record(
    model: str, plan: Plan, counts: dict[Bucket, int], cut: str, run: Estimate | None, device: str
) -> dict[str, Any]:
    """Everything that `--json` says."""
    from pusa.training.run import held_out

    files = plan.files
    moving = [file for file in files if file.frames > 1]
    clips_in = Counter(bucket for bucket in {(cut.file.path, cut.bucket): cut.bucket for cut in plan.cuts}.values())
    words = [len(file.caption.split()) for file in files if file.caption]
    return {
        "data": plan.source,
        "layout": plan.layout,
        "model": model,
        "clips": {
            "found": plan.found,
            "used": _used(plan),
            "readable": len(files),
            "videos": len(moving),
            "pictures": len(files) - len(moving),
            "seconds": round(sum(file.seconds for file in moving), 3),
            "lengths": _range([round(file.seconds, 3) for file in moving]),
            "fps": dict(Counter(f"{file.fps:.5g}" for file in moving).most_common()),
            "sizes": dict(Counter(f"{file.width}x{file.height}" for file in files).most_common()),
            "captions": len(words),
            "words": _range(words),
        },
        "fps": plan.fps,
        "cut": cut,
        "samples": len(plan.cuts),
        "sampled_seconds": round(sum(cut.bucket.frames / plan.fps for cut in plan.cuts if cut.file.frames > 1), 3),
        "buckets": [
            {"bucket": str(bucket), "samples": samples, "clips": clips_in.get(bucket, 0)}
            for bucket, samples in counts.items()
        ],
        "held_out": held_out(len({cut.file.sha256 for cut in plan.cuts})),
        "cropped": _cropped(plan),
        "problems": [
            {"path": str(problem.path), "kind": problem.kind, "reason": problem.reason} for problem in plan.problems
        ],
        "estimate": None if run is None else {**vars(run), **_memory(run), "device": device},
    }


def _range(values: list[Any]) -> list[Any] | None:
    """Least, median and greatest."""
    ordered = sorted(values)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else None


def _cropped(plan: Plan) -> list[dict[str, Any]]:
    """Per bucket, the clips of which more than `CROPPED` is cropped away: how many, the shares, and the worst."""
    from pusa.training.data.samples import kept

    lost: dict[Bucket, dict[str, float]] = {}
    for cut in plan.cuts:
        if (share := 1 - kept(cut.file, cut.bucket)) > CROPPED:
            lost.setdefault(cut.bucket, {})[str(cut.file.path)] = share
    return [
        {
            "bucket": str(bucket),
            "clips": len(shares),
            "least": round(min(shares.values()), 4),
            "most": round(max(shares.values()), 4),
            "worst": max(shares, key=lambda path: shares[path]),
        }
        for bucket, shares in lost.items()
    ]


def _memory(run: Estimate) -> dict[str, int]:
    return {"memory": run.memory, "memory_checkpointed": run.memory_checkpointed}
