"""`pusa check`: report the clips of a folder, their training samples, and the cost of a training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import number
from pusa.cli.shared.options import Verbosity
from pusa.cli.shared.setting_options import given, with_settings
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.training.config.tree import Config
    from pusa.training.data.samples import Bucket, Plan
    from pusa.training.estimate import Estimate
    from pusa.training.planning import ModelPlan

COST = Group.create_ordered("Cost")
SHARED = ("model", "data")
"""The sections of settings that decide the samples of a training."""
HARMLESS = {"unused"}
"""Kinds of problems that need no attention."""


@with_settings((*SHARED, "lora", "train", "memory"), several=True)
def check(
    data: str | None = None,
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    price: Annotated[float | None, Parameter(group=COST)] = None,
    verbosity: Verbosity = Verbosity(),
    **overrides: str | tuple[str, ...] | None,
) -> Report:
    """Check the clips of a folder and estimate the memory, time and cost of a training. No weights are loaded.

    With the preset, the settings file and the options of a training, it examines the samples of this training and
    estimates its cost. The exit code is 1 if a clip is unreadable, truncated, too short, too small, a duplicate,
    missing or without a caption.

    Parameters
    ----------
    data
        A folder of clips with captions, a table of clips, or the hub id of a dataset; or a .yaml or .toml file of
        settings for pusa train.
    preset
        A preset of pusa train; the settings file and options override it. pusa train --presets lists all presets.
    price
        Price of one hour of this machine.
    """
    terminal = Terminal(verbosity.verbose)
    if price is not None and number(str(price), "--price", "price") < 0:
        raise InputError(f"--price {price:g}: give 0 or more.")
    from pusa.training.data import dataset

    config = settings_for(data, preset, overrides)
    for source in config.data.sources:
        dataset.check_place(source.path)  # before torch is imported
    with terminal.status("Starting"):
        import torch

        from pusa import adapters
        from pusa.training import fitting, loading, planning, starting
        from pusa.training.config.sections import AUTO
        from pusa.training.costs import device_name, matmul_rate
        from pusa.training.data.split import hold_out
        from pusa.training.estimate import estimate

        model = planning.model_plan(config)
        config = starting.with_lora(config, model.sizes.layers)
    with terminal.counting() as progress:
        plan = planning.survey(
            config, model, progress=partial(progress, "Reading the clips"), workers=min(16, os.cpu_count() or 1)
        )
    needs = fitting.predicted(config, model, [*plan.buckets]) if loading.is_partial(config) and plan.cuts else None
    training, held_out = hold_out(plan, config.data.held_out) if plan.cuts else (plan, plan)
    with terminal.status("Measuring this machine"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        rate = matmul_rate(device, dtype, seconds=0.3)
    run = estimate(
        model.sizes,
        training.buckets,
        steps=config.train.steps,
        batch=config.train.batch,
        accumulate=config.train.accumulate,
        adapter=adapters.from_settings(config.lora),
        rate=rate,
        number=dtype.itemsize,
        price=price,
    )
    record = _record(model.name, plan, config.data.cut, run, device_name(device))
    record |= {
        "training_samples": len(training.cuts),
        "held_out": len({cut.file.sha256 for cut in held_out.cuts}),
        "too_long": _too_long(config.model.source, plan),
        "better_buckets": None if AUTO in (config.data.buckets or ()) else _better_buckets(plan, model),
        "checkpointing": config.train.gradient_checkpointing,
        "step_memory": needs and {**needs[0].record(), "text": fitting.sentence(*needs)},
    }
    attention = any(problem.kind not in HARMLESS for problem in plan.problems) or not plan.cuts
    from pusa.cli.shared import check_report

    text = (
        f"{check_report.share(_used(plan), plan.found)} used"
        if verbosity.quiet
        else check_report.render(record, plan, run, model.sizes.geometry)
    )
    return Report({**record, "attention": attention}, text, exit_code=int(attention))


def settings_for(data: str | None, preset: str | None, overrides: Mapping[str, str | tuple[str, ...] | None]) -> Config:
    """Return the settings of a training: the preset, then the file `data` if it is one, then the options.

    data: a source of clips or a settings file. Raises InputError for wrong settings, or if there are no clips.
    """
    from pusa.training.config.tree import read

    named = given(overrides)
    is_settings = data is not None and data.lower().endswith((".yaml", ".yml", ".toml"))
    if data is not None and not is_settings and named.setdefault("data.path", data) != data:
        raise InputError(f"The clips are given twice, as {data} and as --data.path; give them once.")
    config = read(Path(data) if data and is_settings else None, preset, named)
    if not config.data.sources:
        raise InputError("There are no clips; give a folder of clips, or data.path in the settings.")
    return config


def _better_buckets(plan: Plan, model: ModelPlan) -> list[str] | None:
    """Return the buckets and further ones that keep the pictures of more clips; None if there are none."""
    from pusa.training.data.aspect_buckets import with_other_shapes

    better = with_other_shapes(plan.files, plan.choices, plan.fps, model.sizes.geometry)
    return [str(bucket) for bucket in better] if len(better) > len(plan.choices) else None


def _too_long(source: str, plan: Plan) -> dict[str, Any]:
    """Return the captions that the model does not read to their end: their clips and tokens, or why it is unknown."""
    from pusa.models.loading import token_counts

    captions = [caption for file in plan.files for caption in file.captions]
    try:
        found = token_counts.too_long(source, captions)
    except InputError as error:
        return {"limit": token_counts.LIMIT, "clips": [], "unknown": str(error)}
    clips = [
        {"path": str(file.path), "tokens": found[caption]}
        for file in plan.files
        for caption in file.captions
        if caption in found
    ]
    return {"limit": token_counts.LIMIT, "clips": clips, "unknown": None}


def _used(plan: Plan) -> int:
    return len({cut.file.path for cut in plan.cuts})


def _record(model: str, plan: Plan, cut: str, run: Estimate | None, device: str) -> dict[str, Any]:
    """Return a part of the output of `--json`: clips, samples, buckets, problems and the estimate."""
    counts = {bucket: plan.buckets.get(bucket, 0) for bucket in plan.choices}
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
    """Return, for each bucket, the clips of which it crops too much: how many, the shares, and the worst clip."""
    from pusa.training.data.aspect_buckets import CROPPED
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
