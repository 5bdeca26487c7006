"""`pusa info`: what is installed, what it runs on, and what a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pusa.cli.options import OUTPUT, Switch
from pusa.cli.terminal import Report
from pusa.errors import InputError


def info(
    model: str | None = None,
    *,
    json: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
    debug: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
) -> Report:
    """Show versions, the device and the embedded model; or what a model is, without loading it.

    Parameters
    ----------
    model
        tiny, tiny-base, or a diffusers folder.
    json
        Print one JSON object on stdout, also for errors.
    debug
        Show the traceback of an error.
    """
    record = _machine() if model is None else _model(model)
    width = max(len(name) for name in record)
    return Report(record, "\n".join(f"{name:{width}}  {_plain(value)}" for name, value in record.items()))


def _machine() -> dict[str, Any]:
    import os
    import platform

    import torch

    from pusa import embedded
    from pusa.generation.pipeline import versions

    found = versions()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "pusa": found.pop("pusa"),
        "device": gpu or f"cpu, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        **found,
        "models": {
            "tiny": f"embedded, adapter of {_megabytes(embedded.adapter())}",
            "tiny-base": f"embedded, {_megabytes(embedded.folder())} in all",
        }
        if embedded.folder().is_dir()
        else "none embedded in this installation",
    }


def _model(source: str) -> dict[str, Any]:
    from pusa import embedded
    from pusa.models import checkpoints

    folder = embedded.folder() if source in (checkpoints.TINY, checkpoints.TINY_BASE) else Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {source}; give tiny, tiny-base or a model folder on this machine.")
    defaults = checkpoints.defaults_of(folder)
    refused = {}
    try:
        checkpoints.check(source, folder)
    except InputError as error:
        refused = {"refused": f"generate refuses it: {error}"}
    weights = {part: _weights(folder / part) for part in ("transformer", "vae", "text_encoder")}
    return {
        "model": source,
        "folder": str(folder.resolve()),
        "adapter": str(embedded.adapter()) if source == checkpoints.TINY else None,
        **{part: f"{count / 1e6:,.1f} M parameters in {kind}" for part, (count, kind) in weights.items()},
        "frames": defaults.frames,
        "fps": defaults.fps,
        "size": list(defaults.size),
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "shift": defaults.shift,
        **refused,
    }


def _weights(folder: Path) -> tuple[int, str]:
    """Number of parameters and their types, from the headers of the weight files."""
    from math import prod

    from safetensors import safe_open

    count, kinds = 0, set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                count += prod(part.get_shape())
                kinds.add(str(part.get_dtype()))
    return count, " and ".join(sorted(kinds)) or "no file"


def _megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "none" if value is None else str(value)
