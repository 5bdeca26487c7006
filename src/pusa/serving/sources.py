"""Turns what a request names (parts of its form, addresses, earlier videos) into files of the new video.

Every file of a client is opened in a process of its own before it is accepted. A clip that this server made is linked
with its latents, so that a continuation starts from them and not from the decoded pixels, and so that the new video
does not depend on the old one staying.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.generation.outputs import latents_path
from pusa.serving.addresses import fetch
from pusa.serving.field_values import FieldError
from pusa.serving.fields import Source
from pusa.serving.folders import CLIP, SOURCES, Folders, is_id, is_source
from pusa.serving.inspection import UploadLimits, inspect
from pusa.serving.store import Store

_SUFFIXES = {"image": ".png", "video": ".mp4"}


@dataclass(frozen=True)
class Part:
    """A file of a form: where it was received, and how the client calls it."""

    path: Path
    filename: str


@dataclass(frozen=True)
class Opened:
    """A source as a file of the new video.

    name: its name there. label: what messages call it. about: for the API. notes: what its reading has changed.
    """

    name: str
    path: Path
    label: str
    about: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ "image" or "video"."""
        return str(self.about["kind"])


class Receiver:
    """Opens the sources of the requests of one key."""

    def __init__(self, store: Store, folders: Folders, limits: UploadLimits, *, addresses: bool) -> None:
        self.store, self.folders, self.limits, self.addresses = store, folders, limits, addresses

    def open(
        self, sources: Sequence[Source], parts: Mapping[str, Part], owner: str, received: Path
    ) -> dict[Source, Opened]:
        """Put every source into `received`/sources. Raises FieldError for the first that cannot be used."""
        opened: dict[Source, Opened] = {}
        for number, source in enumerate(sources):
            try:
                one = self._open(source, parts, owner, received, f"source_{number}")
            except FieldError:
                raise
            except InputError as error:
                raise FieldError(str(error), source.param) from error
            if source.role != "either" and one.kind != {"picture": "image", "video": "video"}[source.role]:
                wanted = "a picture" if source.role == "picture" else "a video"
                given = "a picture" if one.kind == "image" else "a video"
                raise FieldError(
                    f"{source.param} takes {wanted}, and {one.label} is {given}: give {wanted}.", source.param
                )
            opened[source] = one
        if unused := set(parts) - {source.part for source in sources}:
            name = sorted(unused)[0]
            raise FieldError(f"No field names the file {name!r}: name it in a condition, or leave it out.", name)
        return opened

    def _open(self, source: Source, parts: Mapping[str, Part], owner: str, received: Path, name: str) -> Opened:
        if source.part:
            part = parts[source.part]
            return self._inspected(part.path, part.filename or source.part, name, received)
        if source.text:
            path = received / f"{name}.received"
            fetch(source.text, path, self.limits, allowed=self.addresses)
            label = f"the file in {source.param}" if source.text[:5].lower() == "data:" else source.text[:100]
            return self._inspected(path, label, name, received)
        if source.of:
            return self._again(source, owner, received, name)
        return self._made(source, owner, received, name)

    def _inspected(self, path: Path, label: str, name: str, received: Path) -> Opened:
        held = path.rename(path.with_name(name))
        found = inspect(held, received, self.limits, label)
        file = received / SOURCES / f"{name}{_SUFFIXES[found.kind]}"
        found.path.rename(file)
        about = {"kind": found.kind, "filename": label, "width": found.width, "height": found.height}
        about |= {"frames": found.frames, "fps": found.fps, "file": file.name}
        return Opened(name, file, label, about, found.notes)

    def _again(self, source: Source, owner: str, received: Path, name: str) -> Opened:
        """A source of another video."""
        video = self.store.get(source.of, owner) if is_id(source.of) else None
        if video is None or not is_source(source.name) or source.name not in video.sources:
            raise FieldError(
                f"{source.param}: there is no source {source.name[:60]!r} of {source.of[:60]!r}: check both names.",
                source.param,
            )
        about = dict(video.sources[source.name])
        old = self.folders.folder(source.of, SOURCES) / about["file"]
        file = received / SOURCES / f"{name}{old.suffix}"
        _link_clip(old, file)
        return Opened(name, file, about["filename"], about | {"file": file.name})

    def _made(self, source: Source, owner: str, received: Path, name: str) -> Opened:
        """A video of this server, or one frame of it."""
        video = self.store.get(source.video, owner) if is_id(source.video) else None
        if video is None:
            raise FieldError(f"{source.param}: there is no video {source.video[:60]!r}: check the id.", source.param)
        if video.status != "completed":
            raise FieldError(f"{source.param}: {video.id} is {video.status}: wait until it is completed.", source.param)
        clip = self.folders.folder(video.id, video.result) / CLIP
        about = {"kind": "video", "filename": video.id, "video": video.id, "width": video.shown["width"]}
        about |= {"height": video.shown["height"], "frames": video.shown["frames"], "fps": video.shown["fps"]}
        if source.frame is None:
            file = received / SOURCES / f"{name}.mp4"
            _link_clip(clip, file)
            return Opened(name, file, video.id, about | {"file": file.name})
        if not -about["frames"] <= source.frame < about["frames"]:
            raise FieldError(
                f"{source.param}: frame {source.frame} is outside {video.id}, which has {about['frames']} frames.",
                source.param,
            )
        from pusa.media.images import write_image
        from pusa.media.videos import read_every_frame

        file = received / SOURCES / f"{name}.png"
        write_image(file, read_every_frame(clip)[source.frame])
        about |= {"kind": "image", "frame": source.frame, "file": file.name}
        return Opened(name, file, f"frame {source.frame} of {video.id}", about)


def _link_clip(old: Path, new: Path) -> None:
    """Link or copy a picture, or a clip with its latents if it has them."""
    for source, target in ((old, new), (latents_path(old), latents_path(new))):
        if not source.exists():
            continue
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
