"""`pusa export`: a LoRA for other programs, of a lower rank, of another average, or merged into a checkpoint."""

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
"""What a run hands out, in its folder."""


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
    """Write a LoRA under other names, at a lower rank, or into the weights of a checkpoint.

    Parameters
    ----------
    lora
        A LoRA file under the names of diffusers, PEFT, ComfyUI, kohya or the official Pusa, or the folder of a run.
    to
        Names of diffusers, ComfyUI or kohya; or merged, a whole checkpoint that needs no LoRA any more.
    model
        With merged: the base model, tiny-base, a diffusers folder or a hub id.
    scale
        With merged: the strength at which the LoRA is added, 1 (as it was trained) by default.
    expert
        With merged, of a base with two experts: the one that gets the LoRA, both by default.
    ema
        Of a run with train.ema post-hoc: average its weights over another length (EDM2's sigma_rel; runs hand out 0.1).
    step
        With --ema: as if the training had ended after so many steps, at one of its checkpoints.
    rank
        Keep this many singular values of each layer, and say how much of the LoRA that is.
    dtype
        Type of the numbers written; as they are by default.
    out
        The .safetensors file, or with merged the folder, to write.
    overwrite
        Replace a file that is already there.
    json
        Print one JSON object on stdout, also for errors.
    quiet
        Say nothing but the result.
    debug
        Show the traceback of an error.
    """
    merging = to == "merged"
    if merging and model is None:
        raise InputError("--to merged needs --model: the base whose weights the LoRA is added to.")
    for flag, value in (("--model", model), ("--scale", scale), ("--expert", expert)):
        if value is not None and not merging:
            raise InputError(f"{flag} belongs to --to merged: a LoRA file is of no base and at no strength.")
    if scale is not None:
        number(str(scale), "--scale", "finite number")
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank} leaves nothing of the LoRA: give at least 1.")
    if step is not None and ema is None:
        raise InputError("--step belongs to --ema: it says from which step the average looks back.")
    if ema is not None and not lora.is_dir():
        raise InputError(f"--ema needs the folder of a run, in which its snapshots are, and {lora} is none.")
    if out.exists() and not merging and not overwrite:
        raise InputError(f"{out} exists already; give --overwrite to replace it, or another --out.")

    from pusa.models import export as exporting

    terminal = Terminal(not (quiet or json))
    with TemporaryDirectory(prefix="pusa-") as scratch:
        source, average, called = lora, None, None
        if ema is not None:
            from pusa.training import posthoc_average

            source = Path(scratch) / f"{lora.resolve().name}_ema{ema:g}.safetensors"
            with terminal.status(f"Averaging {lora.name}"):
                average = posthoc_average.write(lora, source, ema, step)
            called = f"average of relative length {ema:g} at step {average.step} of the run {lora.resolve().name}"
        elif (lora / LORA_FILE).is_file():
            source = lora / LORA_FILE
        with terminal.status(f"Reading {source.name}"):
            if to == "merged":
                strength = 1.0 if scale is None else scale
                done = exporting.merge(
                    source, str(model), out, scale=strength, expert=expert, rank=rank, dtype=dtype, called=called
                )
            else:
                done = exporting.convert(source, out, to, rank=rank, dtype=dtype)
    if average:
        terminal.note(f"{called}, from {average.snapshots} snapshots, {100 * average.misfit:.1f} % from exact")
    ranks, dtypes = "-".join(map(str, sorted({done.ranks[0], done.ranks[-1]}))), " and ".join(done.dtypes)
    terminal.note(f"{done.modules} layers, rank {ranks}, {dtypes}")
    if done.stale:
        terminal.note(f"left out, as no longer true of the new file: {', '.join(done.stale)}")
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
        nothing = rank is not None and done.ranks[-1] < rank
        terminal.note(
            f"nothing was cut: the highest rank is {done.ranks[-1]}, below {rank}"
            if nothing
            else _sentence(done.energy)
        )
        record["kept_energy"] = {
            "total": done.energy.total,
            "median": done.energy.median,
            "least": done.energy.least[1],
            "modules": dict(done.energy.modules),
        }
    return Report(record, str(done.path))


def _sentence(energy: Energy) -> str:
    module, least = energy.least
    layers = f"per layer: median {_percent(energy.median)}, least {_percent(least)} ({module})"
    return f"kept {_percent(energy.total)} of the LoRA's energy; {layers}"


def _percent(share: float) -> str:
    """Rounded down, so that only all of it is 100 %."""
    return f"{int((share + 1e-9) * 1e5) / 1e3:.3f} %"
