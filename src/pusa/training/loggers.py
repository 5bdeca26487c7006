"""Send the numbers of a training to TensorBoard, trackio or wandb. Each package is imported only if it is used."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pusa.errors import InputError

PROJECT = "pusa"


class Logger(Protocol):
    """An opened logger."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record named numbers of a step (from 1)."""

    def close(self) -> None:
        """Write what is buffered, and end the run of the logger."""


class TensorBoard:
    """Writes event files into `folder`/tensorboard. It hides steps after `first` that an earlier start wrote."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]) -> None:
        writer = _imported("torch.utils.tensorboard", "TensorBoard").SummaryWriter
        self.writer = writer(log_dir=str(folder / "tensorboard"), purge_step=first + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """Writes a local trackio run with the name of the folder. `trackio show --project pusa` displays it."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]) -> None:
        trackio = _imported("trackio", "trackio")
        with redirect_stdout(sys.stderr):  # stdout carries results only
            self.run = trackio.init(project=PROJECT, name=folder.name, config=dict(config), resume="allow", embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.run.finish()


class Wandb:
    """Writes a wandb run whose id depends on the folder, so that a resumed training continues the same run."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]) -> None:
        wandb = _imported("wandb", "wandb")
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        with redirect_stdout(sys.stderr):
            self.run = wandb.init(
                project=PROJECT, name=folder.name, id=name, resume="allow", dir=str(folder), config=dict(config)
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.run.finish()


LOGGERS: dict[str, type[TensorBoard] | type[Trackio] | type[Wandb]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}
_INSTALL = {"trackio": "pip install trackio", "wandb": "pip install wandb"}


def check(names: list[str]) -> None:
    """Raise InputError if the package of a logger is missing. Call this before anything that takes long."""
    for name in names:
        _imported({"tensorboard": "torch.utils.tensorboard"}.get(name, name), name)


def _imported(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        how = _INSTALL.get(name, "pip install 'pusa[train]'")
        raise InputError(f"{name} is not installed: run {how}, or remove it from track.loggers.") from error
