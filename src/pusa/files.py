"""Read and write files, and turn what is wrong with a file into one sentence.

Writing is atomic: a new file is written next to its destination and then renamed. If writing is interrupted or fails,
the old file stays and nothing else is left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pusa.errors import InputError, PusaError

_STEM = 40
"""characters of a file's stem that the name of its part begins with"""
_SHOWN = 100
"""characters of an unusable path that a message shows"""
_ADDRESS = re.compile(r"(data):|([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
_NAME = 255
"""bytes of the longest file name on most file systems"""
_POINTER = b"version https://git-lfs.github.com/spec/"
"""the first bytes of a file that Git LFS writes in place of another one"""
_DIGIT = "\0"
_DIGITS = 8 * _DIGIT


def existing_file(path: str | Path) -> Path:
    """The path of a regular file that is not empty. Otherwise InputError says what is wrong with the path.

    Pipes and devices are refused, because reading them may never end. The name may be in another Unicode form.
    """
    path = Path(path)
    try:
        path = as_stored(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a file in it")
        if not path.exists():
            raise InputError(_no_address(path) or f"{path} does not exist; check the path")
        _refuse_streams(path)
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); save or copy it again")
        refuse_pointer(path)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        unusable = f"{_shortened(path)!r} is not a usable path ({_reason(error)}); check it"
        raise InputError(_no_address(path) or unusable) from error
    return path


def _refuse_streams(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or a device, but a file is needed; save its content as a file")


def _no_address(path: Path) -> str:
    """What is wrong with a path that is the address of a resource, such as `https://…` or `data:…`; "" for others."""
    address = _ADDRESS.match(str(path))  # which has lost its second slash
    if not address:
        return ""
    kind = address[1] or address[2]
    shown = _shortened(path).replace(":/", "://", 1)
    return f"{shown} is an address ({kind}:), but a file is needed; save it as a file, and give its path"


def _shortened(path: Path) -> str:
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}…{text[-19:]}"


def refuse_pointer(path: Path) -> None:
    """Raise InputError if the file is a pointer of Git LFS. Git leaves it in place of a large file not yet fetched."""
    if path.is_file() and path.stat().st_size < 1024:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise InputError(
                    f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder"
                )


def read_text(path: Path, name: str | None = None) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte-order mark. All line ends become newlines.

    name: the name of the file in error messages; the default is its file name. Raises InputError if it cannot be read.
    """
    name = name or path.name
    try:
        _refuse_streams(path)
        refuse_pointer(path)
        raw = path.read_bytes()
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from error
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check its permissions") from error
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
        if "\0" in text:  # UTF-16 without a byte-order mark, whose letters of ASCII are valid UTF-8
            raise UnicodeDecodeError(encoding, raw, raw.find(0), len(raw), "a zero byte")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name} is not UTF-8 text (line {line}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def composed(name: str | Path) -> str:
    """Return a name in Unicode's composed form (NFC). Two names that a reader sees as equal are equal then.

    macOS writes `é` as two characters and other systems write it as one, so copied names differ in their bytes.
    """
    return unicodedata.normalize("NFC", str(name))


def as_stored(path: Path) -> Path:
    """Return the existing path that equals `path` in composed form, or `path` itself if there is none."""
    if os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not os.path.lexists(found / part):
            try:
                part = next((name for name in os.listdir(found) if composed(name) == composed(part)), part)
            except OSError:
                return path
        found = found / part
    return found if os.path.lexists(found) else path


def unreadable(path: Path, kind: str, error: Exception) -> InputError:
    """The error to raise when `error` occurred while a file was read. kind: what it should be, such as "picture"."""
    if isinstance(error, PermissionError) and not os.access(path, os.R_OK):  # FFmpeg has other uses for the error
        return InputError(f"{path} cannot be read; change its permissions")
    return InputError(f"{path} is damaged, cut off or not a {kind} ({_reason(error)}); save or copy it again")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of a new file next to `path`, with the same suffix; it replaces `path` when the block ends.

    If the block raises an error or is interrupted (Ctrl-C), the new file is removed and `path` stays as it was. Raises
    InputError if no file can be written at `path` (missing or read-only folder, full disk), PusaError on other write
    errors.
    """
    path = Path(path)
    part = _new_beside(path)
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)  # some writers, such as safetensors, make their files private
        os.replace(part, path)
    except PusaError as error:  # the writer only knows the name `part`
        raise type(error)(str(error).replace(str(part), str(path))) from error
    except Exception as error:
        raise (_unwritable(path, system) if (system := _of_the_system(error)) else error) from error
    finally:
        _remove(part)


@contextmanager
def building(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder next to `path`; it replaces `path` when the block ends. The counterpart of `replacing`.

    Missing folders above `path` are made. If `path` exists, it must be an empty folder. Raises the errors of
    `replacing`.
    """
    path = Path(path)
    part = path.absolute().with_name(f".{path.absolute().name[:_STEM]}-{secrets.token_hex(4)}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        part.replace(path)
    except PusaError as error:
        raise type(error)(str(error).replace(str(part), str(path))) from error
    except Exception as error:
        raise (_unwritable(path, system) if (system := _of_the_system(error)) else error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder next to `path`; it replaces the folder `path`, if there is one, when the block ends.

    If the block raises an error or is interrupted, `path` stays as it was. Raises the errors of `replacing`.
    """
    path = Path(path)
    aside = path.absolute().with_name(f".{path.absolute().name[:_STEM]}-{secrets.token_hex(4)}.old")
    with building(path) as part:
        yield part
        if path.exists():
            path.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def check_writable(path: str | Path) -> None:
    """Raise now the error that `replacing` would raise at its start. Call it before long work."""
    path = Path(path)
    check_name(path)  # the new file has a short name, so making it does not detect a name that is too long
    _remove(_new_beside(path))


def check_name(path: Path) -> None:
    """Raise InputError if no file can have this path, for instance because it is too long. It need not exist."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError as error:
        raise InputError(
            f"{str(path)!r} cannot be the name of a file ({_reason(error)}); choose another name"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def part_prefix(path: Path) -> Path:
    """The start of the names of a file's parts. Files with the same prefix cannot be told apart by their parts."""
    return path.with_name(path.stem[:_STEM])


def remove_parts(path: Path) -> None:
    """Remove the parts that killed processes left of `path`, and of other files with its stem, such as a sidecar.

    Call it only while no process writes these files or another file with the same `part_prefix`.
    """
    part = f".{path.stem[:_STEM]}-{_DIGITS}.part"
    of_a_part = f".{part[:_STEM]}-{_DIGITS}.part"  # if a writer uses `replacing` on the file that it was given
    names = "|".join(re.escape(name).replace(_DIGIT, "[0-9a-f]") for name in (part, of_a_part))
    pattern = re.compile(rf"(?:{names})(?:\.\w+)?")
    with suppress(OSError):
        for file in path.parent.iterdir():
            if pattern.fullmatch(file.name):
                _remove(file)


def make_folder(folder: Path, contents: str) -> None:
    """Make a folder and the folders above it; InputError if that fails.

    contents: what the folder is for, such as "the cache".
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable_folder(folder, contents, error) from error


def unwritable_folder(folder: Path, contents: str, error: OSError) -> InputError:
    """The error to raise when `error` occurred while a file was written into a folder. contents: see `make_folder`."""
    above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            reason, advice = "the disk is full", "free some space, or "
        case errno.EACCES | errno.EPERM | errno.EROFS:
            reason, advice = f"{above} is read-only for you", ""
        case errno.EEXIST | errno.ENOTDIR:
            reason, advice = f"{above} is not a folder", ""
        case errno.ENOENT:
            reason, advice = f"no folder can be made in {above}", ""
        case _:
            reason, advice = f"{error.strerror}", ""
    return InputError(f"cannot write {contents} into {folder}: {reason}; {advice}choose another folder for it.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hex digits. Raises InputError for a pipe, which may never end."""
    _refuse_streams(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends. A line ends with a line feed, before which a carriage return may stand.

    In a text without line feeds, a carriage return ends a line, as on old Macs. `str.splitlines` splits at eight other
    characters, too, which JSON strings, prompts and CSV fields may contain.
    """
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.removesuffix(end).split(end)] if text else []


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8.

    A byte of a file name that is not UTF-8, which Python keeps as a lone surrogate, is written as `\\udcXX`. In JSON
    this is an escape, so that the name is read again as it was.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: str | Path, data: Any) -> None:
    """Write an indented JSON file. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text_atomic(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _new_beside(path: Path) -> Path:
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file name")
        part = path.with_name(f".{path.stem[:_STEM]}-{secrets.token_hex(4)}.part{path.suffix}")
        part.open("xb").close()
    except OSError as error:
        raise _unwritable(path, error) from error
    return part


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _of_the_system(error: Exception) -> OSError | None:
    """The system's error: an OSError, or the one that safetensors quotes in an error of its own."""
    if isinstance(error, OSError):
        return error
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(quoted[1]), os.strerror(int(quoted[1]))) if quoted else None


def _unwritable(path: Path, error: OSError) -> PusaError:
    number, folder = error.errno, path.parent
    if number == errno.ENAMETOOLONG:
        length = len(os.fsencode(path.name))
        what = (
            f"the name has {length} bytes, and a file name has at most {_NAME}" if length > _NAME else "it is too long"
        )
        return InputError(f"cannot write {path.name[:_STEM]}… in {folder}: {what}; choose a shorter one")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"cannot write {path}: the disk is full; free some space or write elsewhere")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"cannot write {path}: the folder {folder} is read-only for you; write elsewhere")
    if number in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST) and not folder.is_dir():
        return InputError(f"cannot write {path}: there is no folder {folder}; make it first")
    return PusaError(f"cannot write {path}: {_reason(error)}; check the disk and the file name, or write elsewhere")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).strip().rstrip(".")
