"""The folder of a run: a lock, complete checkpoints, and a log that matches the last checkpoint.

    runs/NAME/config.yaml                   the settings of the last start
              lock                          locked by the process that trains here; the system unlocks it when it ends
              log.jsonl                     one line per step
              checkpoints/step_000900/      checkpoint.json (sizes and hashes), state.pt, and weights that load anywhere

To resume, rerun the same command. A checkpoint is written under another name, flushed to the disk and renamed. So a
power cut or `kill -9` never leaves an incomplete checkpoint under the name of a checkpoint. The hashes find damage by a
bad disk. A run resumes from the newest complete checkpoint. Lines of the log and snapshots after it are removed.
"""

from __future__ import annotations

import errno
import fcntl
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
from pusa.files import make_folder, sha256, unwritable_folder, write_json
from pusa.training.weight_averages import snapshots_of

MANIFEST, STATE = "checkpoint.json", "state.pt"
LOGS = ("log.jsonl", "validation.jsonl")
_NAME = re.compile(r"step_(\d{6,})")
_PART = ".part"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. step: the number of finished steps. facts: those of its run, see `Run.open`."""

    folder: Path
    step: int
    facts: Mapping[str, Any]

    def state(self) -> dict[str, Any]:
        """Return the content of state.pt: tensors, numbers, strings, lists and dictionaries."""
        state: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state


class Run:
    """An opened and locked run folder. Close it, or use it as a context manager, to unlock it."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], lock: IO[str]) -> None:
        self.folder, self.facts, self._lock = folder, facts, lock
        self.resumed: Checkpoint | None = None

    @classmethod
    def open(cls, folder: str | Path, facts: Mapping[str, Any], *, force: bool = False) -> Run:
        """Create and lock the folder, and find the checkpoint to resume from: `resumed`, None for a new run.

        facts: everything that determines the weights, as nested JSON: settings, and fingerprints of model and clips.
        Raises InputError if another process trains in the folder, or if all checkpoints there are damaged. Unless
        `force` is given, raises it also if the newest complete checkpoint has other facts.
        """
        folder = Path(folder)
        run = cls(folder, json.loads(json.dumps(facts)), lock(folder))
        try:
            for part in (folder / "checkpoints").glob(f".*{_PART}"):
                shutil.rmtree(part)
            run.resumed = run.latest()
            if run.resumed and not force and (changed := differences(run.resumed.facts, run.facts)):
                raise InputError(
                    f"{folder} was trained up to step {run.resumed.step} with other settings ({'; '.join(changed)}): "
                    "use the former settings, choose another folder, or add --overwrite to resume with the new ones."
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
        """Unlock the folder."""
        self._lock.close()

    @property
    def checkpoints(self) -> list[Path]:
        """The folders that have the name of a checkpoint, oldest first, complete or damaged."""
        found = [p for p in (self.folder / "checkpoints").iterdir() if _NAME.fullmatch(p.name)]
        return sorted(found, key=_step_of)

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, None if there are no checkpoints.

        A UserWarning names each newer checkpoint that is damaged. Raises InputError if all are damaged.
        """
        reasons = []
        for folder in reversed(self.checkpoints):
            try:
                checkpoint = read(folder)
            except InputError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                warnings.warn(f"{reason} Training resumes from step {checkpoint.step}.", stacklevel=2)
            return checkpoint
        if reasons:
            raise InputError(
                f"All {len(reasons)} checkpoints in {self.folder} are damaged ({reasons[0].rstrip('.')}): remove the "
                "folder to start again, or choose another folder."
            )
        return None

    def save(self, step: int, state: Mapping[str, Any], weights: Callable[[Path], object], keep: int | None) -> Path:
        """Write the checkpoint of `step` atomically, then remove all but the newest `keep` (None: keep all).

        state: the content of state.pt, which `Checkpoint.state` returns. weights: writes further files into the folder
        that it is given. Raises InputError if, for example, the disk is full. Earlier checkpoints are not changed then.
        """
        place = self.folder / "checkpoints" / f"step_{step:06d}"
        part = place.with_name(f".{place.name}-{secrets.token_hex(4)}{_PART}")
        good = [c for c in self.checkpoints if _step_of(c) < step]
        advice = f"the last good checkpoint is {good[-1].name}" if good else "there is no checkpoint yet"
        try:
            with writing(f"the checkpoint {place} ({advice})"):
                part.mkdir()
                with (part / STATE).open("wb") as file:
                    torch.save(dict(state), file)
                weights(part)
                files = {str(p.relative_to(part)): [p.stat().st_size, sha256(p)] for p in _files(part)}
                write_json(part / MANIFEST, {"step": step, "facts": self.facts, "files": files})
                _flush(part)
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
        """Append one line of JSON. record: contains its "step". NaN and infinity become null."""
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        with (
            writing(str(self.folder / name)),
            (self.folder / name).open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(line)


def read(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder. Raises InputError if the size or the hash of one of its files is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        step, facts, files = int(manifest["step"]), dict(manifest["facts"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The checkpoint {folder} is damaged: its {MANIFEST} cannot be read.") from error
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or sha256(path) != digest:
            raise InputError(f"The checkpoint {folder} is damaged: {name} has changed since it was written.")
    return Checkpoint(folder, step, facts)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Return the differences between two nested JSON values, such as "train.lr was 0.1 and is 0.2"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    return [] if old == new else [f"{where} was {_short(old)} and is {_short(new)}"]


def rewind(path: Path, step: int) -> None:
    """Remove the lines of a log after `step`, and an incomplete last line, as a killed process leaves it."""
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


def lock(folder: Path) -> IO[str]:
    """Create the folder and lock it until the returned file is closed, or this process ends.

    Raises InputError if another process has locked it, or if the folder cannot be written.
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
                f"{folder} is in use by {owner}: wait until it ends, end it, or choose another folder for this run."
            ) from error
        raise PusaError(f"cannot lock {folder}: {error.strerror}; choose a folder on another file system.") from error
    with suppress(OSError):  # the text is for messages only, and must not fail on a full disk
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


def _flush(folder: Path) -> None:
    """Flush everything in a folder to the disk, files before the folders that list them."""
    for path in [*_files(folder), *sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True), folder]:
        _sync(path)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _remove(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that no incomplete one has the name of a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}{_PART}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


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
    """Turn an error of writing inside the block into one sentence.

    torch and safetensors wrap the error of the system in errors of their own. Raises InputError for a full disk and for
    a place that is read-only, and PusaError otherwise.
    """
    try:
        yield
    except Exception as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
        reason = text.splitlines()[0].rstrip(".")
        cause: BaseException | None = error
        while cause is not None:
            number = getattr(cause, "errno", None)
            if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(cause) or "disk is full" in str(cause):
                advice = "the disk is full; free some space and rerun the same command."
                raise InputError(f"cannot write {what}: {advice}") from error
            if number in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise InputError(
                    f"cannot write {what}: you have no permission to write there; choose another folder."
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise PusaError(f"cannot write {what}: {reason}.") from error
