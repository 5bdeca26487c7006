"""The files of a saved clip, and what can be wrong with their place, found before anything is computed.

A saved clip is three files with one stem: `clip.mp4`, `clip.json` (the sidecar, with the recipe) and
`clip.latents.safetensors`. Instead of the mp4, it may be a `.gif` or `.webp`. The name `clip.png` stands for the folder
`clip` with a PNG for each frame. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from pusa.errors import InputError
from pusa.files import check_name, check_writable

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
"""of the names under which a clip can be saved"""
_FRAME = re.compile(r"\d{4,}\.png")
LONGEST_STEM = 255 - len(".latents.safetensors")
"""bytes of the longest stem of a clip, on file systems whose names have at most 255 bytes"""


def media_path(video: Path) -> Path:
    """The path of the pictures of a saved clip: its file, or for the name `clip.png` the folder `clip`."""
    return video.with_suffix("") if video.suffix == ".png" else video


def sidecar_path(video: Path) -> Path:
    """The path of the sidecar of a saved clip."""
    return video.with_suffix(".json")


def latents_path(video: Path) -> Path:
    """The path of the latents of a saved clip."""
    return video.with_suffix(".latents.safetensors")


def files_of(video: Path) -> tuple[Path, Path, Path]:
    """The three files of a saved clip."""
    return media_path(video), sidecar_path(video), latents_path(video)


def shortened(stem: str, end: str = "") -> str:
    """`stem` and `end`, joined; `stem` is cut if the names of the three files would be too long.

    stem, end: text that Python can encode as a file name.
    """
    room = LONGEST_STEM - len(end.encode("utf-8", "surrogatepass"))
    while len(stem.encode("utf-8", "surrogatepass")) > room:
        stem = stem[:-1]
    return stem + end


def check_place(video: Path, sources: Iterable[Path] = (), bytes_needed: int = 0) -> None:
    """Raise InputError if a clip cannot be saved at `video`. Nothing is written or made.

    Missing folders are no mistake, because saving makes them. Whether a clip exists there is not checked.

    sources: the files that the clip is made from. If one of them were replaced, the sidecar could not make the clip
    again, so this is a mistake. bytes_needed: what the clip needs on the disk at least.
    """
    if video.suffix not in SUFFIXES:
        raise InputError(
            f"A clip cannot be saved to {video}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )
    missing: list[str] = []
    folder = video.absolute().parent
    while not os.path.exists(folder):  # unlike `Path.exists`, this is False for a name that is too long
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"A clip cannot be saved to {video}: {folder} is a file, not a folder; write elsewhere.")
    for name in missing:
        check_writable(folder / name)
    check_name(latents_path(video.absolute()))
    place = folder / video.name if missing else video
    for file in (place, *files_of(place)[1:]):
        check_writable(file)
    if video.suffix == ".png":
        _check_folder_of_frames(media_path(video))
    written = {file.resolve() for file in files_of(video)}
    if lost := next((source for source in sources if source.resolve() in written), None):
        raise InputError(f"The clip would replace {lost}, from which it is made: write it to another place.")
    if (free := shutil.disk_usage(folder).free) < bytes_needed:
        raise InputError(
            f"A clip cannot be saved to {video}: it needs {bytes_needed / 1e6:,.1f} MB or more, and the disk has "
            f"{free / 1e6:,.1f} MB left; free some space or write elsewhere."
        )


def _check_folder_of_frames(folder: Path) -> None:
    """Raise InputError if the folder is a file, or has files that are no frames and would be lost."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The frames cannot be saved to {folder}, which is a file: write them to another place.")
    if folder.is_dir() and (other := next((p for p in sorted(folder.iterdir()) if not _FRAME.fullmatch(p.name)), None)):
        raise InputError(
            f"The frames cannot be saved to {folder}, which has {other.name}: write them to another place."
        )
