"""Where the files of the videos are.

    FOLDER/videos/<id>/sources/source_0.png …     what a video is made from; clips with their latents
    FOLDER/videos/<id>/<attempt>/clip.mp4 …       what an attempt made: the clip, its sidecar, its latents, two pictures
    FOLDER/incoming/<token>/                      what is being received
    FOLDER/locks/, FOLDER/pusa.sqlite             of processes of this machine; the database, unless it is PostgreSQL

Servers on several machines share the folder, or each has its own and all share an address of fsspec, such as
s3://bucket/pusa. Then what is made or received goes to the address, and is copied from there when it is needed. An id
is checked before it becomes a part of a path.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pusa.errors import InputError
from pusa.files import make_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SOURCES = "sources"
"""the folder of what a video is made from"""
CLIP, THUMBNAIL, SPRITESHEET = "clip.mp4", "thumbnail.webp", "spritesheet.jpg"
ABANDONED = 3600.0
"""seconds after which received files without a video are removed"""
_ID = re.compile(r"video_[0-9a-f]{32}")
_NAME = re.compile(r"source_\d{1,3}")


def new_id() -> str:
    """An id that cannot be guessed."""
    return f"video_{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _ID.fullmatch(text) is not None


def is_source(text: str) -> bool:
    """Whether a text has the form of a source's name."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Folders:
    """The files below `root`. shared: an address of fsspec that has the files of all servers; None is `root` itself."""

    root: Path
    shared: str | None = None

    def make(self) -> None:
        """Make the folders. Raises InputError if they cannot be made, or if the address cannot be used."""
        for folder in (self.videos, self.incoming, self.locks):
            make_folder(folder, "the server's files")
        if self.shared is not None:
            try:
                files, place = self._address
                files.makedirs(place, exist_ok=True)
            except (ImportError, OSError, ValueError) as error:
                raise InputError(f"--results {self.shared}: the address cannot be used ({error}); check it.") from None

    @cached_property
    def _address(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        files, place = url_to_fs(self.shared)
        return files, place.rstrip("/")

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def database(self) -> str:
        """The address of the database of a server on one machine."""
        return f"sqlite:///{(self.root / 'pusa.sqlite').absolute()}"

    def of(self, video: str) -> Path:
        """The folder of a video."""
        assert is_id(video)
        return self.videos / video

    def folder(self, video: str, name: str) -> Path:
        """A folder of a video: SOURCES, or an attempt. It is copied from the shared address if it is not here."""
        here = self.of(video) / name
        if self.shared is not None and not here.is_dir():
            files, place = self._address
            part = self.of(video) / f".{name}-{secrets.token_hex(4)}"
            part.mkdir(parents=True)
            try:
                for file in files.ls(f"{place}/{video}/{name}", detail=False):
                    files.get_file(file, str(part / Path(file).name))
                part.rename(here)
            except FileNotFoundError:  # it has no files, or never was there
                part.rename(here)
            except OSError:
                if not here.is_dir():  # no other process has copied it meanwhile
                    raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return here

    def publish(self, video: str, name: str) -> None:
        """Copy a folder of a video to the shared address, if there is one."""
        if self.shared is not None:
            files, place = self._address
            for file in (self.of(video) / name).iterdir():
                files.makedirs(f"{place}/{video}/{name}", exist_ok=True)
                files.put_file(str(file), f"{place}/{video}/{name}/{file.name}")

    def receive(self) -> Path:
        """A new folder for what is being received."""
        folder = self.incoming / secrets.token_hex(8)
        (folder / SOURCES).mkdir(parents=True)
        return folder

    def accept(self, received: Path, video: str) -> None:
        """Make received sources those of a video."""
        self.of(video).mkdir(parents=True)
        (received / SOURCES).rename(self.of(video) / SOURCES)
        self.publish(video, SOURCES)

    def keep_only(self, video: str, attempt: str) -> None:
        """Remove what other attempts left."""
        for left in self.of(video).iterdir():
            if left.name not in (SOURCES, attempt):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def remove(self, video: str) -> None:
        """Remove all files of a video. A file that is being sent stays readable for its reader."""
        shutil.rmtree(self.of(video), ignore_errors=True)
        if self.shared is not None:
            files, place = self._address
            with suppress(FileNotFoundError):
                files.rm(f"{place}/{video}", recursive=True)

    def sweep(self, known: Container[str]) -> None:
        """Remove what was received and never became a video, and videos without a record. known: ids with a record."""
        now = time.time()
        for folder in (*self.incoming.iterdir(), *(each for each in self.videos.iterdir() if each.name not in known)):
            try:
                if abs(now - folder.stat().st_mtime) > ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:
                continue


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
