"""Fetch the files of a hub repository, each checked against the hash that names it.

huggingface_hub does the work: it goes on where a connection broke, keeps the files that are complete, and obeys
HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN. It compares sizes but no hashes, so that is done here, for new files.
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pusa.errors import InputError

_FILE = re.compile(r"(?P<hub_id>[\w-][\w.-]*/[\w-][\w.-]*)/(?P<path>.+\.(?:safetensors|pt|pth|bin))")


def names_a_file(text: str) -> bool:
    """Whether a text has the form OWNER/REPOSITORY/FILE, with a file of weights; a path may have it too."""
    return _FILE.fullmatch(text) is not None


def file(text: str) -> Path:
    """The file OWNER/REPOSITORY/FILE, downloaded unless it is there; InputError as for `snapshot`, or without one."""
    match = _FILE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is no file of a hub repository: write OWNER/REPOSITORY/FILE.safetensors.")
    path = snapshot(match["hub_id"], [match["path"]]) / match["path"]
    if not path.is_file():
        raise InputError(f"{match['hub_id']} has no file {match['path']}: check the name.")
    return path


def snapshot(hub_id: str, patterns: Sequence[str]) -> Path:
    """The folder with those files of a repository that fit one of the patterns, downloaded unless they are there.

    Raises InputError when there is no such repository, it may not be read, the hub cannot be reached and not all of it
    is here, or a file arrived damaged (which is then removed).
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    cache = Path(constants.HF_HUB_CACHE)
    before = _blobs(cache, hub_id)
    broken: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, *_broken_connections())
    place = constants.ENDPOINT.removeprefix("https://")
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise InputError(f"{hub_id} is gated: accept its terms on {place} and log in with `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no model {hub_id!r} on {place} and no folder of that name; if it is private, log in with "
            "`hf auth login`."
        ) from error
    except IncompleteSnapshotError as error:
        raise InputError(
            f"{hub_id} is only partly in the local cache, and {place} cannot be reached: connect and run this again."
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{hub_id} is neither a folder nor in the local cache, and {place} cannot be reached: connect, or give the "
            "path of a folder."
        ) from error
    except HFValidationError as error:
        raise InputError(f"There is no folder {hub_id} and no hub id can look like that; check it.") from error
    except broken as error:
        said = str(error).strip() or type(error).__name__
        raise InputError(
            f"{hub_id} could not be downloaded ({said.splitlines()[0].rstrip('.')}): run this again; files that are "
            "complete are kept."
        ) from error
    _verify(hub_id, folder, _blobs(cache, hub_id) - before)
    return folder


def _broken_connections() -> tuple[type[Exception], ...]:
    """What the HTTP library of huggingface_hub raises, which is no OSError."""
    from huggingface_hub.utils import _http

    for name in ("httpx2", "httpx"):
        if library := getattr(_http, name, None):
            return (library.HTTPError,)
    return ()


def _blobs(cache: Path, hub_id: str) -> set[Path]:
    """The complete files of a repository in the cache, named by their hashes."""
    folder = cache / f"models--{hub_id.replace('/', '--')}" / "blobs"
    return {path for path in folder.glob("*") if path.suffix != ".incomplete"} if folder.is_dir() else set()


def _verify(hub_id: str, folder: Path, blobs: set[Path]) -> None:
    """Remove the files that are not what their names say, and raise InputError if there were any."""
    links = {path.resolve(): path for path in folder.rglob("*") if path.is_file()}
    for blob in sorted(blobs):
        if _is_what_it_is_called(blob):
            continue
        link = links.get(blob.resolve())
        name = blob.name if link is None else link.relative_to(folder).as_posix()
        if link is not None:
            link.unlink()
        blob.unlink()
        raise InputError(f"{name} of {hub_id} arrived damaged (its hash is wrong) and was removed: run this again.")


def _is_what_it_is_called(blob: Path) -> bool:
    """Whether a file has the sha256 (of its bytes) or the sha1 (as git computes it) that its name is."""
    name = blob.name
    if len(name) == 64:
        digest = hashlib.sha256()
    elif len(name) == 40:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return True
    with blob.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest() == name
