"""A run's folder: one owner, checkpoints that are whole or not there, and a log that fits the checkpoint.

    runs/NAME/config.yaml                   what the run was last started with
              lock                          held by the process that trains here, and freed by the system when it dies
              log.jsonl                     one line per step
              checkpoints/step_000900/      checkpoint.json (sizes and hashes), state.pt, and weights that load anywhere

To resume, run the same command again. A checkpoint is written under another name, pushed to the disk and renamed; what
a power cut or `kill -9` leaves behind is never under a checkpoint's name, and what a bad disk leaves there has another
hash. The newest whole checkpoint is where a run goes on; lines of the log and snapshots that came after it are taken
back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from pusa.errors import InputError, PusaError
from pusa.files import make_folder, unwritable_folder, write_json
from pusa.training.weight_averages import snapshots_of

MANIFEST, STATE = "checkpoint.json", "state.pt"
LOGS = ("log.jsonl", "validation.jsonl")
_NAME = re.compile(r"step_(\d{6,})")
_PART = ".part"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. step: how many steps were done; facts: what `Run.save` was told about the run."""

    folder: Path
    step: int
    facts: Mapping[str, Any]

    def state(self) -> dict[str, Any]:
        """The content of state.pt: tensors, numbers, strings, lists and dicts."""
        state: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state


class Run:
    """An opened run folder; close it, or use it as a context manager, to let another process have it."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], lock: IO[str]) -> None:
        self.folder, self.facts, self._lock = folder, facts, lock
        self.resumed: Checkpoint | None = None

    @classmethod
    def open(cls, folder: str | Path, facts: Mapping[str, Any], *, force: bool = False) -> Run:
        """Take the folder (made if need be) and find where to go on: `resumed`, None for a new run.

        facts: whatever decides the weights, as nested JSON: the settings, and the fingerprints of model and clips.
        Raises InputError when another process trains there, when the newest whole checkpoint was made with other facts
        and not `force`, or when there are checkpoints and none is whole.
        """
        folder = Path(folder)
        run = cls(folder, json.loads(json.dumps(facts)), take(folder))
        try:
            for rubbish in (folder / "checkpoints").glob(f".*{_PART}"):
                shutil.rmtree(rubbish)
            run.resumed = run.latest()
            if run.resumed and not force and (changed := differences(run.resumed.facts, run.facts)):
                raise InputError(
                    f"{folder} was trained up to step {run.resumed.step} with other settings ({'; '.join(changed)}): "
                    "set them back, choose another folder, or go on with the new ones with --force."
                )
            for name in LOGS:
                rewind(folder / name, run.resumed.step if run.resumed else 0)
            for step, snapshot in snapshots_of(folder).items():
                if step > (run.resumed.step if run.resumed else 0):
                    snapshot.unlink()
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the folder."""
        self._lock.close()

    @property
    def checkpoints(self) -> list[Path]:
        """The folders under a checkpoint's name, oldest first, whole or not."""
        found = [p for p in (self.folder / "checkpoints").iterdir() if _NAME.fullmatch(p.name)]
        return sorted(found, key=_step_of)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; a UserWarning names every newer one that is damaged."""
        reasons = []
        for folder in reversed(self.checkpoints):
            try:
                checkpoint = read(folder)
            except InputError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                warnings.warn(f"{reason} Going on from step {checkpoint.step}.", stacklevel=2)
            return checkpoint
        if reasons:
            raise InputError(
                f"None of the {len(reasons)} checkpoints in {self.folder} is whole ({reasons[0].rstrip('.')}): remove "
                "the folder to begin anew, or choose another."
            )
        return None

    def save(self, step: int, state: Mapping[str, Any], weights: Callable[[Path], object], keep: int | None) -> Path:
        """Write the checkpoint of `step`, atomically, then remove all but the newest `keep` (None: keep all).

        state: for state.pt, as `Checkpoint.state` gives it back. weights: writes files for others into a given folder.
        Raises InputError when the disk is full or the like; earlier checkpoints are as they were.
        """
        place = self.folder / "checkpoints" / f"step_{step:06d}"
        part = place.with_name(f".{place.name}-{secrets.token_hex(4)}{_PART}")
        good = [c for c in self.checkpoints if _step_of(c) < step]
        advice = f"the last good one is {good[-1].name}" if good else "there is none yet"
        try:
            with writing(f"the checkpoint {place} ({advice})"):
                part.mkdir()
                with (part / STATE).open("wb") as file:
                    torch.save(dict(state), file)
                weights(part)
                files = {str(p.relative_to(part)): [p.stat().st_size, _sha256(p)] for p in _files(part)}
                write_json(part / MANIFEST, {"step": step, "facts": self.facts, "files": files})
                _push(part)
                for log in LOGS:
                    if (self.folder / log).is_file():
                        _sync(self.folder / log)
                _remove(place)
                part.rename(place)
                _sync(place.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in [c for c in self.checkpoints if _step_of(c) <= step][: -keep if keep else 0]:
            _remove(old)
        return place

    def log(self, record: Mapping[str, Any], name: str = LOGS[0]) -> None:
        """Append one line of JSON. record: has the "step" that it belongs to; NaN and infinity become null."""
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        with writing(str(self.folder / name)), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(line)


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, each file of it compared with its size and hash. InputError names what is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        step, facts, files = int(manifest["step"]), dict(manifest["facts"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The checkpoint {folder} is damaged: its {MANIFEST} cannot be read.") from error
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or _sha256(path) != digest:
            raise InputError(f"The checkpoint {folder} is damaged: {name} is not what was written.")
    return Checkpoint(folder, step, facts)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two nested JSON values, as "train.lr was 0.1 and is 0.2"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    return [] if old == new else [f"{where} was {_short(old)} and is {_short(new)}"]


def rewind(path: Path, step: int) -> None:
    """Cut a log after its last line of at most `step`; the torn line of a killed writer goes too."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(record, dict) or record.get("step", 0) > step:
                break
            end += len(line)
        file.truncate(end)


def take(folder: Path) -> IO[str]:
    """Make the folder and lock it for as long as the returned file is open, or as this process lives.

    Raises InputError when another process has it, or when nothing can be written there.
    """
    make_folder(folder, "the run")
    try:
        (folder / "checkpoints").mkdir(exist_ok=True)
        file = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise unwritable_folder(folder, "the run", error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(
                f"{folder} is in use by {owner}: wait for it or end it, or choose another folder for this run."
            ) from error
        raise PusaError(f"cannot lock {folder}: {error.strerror}; choose a folder on another file system.") from error
    with suppress(OSError):  # who it is helps others, and a full disk must not keep anybody from reading
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def _sync(path: Path) -> None:
    with _descriptor(path) as number:
        os.fsync(number)


def _push(folder: Path) -> None:
    """Everything in a folder to the disk, files before the folders that list them."""
    for path in [*_files(folder), *sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True), folder]:
        _sync(path)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _remove(folder: Path) -> None:
    """Delete a checkpoint such that it is never half there under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}{_PART}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:24] + "…"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Say in one sentence what could not be written; torch and safetensors hide the system's error in their own."""
    try:
        yield
    except Exception as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
        reason = text.splitlines()[0].rstrip(".")
        cause: BaseException | None = error
        while cause is not None:
            number = getattr(cause, "errno", None)
            if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(cause) or "disk is full" in str(cause):
                advice = "the disk is full; free some space and run the same command again."
                raise InputError(f"cannot write {what}: {advice}") from error
            if number in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise InputError(f"cannot write {what}: it is read-only for you; write elsewhere.") from error
            cause = cause.__cause__ or cause.__context__
        raise PusaError(f"cannot write {what}: {reason}.") from error
