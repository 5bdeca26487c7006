"""`pusa export`: a LoRA for other programs, of a lower rank, or merged into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pusa.cli.arguments import number
from pusa.cli.options import OUTPUT, File, Switch, Whole
from pusa.cli.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.models.export import Energy


def export(
    lora: Annotated[Path, File],
    *,
    to: Literal["diffusers", "comfy", "kohya", "merged"],
    out: Annotated[Path, File, Parameter(group=OUTPUT)],
    model: str | None = None,
    scale: float | None = None,
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
        A LoRA file under the names of diffusers, PEFT, ComfyUI, kohya or the official Pusa.
    to
        Names of diffusers, ComfyUI or kohya; or merged, a whole checkpoint that needs no LoRA any more.
    model
        With merged: the base model, tiny-base, a diffusers folder or a hub id.
    scale
        With merged: the strength at which the LoRA is added, 1 (as it was trained) by default.
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
    for flag, value in (("--model", model), ("--scale", scale)):
        if value is not None and not merging:
            raise InputError(f"{flag} belongs to --to merged: a LoRA file has neither a base nor a strength in it.")
    if scale is not None:
        number(str(scale), "--scale", "finite number")
    if out.exists() and not merging and not overwrite:
        raise InputError(f"{out} exists already; give --overwrite to replace it, or another --out.")

    from pusa.models import export as exporting

    terminal = Terminal(not (quiet or json))
    with terminal.status(f"Reading {lora.name}"):
        if to == "merged":
            strength = 1.0 if scale is None else scale
            done = exporting.merge(lora, str(model), out, scale=strength, rank=rank, dtype=dtype)
        else:
            done = exporting.convert(lora, out, to, rank=rank, dtype=dtype)
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
        record |= {"model": model, "scale": 1.0 if scale is None else scale}
    if done.energy:
        terminal.note(_sentence(done.energy))
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
