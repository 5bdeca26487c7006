"""`pusa export`: write a LoRA for other programs, of a lower rank, of another average, or merged into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pusa.cli.shared.arguments import number
from pusa.cli.shared.options import OUTPUT, File, Switch, Whole
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.models.export import Energy

LORA_FILE = "lora.safetensors"
"""The LoRA that a training writes into the folder of its run."""


def export(
    lora: Annotated[Path, File],
    *,
    to: Literal["diffusers", "comfy", "kohya", "merged"],
    out: Annotated[Path, File, Parameter(group=OUTPUT)],
    model: str | None = None,
    scale: float | None = None,
    expert: Literal["high", "low"] | None = None,
    ema: Annotated[float | None, Parameter(metavar="SIGMA_REL")] = None,
    step: Annotated[int | None, Whole] = None,
    rank: Annotated[int | None, Whole] = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    overwrite: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
    json: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
    quiet: Annotated[bool, Switch, Parameter(alias="-q", group=OUTPUT)] = False,
    debug: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
) -> Report:
    """Convert a LoRA for another program, reduce its rank, or merge it into the weights of a model.

    Parameters
    ----------
    lora
        A LoRA file with the names of diffusers, PEFT, ComfyUI, kohya or the official Pusa; or the folder of a run.
    to
        The program whose names are written: diffusers, comfy or kohya. Or merged: the weights of a model that includes
        the LoRA.
    model
        With merged: the base model, which is tiny-base, a diffusers folder or a hub id.
    scale
        With merged: the strength of the LoRA. The default is 1, the strength of the training.
    expert
        With merged and a base of two experts: the expert that gets the LoRA. The default is both. For other programs:
        the expert whose LoRA is written, of a file for both.
    ema
        For a run with train.ema post-hoc: average its weights with this length, EDM2's sigma_rel. The run itself writes
        the average for 0.1.
    step
        With --ema: average as if the training had ended at this step, which is one of its checkpoints.
    rank
        Keep this many singular values of each layer, and print how much of the LoRA they keep.
    dtype
        Number type of the written file. The default is that of the LoRA.
    out
        The .safetensors file to write; with merged, the folder.
    overwrite
        Replace an existing file.
    json
        Print one JSON object on stdout, also for an error.
    quiet
        Print only the result, no notes and no progress.
    debug
        Print the traceback of an error.
    """
    merging = to == "merged"
    if merging and model is None:
        raise InputError("--to merged needs the base model to which the LoRA is added; give --model.")
    for flag, value in (("--model", model), ("--scale", scale)):
        if value is not None and not merging:
            raise InputError(f"{flag} needs --to merged: a LoRA file contains no base model and no strength.")
    if scale is not None:
        number(str(scale), "--scale", "finite number")
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank}: give 1 or more.")
    if step is not None and ema is None:
        raise InputError("--step needs --ema: it is the step at which the average ends.")
    if ema is not None and not lora.is_dir():
        raise InputError(f"--ema needs the folder of a run, which contains its snapshots, and {lora} is not a folder.")
    if out.exists() and not merging and not overwrite:
        raise InputError(f"{out} exists already; give --overwrite to replace it, or give another --out.")

    from pusa.models.lora import header

    if not lora.is_dir():
        header.file_of(lora)  # a missing file is told before torch is imported
    from pusa.models import export as exporting

    terminal = Terminal(not (quiet or json))
    with TemporaryDirectory(prefix="pusa-") as scratch:
        source, average, description = lora, None, None
        if ema is not None:
            from pusa.training import posthoc_average

            source = Path(scratch) / f"{lora.resolve().name}_ema{ema:g}.safetensors"
            with terminal.status(f"Averaging {lora.name}"):
                average = posthoc_average.write(lora, source, ema, step)
            description = f"average of relative length {ema:g} at step {average.step} of the run {lora.resolve().name}"
        elif (lora / LORA_FILE).is_file():
            source = lora / LORA_FILE
        with terminal.status(f"Reading {source.name}"):
            if to == "merged":
                strength = 1.0 if scale is None else scale
                done = exporting.merge(
                    source, str(model), out, scale=strength, expert=expert, rank=rank, dtype=dtype, called=description
                )
            else:
                done = exporting.convert(source, out, to, rank=rank, dtype=dtype, expert=expert)
    if average:
        terminal.note(
            f"{description}, computed from {average.snapshots} snapshots with an error of {100 * average.misfit:.1f} %"
        )
    ranks = f", rank {'-'.join(map(str, sorted({done.ranks[0], done.ranks[-1]})))}" if done.ranks else ""
    dtypes = f", {' and '.join(done.dtypes)}" if done.dtypes else ""
    terminal.note(f"{done.modules} layers{ranks}{dtypes}")
    if done.stale:
        terminal.note(f"metadata that does not apply to the new file was left out: {', '.join(done.stale)}")
    record: dict[str, Any] = {
        "path": str(done.path),
        "to": to,
        "modules": done.modules,
        "ranks": list(done.ranks),
        "dtypes": list(done.dtypes),
        "metadata_left_out": list(done.stale),
    }
    if merging:
        record |= {"model": model, "scale": 1.0 if scale is None else scale, "expert": expert}
    if average:
        record["ema"] = {
            "sigma_rel": ema,
            "step": average.step,
            "snapshots": average.snapshots,
            "misfit": average.misfit,
        }
    if done.energy:
        unchanged = rank is not None and done.ranks[-1] < rank
        terminal.note(
            f"no rank was reduced: the highest rank is {done.ranks[-1]}, below {rank}"
            if unchanged
            else _energy_note(done.energy)
        )
        record["kept_energy"] = {
            "total": done.energy.total,
            "median": done.energy.median,
            "least": done.energy.least[1],
            "modules": dict(done.energy.modules),
        }
    return Report(record, str(done.path))


def _energy_note(energy: Energy) -> str:
    module, least = energy.least
    layers = f"per layer: median {_percent(energy.median)}, least {_percent(least)} ({module})"
    return f"kept {_percent(energy.total)} of the LoRA's energy; {layers}"


def _percent(share: float) -> str:
    """Return a share as a percentage, rounded down, so that only the whole is 100 %."""
    return f"{int((share + 1e-9) * 1e5) / 1e3:.3f} %"
