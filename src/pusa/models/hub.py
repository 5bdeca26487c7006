"""Download files of a hub repository, and check new files against their hashes.

huggingface_hub downloads: it resumes after a broken connection, keeps complete files, and follows HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE and HF_TOKEN. It compares sizes but not hashes, so hashes are compared here. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pusa.errors import InputError

_FILE = re.compile(r"(?P<hub_id>[\w-][\w.-]*/[\w-][\w.-]*)/(?P<path>.+\.(?:safetensors|pt|pth|bin))")


def names_a_file(text: str) -> bool:
    """Return whether a text has the form OWNER/REPOSITORY/FILE with a file of weights. A path may have it, too."""
    return _FILE.fullmatch(text) is not None


def file(text: str) -> Path:
    """Return the file OWNER/REPOSITORY/FILE, downloaded if necessary. Raises InputError as `snapshot` does."""
    match = _FILE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a file of a hub repository: write OWNER/REPOSITORY/FILE.safetensors.")
    path = snapshot(match["hub_id"], [match["path"]]) / match["path"]
    if not path.is_file():
        raise InputError(f"{match['hub_id']} has no file {match['path']}: check the name.")
    return path


def snapshot(hub_id: str, patterns: Sequence[str]) -> Path:
    """Return the folder with the files of a repository that match one of the patterns, downloaded if necessary.

    Raises InputError if the repository does not exist or may not be read, if files are missing and the hub cannot be
    reached, or if a downloaded file is damaged, which is then removed.
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
        raise InputError(f"{hub_id} is not a folder, and its form is not that of a hub id; check it.") from error
    except broken as error:
        reason = str(error).strip() or type(error).__name__
        raise InputError(
            f"{hub_id} could not be downloaded ({reason.splitlines()[0].rstrip('.')}): run this again; complete files "
            "are kept."
        ) from error
    _verify(hub_id, folder, _blobs(cache, hub_id) - before)
    return folder


def _broken_connections() -> tuple[type[Exception], ...]:
    """Return the base of the errors of huggingface_hub's HTTP library, which are not OSErrors."""
    # private; test_a_hub_that_does_not_answer (tests/models/test_hub.py) fails when it moves
    from huggingface_hub.utils import _http

    for name in ("httpx2", "httpx"):
        if library := getattr(_http, name, None):
            return (library.HTTPError,)
    return ()


def _blobs(cache: Path, hub_id: str) -> set[Path]:
    """Return the complete files of a repository in the cache. Their names are their hashes."""
    folder = cache / f"models--{hub_id.replace('/', '--')}" / "blobs"
    return {path for path in folder.glob("*") if path.suffix != ".incomplete"} if folder.is_dir() else set()


def _verify(hub_id: str, folder: Path, blobs: set[Path]) -> None:
    """Remove the first file whose hash is not its name, and raise InputError."""
    links = {path.resolve(): path for path in folder.rglob("*") if path.is_file()}
    for blob in sorted(blobs):
        if _has_right_hash(blob):
            continue
        link = links.get(blob.resolve())
        name = blob.name if link is None else link.relative_to(folder).as_posix()
        if link is not None:
            link.unlink()
        blob.unlink()
        raise InputError(f"{name} of {hub_id} arrived damaged (its hash is wrong) and was removed: run this again.")


def _has_right_hash(blob: Path) -> bool:
    """Return whether the name of a file is its SHA-256, or its SHA-1 as git computes it."""
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
