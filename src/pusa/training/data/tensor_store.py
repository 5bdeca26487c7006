"""A folder of tensors under content keys: what is in it is whole, or it is not in it.

An entry is one safetensors file, `KIND/ab/abcdef….safetensors`, written beside itself and renamed, with a checksum of
its tensor in the header: a half file has no name, and one that a disk has bitten is recognised when it is read. Several
processes, on several machines that mount the folder, may fill it together: whoever makes an entry claims it in the
file `claims`. On a file system without locks two processes may make the same entry, and the second replaces it by its
equal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from pusa import claims
from pusa.errors import InputError
from pusa.files import replacing


def key(kind: str, content: dict[str, Any]) -> str:
    """`kind/40 hex digits`: the same for the same JSON-able content and for no other."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()[:40]}"


class Store:
    """The entries of a folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the entry lies or would lie."""
        kind, digest = key.split("/")
        return self.folder / kind / digest[:2] / f"{digest}.safetensors"

    def write(self, key: str, tensor: Tensor, about: dict[str, Any]) -> None:
        """Add an entry or replace it. `about` (JSON-able) goes into the header, for whoever opens the file.

        The same tensor and `about` give the same bytes. Raises InputError on a full disk or a read-only folder.
        """
        path, tensor = self.path(key), tensor.detach().cpu().contiguous()
        make_folder(path.parent, "the cache")
        # One metadata entry: safetensors writes several in any order.
        header = json.dumps({**about, "sha256": _checksum(tensor)}, sort_keys=True, ensure_ascii=False)
        content = safetensors.torch.save({key.split("/")[0]: tensor}, {"pusa": header})
        with replacing(path) as part:
            part.write_bytes(content)

    def read(self, key: str) -> Tensor:
        """The tensor of an entry, verified. Raises InputError when it is not there or damaged."""
        path = self.path(key)
        try:
            with safe_open(str(path), "pt") as file:
                tensor: Tensor = file.get_tensor(key.split("/")[0])
                expected = json.loads(file.metadata()["pusa"])["sha256"]
        except FileNotFoundError as error:
            raise InputError(f"the cache entry {path} is not there") from error
        except Exception as error:
            raise InputError(f"the cache entry {path} is damaged ({str(error).splitlines()[0]})") from error
        if _checksum(tensor) != expected:
            raise InputError(f"the cache entry {path} is damaged (its content does not match its checksum)")
        return tensor

    def holds(self, key: str, *, verify: bool) -> bool:
        """Whether the entry is there, of its full length and, with `verify`, undamaged."""
        try:
            if verify:
                self.read(key)
                return True
            with safe_open(str(self.path(key)), "pt") as file:
                return key.split("/")[0] in list(file.keys())
        except Exception:
            return False

    def size(self, key: str) -> int:
        """Bytes on disk, 0 for no entry."""
        try:
            return self.path(key).stat().st_size
        except OSError:
            return 0

    @contextmanager
    def claims(self) -> Iterator[Claims]:
        """The right to make entries, for one process; one at a time."""
        make_folder(self.folder, "the cache")
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(claims.opened(self.folder / "claims"))
            except OSError as error:
                raise unusable(self.folder, "the cache", error) from error
            yield Claims(self, descriptor)


class Claims:
    """Which entries this process is making right now."""

    def __init__(self, store: Store, descriptor: int) -> None:
        self._store = store
        self._descriptor = descriptor

    @contextmanager
    def hold(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Claim an entry for the block; yields False when another process has it and `wait` is False."""
        with claims.hold(self._descriptor, key, wait=wait) as held:
            if held:
                self._sweep(self._store.path(key))
            yield held is not False

    @staticmethod
    def _sweep(path: Path) -> None:
        """Remove what an owner that was killed left of this entry."""
        for part in path.parent.glob(f".{path.stem}-*.part{path.suffix}"):
            part.unlink(missing_ok=True)


def make_folder(folder: Path, what: str) -> None:
    """Make a folder and those it lies in. InputError when that cannot be; what: what it is for, such as "the cache"."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, what, error) from error


def unusable(folder: Path, what: str, error: OSError) -> InputError:
    """One sentence for a folder in which nothing can be written."""
    above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            reason, advice = "the disk is full", "free some space, or "
        case errno.EACCES | errno.EPERM | errno.EROFS:
            reason, advice = f"{above} is read-only for you", ""
        case errno.EEXIST | errno.ENOTDIR:
            reason, advice = f"{above} is no folder", ""
        case errno.ENOENT:
            reason, advice = f"{above} takes no folders", ""
        case _:
            reason, advice = f"{error.strerror}", ""
    return InputError(f"cannot write {what} into {folder}: {reason}; {advice}choose another folder for it.")


def _checksum(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
