"""Further places for the numbers of a training: TensorBoard, trackio, wandb. Each is imported when it is asked for."""

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
    """An opened place for numbers."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`/tensorboard. Steps after `first` that an earlier start wrote are hidden."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]) -> None:
        writer = _found("torch.utils.tensorboard", "TensorBoard").SummaryWriter
        self.writer = writer(log_dir=str(folder / "tensorboard"), purge_step=first + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A local trackio run, named after the folder; `trackio show --project pusa` shows it."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]) -> None:
        trackio = _found("trackio", "trackio")
        with redirect_stdout(sys.stderr):  # stdout carries results only
            self.run = trackio.init(project=PROJECT, name=folder.name, config=dict(config), resume="allow", embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.run.finish()


class Wandb:
    """A wandb run that belongs to the folder: a resumed training goes on in it."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]) -> None:
        wandb = _found("wandb", "wandb")
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
    """Raise InputError for the first of the loggers whose package is missing, before anything long is begun."""
    for name in names:
        _found({"tensorboard": "torch.utils.tensorboard"}.get(name, name), name)


def _found(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        how = _INSTALL.get(name, "pip install 'pusa[train]'")
        raise InputError(f"{name} is not installed: {how}, or take it out of track.loggers.") from error
