"""A folder of tensors. The key of a tensor is a hash of everything that it was computed from.

An entry is one safetensors file, `KIND/ab/abcdef….safetensors`. It is written under another name and renamed when it is
complete, so no entry is half written. Its header contains a checksum of the tensor, so damage is detected when the
entry is read. Several processes, also on several machines that mount the folder, can fill it at the same time; see
`work.units`.
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

from pusa.errors import InputError, first_line
from pusa.files import make_folder, replacing


def key(kind: str, content: dict[str, Any]) -> str:
    """Return `kind/40 hex digits`, a hash of `content`, which is written as JSON to compute it."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()[:40]}"


class Store:
    """The entries of a folder. The folder is created when the first entry is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return the path of an entry, which need not exist."""
        kind, digest = key.split("/")
        return self.folder / kind / digest[:2] / f"{digest}.safetensors"

    def write(self, key: str, tensor: Tensor, about: dict[str, Any]) -> None:
        """Add or replace an entry. about: further values for the header, which is written as JSON.

        The same tensor and `about` give the same bytes. Raises InputError if the disk is full or the folder read-only.
        """
        path, tensor = self.path(key), tensor.detach().cpu().contiguous()
        make_folder(path.parent, "the cache")
        # There is only one metadata entry, because safetensors writes several in any order.
        header = json.dumps({**about, "sha256": _checksum(tensor)}, sort_keys=True, ensure_ascii=False)
        content = safetensors.torch.save({key.split("/")[0]: tensor}, {"pusa": header})
        with replacing(path) as part:
            part.write_bytes(content)

    def read(self, key: str) -> Tensor:
        """Return the tensor of an entry. Raises InputError if the entry is missing or damaged."""
        path = self.path(key)
        try:
            with safe_open(str(path), "pt") as file:
                tensor: Tensor = file.get_tensor(key.split("/")[0])
                expected = json.loads(file.metadata()["pusa"])["sha256"]
        except FileNotFoundError as error:
            raise InputError(f"the cache entry {path} is missing") from error
        except Exception as error:
            raise InputError(f"the cache entry {path} is damaged ({first_line(error)})") from error
        if _checksum(tensor) != expected:
            raise InputError(f"the cache entry {path} is damaged (its checksum is wrong)")
        return tensor

    def contains(self, key: str, *, verify: bool) -> bool:
        """Return whether the entry exists and is complete. verify: check its checksum, too."""
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
        """Return the size of an entry on disk in bytes, or 0 if it does not exist."""
        try:
            return self.path(key).stat().st_size
        except OSError:
            return 0


def _checksum(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
