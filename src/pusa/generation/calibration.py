"""Which acceleration is fast or close enough, as `pusa calibrate` measured it on this machine.

A calibration is a small JSON file in the user's cache, one for each model and number of steps. `--speed 2` and
`--min-psnr 30` read it. It imports no torch, so that a missing calibration is told at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Self

from pusa.acceleration.names import Acceleration
from pusa.errors import InputError
from pusa.files import check_writable, write_json

VERSION = 1


@dataclass(frozen=True)
class Measured:
    """What an acceleration did in one task.

    Attributes:
        accelerate: its text, see `pusa.acceleration.names`.
        task: what was made.
        speed: of each clip, the time of the plain clip divided by that of the accelerated one, while sampling.
        psnr: of each clip, in dB over the frames that the sampler changes, to the plain clip.
        computed: of each clip, the share of the blocks that was computed, 0 to 1.
    """

    accelerate: str
    task: str
    speed: Sequence[float]
    psnr: Sequence[float]
    computed: Sequence[float]


@dataclass(frozen=True)
class Setting:
    """An acceleration in the task in which it does worst. speed: a median over clips. psnr: a mean, in dB."""

    accelerate: str
    speed: float
    psnr: float
    computed: float


PLAIN = Setting("none", 1.0, math.inf, 1.0)
"""the clip without acceleration"""


@dataclass(frozen=True)
class Calibration:
    """The measurements of a model at a number of steps.

    about: the device, the size and what else they hold for. proxies: the rank correlation of each sign of change with
    the change of the prediction, see `pusa.evaluation.acceleration`.
    """

    source: str
    steps: int
    measured: tuple[Measured, ...]
    about: Mapping[str, Any]
    proxies: Mapping[str, float]

    def settings(self) -> list[Setting]:
        """Every acceleration in its worst task, the fastest first."""
        names = dict.fromkeys(one.accelerate for one in self.measured)
        found = []
        for name in names:
            rows = [one for one in self.measured if one.accelerate == name]
            found.append(
                Setting(
                    name,
                    min(median(row.speed) for row in rows),
                    min(mean(row.psnr) for row in rows),
                    max(mean(row.computed) for row in rows),
                )
            )
        return sorted(found, key=lambda one: -one.speed)

    def choose(self, speed: float | None, min_psnr: float | None) -> str | None:
        """Return the closest acceleration that is fast enough, or the fastest one that is close enough.

        It is None if the plain clip is. speed: at least so many times as fast. min_psnr: at least so close, in dB.
        Raises InputError if none is.
        """
        settings = sorted([*self.settings(), PLAIN], key=lambda one: -one.speed)
        close = [one for one in settings if min_psnr is None or one.psnr >= min_psnr]
        fast = [one for one in close if speed is None or one.speed >= speed]
        if fast:
            best = fast[0] if speed is None else max(fast, key=lambda one: one.psnr)
            return None if best is PLAIN else best.accelerate
        best = close[0]
        wanted = " and ".join(
            [*([f"{speed:g} times as fast"] if speed else []), *([f"{min_psnr:g} dB"] if min_psnr else [])]
        )
        raise InputError(
            f"No acceleration of {self.source} with {self.steps} steps reaches {wanted}, by its calibration: the "
            f"nearest is {_told(best)}; ask for less."
        )

    def save(self) -> Path:
        """Write the file and return its path."""
        path = place(self.source, self.steps)
        write_json(path, {"version": VERSION, **asdict(self)})
        return path

    @classmethod
    def find(cls, source: str, steps: int) -> Self:
        """Read the calibration of a model for a number of steps.

        Raises InputError if there is none, or if its file is damaged.
        """
        path = _path(source, steps)
        if not path.is_file():
            others = sorted(int(file.stem.rpartition("_")[2]) for file in path.parent.glob(f"{_stem(source)}_*.json"))
            known = f", only for {_counts(others)} steps" if others else ""
            raise InputError(
                f"There is no calibration of {source} for {steps} steps{known}: run pusa calibrate {source} --steps "
                f"{steps}, or give --accelerate yourself."
            )
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            measured = tuple(Measured(**one) for one in read["measured"])
            return cls(read["source"], read["steps"], measured, read["about"], read["proxies"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} is damaged: delete it, and run pusa calibrate {source} --steps {steps}."
            ) from error


def place(source: str, steps: int) -> Path:
    """Return the file of a calibration, in a folder that exists. Raises InputError if it cannot be written there."""
    path = _path(source, steps)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(
            f"The calibration cannot be kept in {path.parent} ({reason}): name another folder in PUSA_CACHE."
        ) from error
    return path


def chosen(request: Any, settings: Any, source: str) -> list[str]:
    """Return what --speed or --min-psnr chose for a request, and where the clip differs from those measured.

    settings: of the request.
    """
    if request.speed is None and request.min_psnr is None:
        return []
    known = Calibration.find(source, settings.steps)
    name = settings.accelerate or PLAIN.accelerate
    best = next((one for one in known.settings() if str(Acceleration.parse(one.accelerate)) == name), PLAIN)
    notes = [f"The acceleration is {_told(best)}, by the calibration of {source}."]
    measured = {
        "size": tuple(known.about["size"]),
        "frames": known.about["frames"],
        "guidance": known.about["guidance"],
    }
    now = {"size": settings.size, "frames": settings.frames, "guidance": settings.guidance}
    if other := [
        f"{key} {_short(measured[key])} instead of {_short(now[key])}" for key in now if measured[key] != now[key]
    ]:
        notes.append(f"The calibration has {', '.join(other)}, so that speed and closeness can differ.")
    return notes


def _told(setting: Setting) -> str:
    if setting is PLAIN:
        return "none, the plain clip"
    return f"{setting.accelerate}, {setting.speed:.2g} times as fast at {setting.psnr:.1f} dB"


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def _path(source: str, steps: int) -> Path:
    root = os.environ.get("PUSA_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "pusa" / "calibrations" / f"{_stem(source)}_{steps}.json"


def _stem(source: str) -> str:
    """The name of a model, with a hash of its whole path."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(source).name)[:40]
    return f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _counts(numbers: Sequence[int]) -> str:
    *some, last = map(str, numbers)
    return f"{', '.join(some)} and {last}" if some else last
