"""`pusa check`: report the clips of a folder, their training samples, and the cost of a training."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import number
from pusa.cli.shared.options import MODEL, Many, Verbosity, Whole, model_default
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.training.data.samples import Bucket, Plan
    from pusa.training.estimate import Estimate

SAMPLES = Group.create_ordered("Samples")
RUN = Group.create_ordered("Estimated training")

HARMLESS = {"unused"}
"""Kinds of problems that need no attention."""
CROPPED = 0.1
"""A clip is reported if its bucket crops more than this share of its picture."""


def check(
    data: str,
    *,
    buckets: Annotated[
        tuple[str, ...],
        Many,
        Parameter(name="--data.buckets", group=SAMPLES, metavar="WxHxF...", consume_multiple=True),
    ] = (),
    fps: Annotated[float | None, Parameter(name="--data.fps", group=SAMPLES, show_default=model_default)] = None,
    cut: Annotated[Literal["head", "uniform", "slide"], Parameter(name="--data.cut", group=SAMPLES)] = "head",
    model: Annotated[str, Parameter(name="--model.source", group=MODEL)] = "tiny-base",
    steps: Annotated[int, Whole, Parameter(name="--train.steps", group=RUN)] = 900,
    batch: Annotated[int, Whole, Parameter(name="--train.batch", group=RUN)] = 1,
    rank: Annotated[int, Whole, Parameter(name="--lora.rank", group=RUN)] = 32,
    price: Annotated[float | None, Parameter(group=RUN)] = None,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Check the clips of a folder and estimate the memory, time and cost of a training. No weights are loaded.

    The exit code is 1 if a clip is unreadable, truncated, too short, too small, a duplicate, missing or without a
    caption.

    Parameters
    ----------
    data
        A folder of clips with captions, a table of clips, or the hub id of a dataset.
    buckets
        Sizes and lengths of samples, for example 832x480x81 480x832x81. Each clip goes to the bucket that fits it best.
        The default is the model's own size and length.
    fps
        Frames per second to which clips are resampled.
    cut
        How a clip that is longer than its bucket is cut: head takes one sample from its beginning, uniform as many as
        fit without overlap, slide one every half bucket length.
    model
        tiny-base, a diffusers folder or a hub id. Only the configs of a hub repository are downloaded.
    steps
        Optimiser steps.
    batch
        Samples per step.
    rank
        Rank of the LoRA; 0 is full fine-tuning.
    price
        Price of one hour of this machine.
    """
    terminal = Terminal(verbosity.verbose)
    for flag, value, least in (("--train.steps", steps, 1), ("--train.batch", batch, 1), ("--lora.rank", rank, 0)):
        if value < least:
            raise InputError(f"{flag} {value}: give {least} or more.")
    if fps is not None and not 0 < number(str(fps), "--data.fps", "frame rate") <= 1000:
        raise InputError(f"--data.fps {fps:g}: give a rate above 0 and at most 1000.")
    if price is not None and number(str(price), "--price", "price") < 0:
        raise InputError(f"--price {price:g}: give 0 or more.")
    with terminal.status("Starting"):
        import torch

        from pusa.models.loading import configurations, sources
        from pusa.training.costs import device_name, matmul_rate
        from pusa.training.data import samples
        from pusa.training.estimate import estimate, sizes_for

        name, folder = sources.find(model, parts=())
        configurations.check(name, folder)
        defaults = configurations.defaults_of(folder)
        shape, sizes = sizes_for(name, folder, buckets)
    with terminal.counting() as progress:
        plan = samples.survey(
            data,
            sizes,
            fps or defaults.fps,
            shape.geometry,
            cut,
            progress=partial(progress, "Reading the clips"),
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
        if verbosity.quiet
        else check_report.render(record, plan, run, shape.geometry)
    )
    return Report({**record, "attention": attention}, text, exit_code=int(attention))


def _used(plan: Plan) -> int:
    return len({cut.file.path for cut in plan.cuts})


def _record(
    model: str, plan: Plan, counts: dict[Bucket, int], cut: str, run: Estimate | None, device: str
) -> dict[str, Any]:
    """Return the output of `--json`, without the exit code."""
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
    """Return the least, the median and the greatest value."""
    ordered = sorted(values)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else None


def _cropped(plan: Plan) -> list[dict[str, Any]]:
    """Return, for each bucket, the clips that lose more than `CROPPED`: how many, the shares, and the worst clip."""
    from pusa.training.data.samples import kept_share

    lost: dict[Bucket, dict[str, float]] = {}
    for cut in plan.cuts:
        if (share := 1 - kept_share(cut.file, cut.bucket)) > CROPPED:
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
