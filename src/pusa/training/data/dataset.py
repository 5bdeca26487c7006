"""Find the clips and captions of a source. This module reads names and texts only; `samples` opens the clips.

A source is a folder, a table, or the id of a dataset on the Hugging Face hub, which is downloaded into a folder. The
layout of a folder is detected:

1. a table: metadata.csv, .tsv, .jsonl or .json (or dataset.*), with one row for each clip in the columns
   `file_name,text`, `video,prompt`, `video_path,caption` or `media_path,caption`;
2. videos.txt and prompts.txt, with one line for each clip;
3. a table with another name, if no clip has a .txt next to it;
4. clips and pictures in folders, each with a .txt of the same name next to it;
5. `*.tensors.pth`: latents and context, as the official Pusa training caches them.

Names are compared in composed form: see `files.composed`. Every file that is not used is reported as a `Problem`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pusa.errors import InputError, first_line
from pusa.files import as_stored, composed, read_text
from pusa.media.video_probe import MOVIES, STILLS
from pusa.training.data import tables

OFFICIAL_SUFFIX = ".tensors.pth"
"""The end of the names of the official training's cache files."""
_TABLES = tuple(f"{stem}{suffix}" for stem in ("metadata", "dataset") for suffix in tables.SUFFIXES)
MOST_TABLES = 50
"""If a folder has more files that could be tables, they are something else, such as a sidecar of each clip."""
_LISTS = ("videos.txt", "prompts.txt")
_COMPANIONS = {"readme", "license", "licence", "notice", "dataset_infos", "dataset_info", "changelog", "thumbs"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Entry:
    """A clip or picture.

    captions: usually one; several are variants of each other, and none is empty. where: the file and line that name it.
    bad: whether it has a caption that cannot be read.
    """

    path: Path
    captions: tuple[str, ...]
    where: str
    bad: bool = False

    @property
    def caption(self) -> str | None:
        """The first caption, or None."""
        return self.captions[0] if self.captions else None


@dataclass(frozen=True)
class Problem:
    """A file that is not used, and the reason.

    path: the file, or the place in a table. kind: unreadable, truncated, too-short, too-small, duplicate, no-caption,
    missing, changed, or unused (not a clip, or not listed). reason: the rest of a sentence that begins with the path,
    without a full stop.
    """

    path: Path | str
    kind: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The contents of a source. layout: a description of its layout, for messages."""

    source: str
    layout: str
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


@dataclass
class _ListingBuilder:
    """Collects the entries and problems of a listing.

    hub: whether the folder was downloaded from the hub. Its tables then cannot name files outside the folder.
    variants: whether the lines of a caption, and the rows of a clip, are variants of its caption. names: every file
    below the folder by its path in composed form.
    """

    folder: Path
    hub: bool = False
    variants: bool = False
    entries: dict[Path, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    names: dict[str, Path] = field(default_factory=dict)

    def problem(self, path: Path | str, kind: str, reason: str) -> None:
        self.problems.append(Problem(path, kind, reason))

    def add(self, path: Path, texts: Sequence[str], where: str, no_caption: str, *, bad: bool = False) -> None:
        """Add a clip. Of several rows for one clip, the first one with a caption is used, or all if they are variants.

        texts: its captions; empty ones do not count. no_caption: the reason of the problem if none is left. bad:
        whether a caption exists that cannot be read.
        """
        split = (line for text in texts for line in (text.split("\n") if self.variants else [text]))
        captions = tuple(dict.fromkeys(text.strip() for text in split if text.strip()))
        first = self.entries.get(path)
        if first and captions and self.variants:
            captions = tuple(dict.fromkeys((*first.captions, *captions)))
        elif first and (first.captions or not captions):
            other = ", with another caption" if captions and first.captions != captions else ""
            self.problem(path, "duplicate", f"is listed in {first.where} and again in {where}{other}")
            return
        elif first:
            reason = f"is listed in {first.where} without a caption and again in {where}, whose caption is used"
            self.problem(path, "duplicate", reason)
        if first:
            self.problems = [one for one in self.problems if one.path != path or one.kind != "no-caption"]
        self.entries[path] = Entry(path, captions, first.where if first and first.captions else where, bad)
        if not captions and not is_official_cache(path):
            self.problem(path, "no-caption", no_caption)

    def stored(self, path: Path) -> Path | None:
        """Return the file with this name, also in another Unicode form; None if there is none."""
        if path.is_file():
            return path
        found = self.names.get(composed(path))
        return found if found and found.is_file() else None


def is_official_cache(path: Path) -> bool:
    """Return whether a file is a cache file of the official training, which contains latents and a context."""
    return path.name.lower().endswith(OFFICIAL_SUFFIX)


def check_place(source: str | Path) -> None:
    """Raise the error of `find` for a source that is neither a folder, a file nor a hub id. Nothing is read."""
    text = str(source)
    path = as_stored(Path(source).expanduser())
    if text and not path.is_dir() and not path.is_file() and not (isinstance(source, str) and _HUB_ID.fullmatch(text)):
        raise _missing(text)


def _missing(text: str) -> InputError:
    return InputError(f"there is no folder {text}; give a folder of clips, or the hub id of a dataset (owner/name)")


def find(source: str | Path, *, variants: bool = False) -> Listing:
    """List the clips and captions of a folder, a table, or a dataset on the hub, which is downloaded.

    variants: the lines of a caption, and several rows of a clip, are variants of its caption. A JSON list of captions
    always is. Raises InputError if the source does not exist, if its table cannot be read, or if it has no clip.
    """
    text = str(source)
    if not text:
        raise InputError("the path of the clips is empty; give a folder of clips, or the hub id of a dataset")
    path = as_stored(Path(source).expanduser())
    if path.is_dir():
        return _list(text, _ListingBuilder(path.absolute(), variants=variants))
    if path.is_file():
        if path.name in _LISTS:
            return _list(text, _ListingBuilder(path.absolute().parent, variants=variants))
        if path.suffix.lower() not in tables.SUFFIXES:
            raise InputError(f"{text} is a single file; give its folder, or a table of clips ({tables.KINDS})")
        found = _ListingBuilder(path.absolute().parent, variants=variants)
        return _from_tables(text, found, [path.absolute()], _walk(found))
    if isinstance(source, str) and _HUB_ID.fullmatch(text):
        return _list(text, _ListingBuilder(_download(text), hub=True, variants=variants))
    raise _missing(text)


def _download(hub_id: str) -> Path:
    """Download the clips, captions and tables of a dataset, or find them in the local cache; return the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    suffixes = sorted({*MOVIES, *STILLS, *tables.SUFFIXES, ".txt", ".pth"})
    patterns = [f"*{suffix}" for lower in suffixes for suffix in (lower, lower.upper())]
    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except GatedRepoError as error:
        raise InputError(f"{hub_id} is gated: accept its terms on huggingface.co, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is neither a folder {hub_id} nor a dataset {hub_id} on huggingface.co; check the name"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{hub_id} is neither a folder nor in the local cache, and huggingface.co cannot be reached: connect to "
            "the internet, or give the path of a folder"
        ) from error
    except HFValidationError as error:
        raise InputError(f"there is no folder {hub_id}, and it is not a valid hub id; check the name") from error
    except OSError as error:
        raise InputError(f"{hub_id} cannot be downloaded ({first_line(error)}); try again") from error


def _list(source: str, found: _ListingBuilder) -> Listing:
    files = _walk(found)
    named = [path for path in files if path.name.lower() in _TABLES]
    if named:
        return _from_top_tables(source, found, named, files)
    lists = {path.name.lower(): path for path in files if path.parent == found.folder and path.name.lower() in _LISTS}
    if len(lists) == 2:
        return _from_lists(source, found, lists, files)
    if lists and not any(_is_clip(path) for path in files):
        (name,) = lists
        other = next(other for other in _LISTS if other != name)
        raise InputError(f"{source} has a {name} but no {other}; add it, with one line for each clip")
    others = [path for path in files if path.suffix.lower() in tables.SUFFIXES]
    others = others if len(others) <= MOST_TABLES else []
    usable = [path for path in others if tables.lists_clips(path)]
    if usable and not any(_is_clip(path) and _text_of(found, path) for path in files):
        return _from_top_tables(source, found, usable, files)
    unknown = [path for path in others if path not in usable and path.suffix.lower() != ".json"]
    return _from_folder(source, found, files, usable, unknown)


def _from_top_tables(source: str, found: _ListingBuilder, named: list[Path], files: list[Path]) -> Listing:
    """List the clips of the tables that lie highest. Raises InputError if two of them are in the same folder."""
    top = min(len(path.parts) for path in named)
    named = [path for path in named if len(path.parts) == top]
    if len({path.parent for path in named}) == len(named):
        return _from_tables(source, found, named, files)
    names = " and ".join(str(path.relative_to(found.folder)) for path in named)
    raise InputError(f"{source} has several tables of clips ({names}); give the path of one of them")


def _text_of(found: _ListingBuilder, clip: Path) -> Path | None:
    """Return the caption file next to a clip, or None."""
    names = (composed(clip.with_suffix(suffix)) for suffix in (".txt", ".TXT"))
    return next((found.names[name] for name in names if name in found.names), None)


def _walk(found: _ListingBuilder) -> list[Path]:
    """Return every file below the folder, in natural order. Hidden files are skipped; no folder is read twice."""
    files: list[Path] = []
    visited: dict[tuple[int, int], Path] = {}
    pending = [found.folder]
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            first = visited.setdefault((status.st_dev, status.st_ino), folder)
            if first != folder:
                found.problem(folder, "unused", f"is a link to {first}, which is read already")
                continue
            with os.scandir(folder) as items:
                visible = sorted((item for item in items if not item.name.startswith((".", "__MACOSX"))), key=_natural)
        except OSError as error:
            found.problem(folder, "unreadable", f"cannot be opened ({error.strerror}); change its permissions")
            continue
        folders = [Path(item.path) for item in visible if _is_folder(item)]
        files += [Path(item.path) for item in visible if not _is_folder(item)]
        pending += reversed(folders)
    for path in files:
        found.names.setdefault(composed(path), path)
    return files


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _natural(item: os.DirEntry[str]) -> list[tuple[int, str]]:
    """Return a sort key that puts clip2 before clip10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", item.name.lower())]


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in MOVIES | STILLS or is_official_cache(path)


def _listing(
    source: str, layout: str, found: _ListingBuilder, files: list[Path], known: set[Path], unlisted: str
) -> Listing:
    """Report unused files and return the listing. Raises InputError if there is no clip.

    known: files that need no report. unlisted: the reason for clips that are not listed.
    """
    texts = {_text_of(found, path) for path in found.entries}
    for path in files:
        if path in known or path in found.entries or path in texts:
            continue
        if (
            path.name.lower().endswith(OFFICIAL_SUFFIX)
            and path.with_name(path.name[: -len(OFFICIAL_SUFFIX)]) in found.entries
        ):
            found.problem(path, "unused", "is the official cache of a clip that exists, too; the clip is used")
        elif _is_clip(path):
            found.problem(path, "unused", unlisted)
        elif path.stem.lower() not in _COMPANIONS and path.suffix.lower() != ".md":
            found.problem(path, "unused", "is a text without a clip" if path.suffix == ".txt" else "is not a clip")
    if not found.entries:
        problems = [problem for problem in found.problems if problem.kind != "unused"]
        if problems:
            raise InputError(f"{source} has no usable clip; the first problem: {problems[0].path} {problems[0].reason}")
        contents = f"contains no clips, only {_kinds(files)}" if files else "contains no files"
        raise InputError(
            f"{source} {contents}; add .mp4, .mov, .webm, .gif, .png or .jpg files, each with a .txt of the same name"
        )
    return Listing(source, layout, tuple(found.entries.values()), tuple(found.problems))


def _kinds(files: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or path.name for path in files).most_common(4)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts)


def _from_folder(
    source: str, found: _ListingBuilder, files: list[Path], unused: list[Path], unknown: list[Path]
) -> Listing:
    """List clips by the texts next to them.

    unused: tables of clips that are not read because there are such texts. unknown: tables of something else.
    """
    clips = [path for path in files if _is_clip(path) and not is_official_cache(path)]
    only_caches = not clips
    if only_caches:
        clips = [path for path in files if is_official_cache(path)]
    remedy = "write one"
    if unknown and not any(_text_of(found, path) for path in clips):
        remedy += f", or {tables.remedy(unknown[0])}"
    for path in clips:
        text = _text_of(found, path)
        if text is None:
            found.add(path, (), path.name, f"has no caption file {path.stem}.txt; {remedy}")
            continue
        try:
            caption = read_text(text)
            found.add(path, [caption], text.name, f"has an empty {text.name}; write what the clip shows")
        except InputError as error:
            found.add(path, (), text.name, f"has no usable caption: {error}", bad=True)
    for path in unused:
        place = os.path.join(source, path.relative_to(found.folder))
        reason = f"is a table of clips, but clips have .txt files; to use it, give {place}"
        found.problem(path, "unused", reason)
    layout = "official cached tensors" if only_caches else "clips with a .txt of the same name"
    return _listing(source, layout, found, files, set(unused), "is not used, because the folder contains clips")


def _from_lists(source: str, found: _ListingBuilder, lists: dict[str, Path], files: list[Path]) -> Listing:
    videos, prompts = (read_text(lists[name], f"{source}/{name}").rstrip().split("\n") for name in _LISTS)
    if len(videos) != len(prompts):
        raise InputError(
            f"{source}: videos.txt has {len(videos)} lines and prompts.txt has {len(prompts)}; write one line for each "
            "clip in both files"
        )
    for number, (name, prompt) in enumerate(zip(videos, prompts, strict=True), 1):
        where = f"videos.txt, line {number}"
        if not name.strip():
            found.problem(where, "missing", "is empty; remove the line from both files")
        elif (path := _resolve(found, found.folder, name.strip(), where)) is not None:
            found.add(path, [prompt], where, f"has no caption: line {number} of prompts.txt is empty")
    known = set(lists.values())
    return _listing(source, "videos.txt and prompts.txt", found, files, known, "is not listed in videos.txt")


def _from_tables(source: str, found: _ListingBuilder, paths: list[Path], files: list[Path]) -> Listing:
    dialects: set[str] = set()
    folder = source if found.hub or Path(source).expanduser().is_dir() else os.path.dirname(source)
    for table in paths:
        label = str(table.relative_to(found.folder))
        try:
            for row in tables.rows(table, label, found.problem):
                dialects.add(row.dialect)
                path = _resolve(found, table.parent, row.name, row.where)
                if path is not None:
                    found.add(path, row.captions, row.where, row.no_caption, bad=row.bad)
        except InputError as error:
            raise InputError(os.path.join(folder, str(error))) from error
    names = ", ".join(str(table.relative_to(found.folder)) for table in paths[:3])
    if not found.entries and not found.problems:
        raise InputError(f"{os.path.join(folder, names)} lists no clip; write a row for each clip")
    layout = f"{names} ({' and '.join(sorted(dialects))})"
    return _listing(source, layout, found, files, set(paths), f"is not listed in {paths[0].name}")


def _resolve(found: _ListingBuilder, folder: Path, name: str, where: str) -> Path | None:
    """Return the file that a table names, relative to `folder` or to `train/` in it.

    If there is no such file, report a problem and return None.
    """
    given = Path(name)
    if (found.hub and given.is_absolute()) or ".." in Path(name.replace("\\", "/")).parts:
        found.problem(name, "missing", f"({where}) is outside the dataset; move it into the dataset")
        return None
    places = [folder / given, folder / name.replace("\\", "/"), folder / "train" / given]
    for place in [*places, *(place.with_name(place.name + OFFICIAL_SUFFIX) for place in places)]:
        try:
            stored = found.stored(place)
        except (OSError, ValueError):
            continue
        if stored and _is_clip(stored):
            return stored
        if stored:
            found.problem(stored, "unreadable", f"({where}) is not a known type of clip or picture")
            return None
    broken = next((place for place in places if place.is_symlink()), None)
    reason = f"({where}) is a broken link" if broken else f"({where}) does not exist; check the name"
    found.problem(broken or places[0], "missing", reason)
    return None
