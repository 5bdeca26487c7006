"""A folder of tensors under content keys: what is in it is whole, or it is not in it.

An entry is one safetensors file, `KIND/ab/abcdef….safetensors`, written beside itself and renamed, with a checksum of
its tensor in the header: a half-written file is never found under its name, and a damaged one is recognised when it is
read. Several processes, on several machines that mount the folder, may fill it together; see `work.units`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from pusa.errors import InputError
from pusa.files import make_folder, replacing


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

    @property
    def claims_file(self) -> Path:
        """The file in which processes claim the entries that they make."""
        return self.folder / "claims"

    def size(self, key: str) -> int:
        """Bytes on disk, 0 for no entry."""
        try:
            return self.path(key).stat().st_size
        except OSError:
            return 0


def _checksum(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
