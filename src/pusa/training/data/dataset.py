"""Which clips and captions a source holds. Only names and texts are read here; `clips` opens the files.

Four layouts are recognised without being told, and a dataset on the Hugging Face hub is downloaded and read as one:

1. a table beside the clips: metadata.csv, .jsonl or .json (or dataset.*), with one row per clip in the columns
   `file_name,text`, `video,prompt`, `video_path,caption` or `media_path,caption`;
2. videos.txt and prompts.txt, line by line;
3. clips and pictures in folders, each with a .txt of the same name beside it;
4. `*.tensors.pth`, latents and context as the official Pusa training caches them.

Whatever is found and not used becomes a `Problem` that names it: nothing is skipped unsaid.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pusa.errors import InputError
from pusa.training.data import tables
from pusa.training.data.tables import read_text
from pusa.video_probe import MOVIES, STILLS

READY = ".tensors.pth"
"""What the official training's cache files end in."""
_TABLES = tuple(f"{stem}.{kind}" for stem in ("metadata", "dataset") for kind in ("csv", "jsonl", "json"))
_LISTS = ("videos.txt", "prompts.txt")
_COMPANIONS = {"readme", "license", "licence", "notice", "dataset_infos", "dataset_info", "changelog", "thumbs"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Entry:
    """A clip or picture and its caption (None if it has none). where: the file and line that say so."""

    path: Path
    caption: str | None
    where: str


@dataclass(frozen=True)
class Problem:
    """Something that is not used, and why.

    kind: unreadable, truncated, too-short, too-small, duplicate, no-caption, missing, or unused (no clip at all).
    reason: goes on from the path, without a full stop.
    """

    path: Path | str
    kind: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a source holds. layout: in words, for people."""

    source: str
    layout: str
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


@dataclass
class _Found:
    """A listing in the making. hub: whether the files were downloaded, and must then stay within their folder."""

    folder: Path
    hub: bool = False
    entries: dict[Path, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path | str, kind: str, reason: str) -> None:
        self.problems.append(Problem(path, kind, reason))

    def add(self, path: Path, caption: str | None, where: str, lack: str) -> None:
        """Enter a clip once; `lack` says what is wrong when there is no caption."""
        first = self.entries.get(path)
        if first:
            other = "" if first.caption == caption else ", with another caption"
            self.problem(path, "duplicate", f"is named again in {where}{other}; it was in {first.where} first")
            return
        caption = caption.strip() if caption else None
        self.entries[path] = Entry(path, caption or None, where)
        if not caption and not is_ready(path):
            self.problem(path, "no-caption", lack)


def is_ready(path: Path) -> bool:
    """Whether a file holds latents and context of the official cache rather than pictures."""
    return path.name.lower().endswith(READY)


def find(source: str | Path) -> Listing:
    """List the clips and captions of a folder, a table, or a dataset's hub id (which is downloaded).

    Raises InputError when there is no such source, when a table cannot be read as one, or when nothing in it is a clip.
    """
    text = str(source)
    if not text:
        raise InputError("the path of the clips is empty; give a folder of clips, or the hub id of a dataset")
    path = Path(source).expanduser()
    if path.is_dir():
        return _list(text, _Found(path.absolute()))
    if path.is_file():
        if path.name in _LISTS:
            return _list(text, _Found(path.absolute().parent))
        if path.suffix.lower() not in (".csv", ".jsonl", ".json"):
            raise InputError(f"{text} is one file; give its folder, or a table of clips (.csv, .jsonl or .json)")
        found = _Found(path.absolute().parent)
        return _from_tables(text, found, [path.absolute()], _walk(found))
    if isinstance(source, str) and _HUB_ID.fullmatch(text):
        return _list(text, _Found(_download(text), hub=True))
    raise InputError(f"there is no folder {text}; give a folder of clips, or the hub id of a dataset (owner/name)")


def _download(hub_id: str) -> Path:
    """Fetch the clips, captions and tables of a dataset on the hub, or take them from the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    suffixes = sorted({*MOVIES, *STILLS, ".txt", ".csv", ".jsonl", ".json", ".pth"})
    patterns = [f"*{suffix}" for lower in suffixes for suffix in (lower, lower.upper())]
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except GatedRepoError as error:
        raise InputError(f"{hub_id} is gated: accept its terms on huggingface.co, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"there is no folder {hub_id} here and no dataset {hub_id} on huggingface.co") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{hub_id} is neither a folder nor in the local cache, and huggingface.co cannot be reached: connect, or "
            "give the path of a folder"
        ) from error
    except HFValidationError as error:
        raise InputError(f"there is no folder {hub_id}, and no hub id can look like that; check it") from error
    except OSError as error:
        raise InputError(f"{hub_id} could not be downloaded ({str(error).splitlines()[0]}); try again") from error


def _list(source: str, found: _Found) -> Listing:
    files = _walk(found)
    named = [path for path in files if path.name.lower() in _TABLES]
    top = min((len(path.parts) for path in named), default=0)
    named = [path for path in named if len(path.parts) == top]
    if named and len({path.parent for path in named}) == len(named):
        return _from_tables(source, found, named, files)
    if named:
        names = " and ".join(str(path.relative_to(found.folder)) for path in named)
        raise InputError(f"{source} has several tables of clips ({names}); give the one that is meant")
    lists = {path.name.lower(): path for path in files if path.parent == found.folder and path.name.lower() in _LISTS}
    if len(lists) == 2:
        return _from_lists(source, found, lists, files)
    if lists and not any(_is_clip(path) for path in files):
        (name,) = lists
        other = next(other for other in _LISTS if other != name)
        raise InputError(f"{source} has a {name} without {other} beside it; add it, with one line per clip")
    return _from_folder(source, found, files)


def _walk(found: _Found) -> list[Path]:
    """Every file below the folder, in order; hidden ones are not looked at, a folder is entered once."""
    files: list[Path] = []
    entered: dict[tuple[int, int], Path] = {}
    pending = [found.folder]
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            first = entered.setdefault((status.st_dev, status.st_ino), folder)
            if first != folder:
                found.problem(folder, "unused", f"leads to {first}, which is read already")
                continue
            with os.scandir(folder) as inside:
                shown = sorted((item for item in inside if not item.name.startswith((".", "__MACOSX"))), key=_natural)
        except OSError as error:
            found.problem(folder, "unreadable", f"cannot be opened ({error.strerror}); change its permissions")
            continue
        folders = [Path(item.path) for item in shown if _is_folder(item)]
        files += [Path(item.path) for item in shown if not _is_folder(item)]
        pending += reversed(folders)
    return files


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _natural(item: os.DirEntry[str]) -> list[tuple[int, str]]:
    """clip2 before clip10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", item.name.lower())]


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in MOVIES | STILLS or is_ready(path)


def _listing(source: str, layout: str, found: _Found, files: list[Path], known: set[Path], why: str) -> Listing:
    """Name what is left over, and refuse a source without a clip."""
    texts = {entry.path.with_suffix(".txt") for entry in found.entries.values()}
    for path in files:
        if path in known or path in found.entries or path in texts:
            continue
        if path.name.lower().endswith(READY) and path.with_name(path.name[: -len(READY)]) in found.entries:
            found.problem(path, "unused", "is the official cache of a clip that is read itself")
        elif _is_clip(path):
            found.problem(path, "unused", why)
        elif path.stem.lower() not in _COMPANIONS and path.suffix.lower() != ".md":
            found.problem(path, "unused", "is a text without a clip" if path.suffix == ".txt" else "is no clip")
    if not found.entries:
        named = [problem for problem in found.problems if problem.kind != "unused"]
        if named:
            raise InputError(
                f"{source} has no clip that is there; the first that is not: {named[0].path} {named[0].reason}"
            )
        held = f"holds no clips, only {_kinds(files)}" if files else "holds no files"
        raise InputError(
            f"{source} {held}; put .mp4, .mov, .webm, .gif, .png or .jpg files there, each with a .txt of the same name"
        )
    return Listing(source, layout, tuple(found.entries.values()), tuple(found.problems))


def _kinds(files: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or path.name for path in files).most_common(4)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts)


def _from_folder(source: str, found: _Found, files: list[Path]) -> Listing:
    clips = [path for path in files if _is_clip(path) and not is_ready(path)]
    ready = not clips
    if ready:
        clips = [path for path in files if is_ready(path)]
    names = set(files)
    for path in clips:
        text = path.with_suffix(".txt")
        text = text if text in names else path.with_suffix(".TXT")
        if text not in names:
            found.add(path, None, path.name, f"has no {path.stem}.txt beside it; write one")
            continue
        try:
            caption = read_text(text)
            found.add(path, caption, text.name, f"has an empty {text.name}; write what it shows")
        except InputError as error:
            found.add(path, None, text.name, f"has no usable caption: {error}")
    layout = "official cached tensors" if ready else "clips with a .txt of the same name"
    return _listing(source, layout, found, files, {path.with_suffix(".TXT") for path in clips}, "stands beside clips")


def _from_lists(source: str, found: _Found, lists: dict[str, Path], files: list[Path]) -> Listing:
    videos, prompts = (read_text(lists[name], f"{source}/{name}").rstrip().split("\n") for name in _LISTS)
    if len(videos) != len(prompts):
        raise InputError(
            f"{source}: videos.txt and prompts.txt have {len(videos)} and {len(prompts)} lines; give each clip one in "
            "both"
        )
    for number, (name, prompt) in enumerate(zip(videos, prompts, strict=True), 1):
        where = f"videos.txt, line {number}"
        if not name.strip():
            found.problem(where, "missing", "names no clip; remove the line from both files")
        elif (path := _resolve(found, found.folder, name.strip(), where)) is not None:
            found.add(path, prompt, where, f"has no caption: line {number} of prompts.txt is empty")
    known = set(lists.values())
    return _listing(source, "videos.txt and prompts.txt", found, files, known, "is not named in videos.txt")


def _from_tables(source: str, found: _Found, paths: list[Path], files: list[Path]) -> Listing:
    dialects: set[str] = set()
    folder = source if found.hub or Path(source).expanduser().is_dir() else os.path.dirname(source)
    for table in paths:
        label = str(table.relative_to(found.folder))
        try:
            for row in tables.rows(table, label, found.problem):
                dialects.add(row.dialect)
                path = _resolve(found, table.parent, row.name, row.where)
                if path is not None:
                    found.add(path, row.caption, row.where, row.lack)
        except InputError as error:
            raise InputError(os.path.join(folder, str(error))) from error
    names = ", ".join(str(table.relative_to(found.folder)) for table in paths[:3])
    if not found.entries and not found.problems:
        raise InputError(f"{os.path.join(folder, names)} names no clip; write a row for each")
    layout = f"{names} ({' and '.join(sorted(dialects))})"
    return _listing(source, layout, found, files, set(paths), f"is not named in {paths[0].name}")


def _resolve(found: _Found, folder: Path, name: str, where: str) -> Path | None:
    """The file that a table means, relative to its own folder or to `train/` in it; a problem if there is none."""
    given = Path(name)
    if (found.hub and given.is_absolute()) or ".." in Path(name.replace("\\", "/")).parts:
        found.problem(name, "missing", f"({where}) lies outside of the dataset; move it inside")
        return None
    places = [folder / given, folder / name.replace("\\", "/"), folder / "train" / given]
    for place in [*places, *(place.with_name(place.name + READY) for place in places)]:
        try:
            if place.is_file():
                if _is_clip(place):
                    return place
                found.problem(place, "unreadable", f"({where}) is no kind of clip or picture that is known")
                return None
        except (OSError, ValueError):
            continue
    broken = next((place for place in places if place.is_symlink()), None)
    reason = f"({where}) is a link to nothing" if broken else f"({where}) does not exist; check the name"
    found.problem(broken or places[0], "missing", reason)
    return None
