"""Files are written whole or not at all, and what cannot be read or written is a sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from pusa import files
from pusa.errors import InputError, PusaError
from pusa.media import images, videos
from tests.footage import clip, no_leftovers

RNG = np.random.default_rng(0)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.mp4": lambda p: videos.write_video(p, RNG.integers(0, 256, (9, 64, 64, 3), np.uint8), 8),
    "a.png": lambda p: images.write_image(p, RNG.integers(0, 256, (99, 99, 3), np.uint8)),
    "a.json": lambda p: files.write_json(p, ["x" * 9999]),
}


def enter_building(path: Path) -> None:
    with files.building(path):
        pass


@pytest.mark.parametrize("name", WRITERS)
def test_unusable_folders_are_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / name).mkdir()
    for path, says in [
        (tmp_path / "none" / name, "there is no folder"),
        (tmp_path / "file" / name, "there is no folder"),
        (tmp_path / name, "it is a folder"),
    ]:
        for act in (WRITERS[name], files.check_writable):
            with pytest.raises(InputError, match=says) as caught:
                act(path)
            assert "\n" not in str(caught.value)
    assert no_leftovers(tmp_path, "file", name)


@pytest.mark.parametrize("name", WRITERS)
def test_read_only_folders_are_a_sentence(tmp_path: Path, name: str) -> None:
    folder = Path("/sys/kernel")  # read-only even for root
    if os.geteuid() != 0:
        folder = tmp_path / "locked"
        folder.mkdir()
        folder.chmod(0o500)
    elif not folder.is_dir():
        pytest.skip("needs /sys as root")
    for act in (WRITERS[name], files.check_writable, enter_building):
        with pytest.raises(InputError, match="read-only"):
            act(folder / name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file-size limit makes every write fail half way, as a full disk does (with EFBIG instead of ENOSPC)."""
    (tmp_path / name).write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(PusaError, match="cannot write") as caught:
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == b"old"
    assert no_leftovers(tmp_path, name)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="disk is full"):
        WRITERS[name](tmp_path / name)
    assert no_leftovers(tmp_path, name)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.slow
def test_a_truly_full_disk(tmp_path: Path) -> None:
    import subprocess

    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(InputError, match="disk is full"):
            WRITERS["a.mp4"](tmp_path / "a.mp4")
        assert no_leftovers(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_nested_write_speaks_of_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(InputError, match=f"^cannot write {re.escape(str(tmp_path / 'a.json'))}: the disk is full"),
        files.replacing(tmp_path / "a.json") as part,
    ):
        files.write_json(part, [])
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_the_system_said_is_heard_through_safetensors(tmp_path: Path, number: int) -> None:
    """Its errors are its own and only quote the system's."""
    says = "disk is full" if number == errno.ENOSPC else "Input/output error"
    with pytest.raises(PusaError, match=says), files.replacing(tmp_path / "a.safetensors"):
        raise SafetensorError(f"Error while serializing: I/O error: what (os error {number})")
    with pytest.raises(PusaError, match=says), files.building(tmp_path / "a"):
        raise SafetensorError(f"Error while serializing: I/O error: what (os error {number})")
    with pytest.raises(SafetensorError), files.building(tmp_path / "a"):
        raise SafetensorError("invalid header")
    assert no_leftovers(tmp_path)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "deep" / "new"):
        with files.building(place) as part:
            (part / "file").write_text("whole")
            assert part.parent == place.parent
            assert not (place / "file").exists()
        assert (place / "file").read_text() == "whole"
        with pytest.raises(PusaError, match=f"^cannot write {place}: "), files.building(place):
            pass
        with pytest.raises(PusaError, match=r"x\.json: there is no folder"), files.building(place) as part:
            files.write_json(part / "none" / "x.json", [])
    with pytest.raises(InputError, match="there is no folder"), files.building(tmp_path / "empty" / "file" / "new"):
        pass
    with pytest.raises(KeyboardInterrupt), files.building(tmp_path / "never"):
        raise KeyboardInterrupt
    assert no_leftovers(tmp_path, "empty", "deep")


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    class Interrupted(np.ndarray):
        def __iter__(self) -> Any:
            yield from list(super().__iter__())[:3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        videos.write_video(path, clip(9).view(Interrupted), 8)
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "b.safetensors") as part:  # noqa: PT012
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert no_leftovers(tmp_path, "a.mp4")


def test_writing_replaces_and_keeps_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        for name, write in WRITERS.items():
            files.check_writable(tmp_path / name)
            assert no_leftovers(tmp_path)
            for _ in range(2):
                write(tmp_path / name)
            assert no_leftovers(tmp_path, name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
            (tmp_path / name).unlink()
    finally:
        os.umask(mask)


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"prompt": "σ × é", "size": [64, 64]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"prompt": "σ × é", "size": [64, 64]}
    assert "σ" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["size"] == [64, 64]


def test_a_private_file_of_the_writer_gets_the_usual_mode(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    with files.replacing(tmp_path / "a.bin") as part:
        part.write_bytes(b"a")
        part.chmod(0o600)
    assert (tmp_path / "a.bin").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize(
    ("path", "says"),
    [("https://example.org/a/b.png?x=1", "an address .https:.*save it as a file"),
     ("data:image/png;base64," + "A" * 5000, "an address .data:.*save it as a file"),
     ("file:///a.png", "an address .file:"),
     ("a" * 300 + ".png", "is not a usable path .File name too long.; check it"),
     ("gone.png", "gone.png does not exist; check the path")],
)  # fmt: skip
def test_what_is_no_path_is_named_briefly(path: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        files.existing_file(path)
    assert len(str(caught.value)) < 220


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "a.mp4"
    os.mkfifo(pipe)
    for door in (files.existing_file, files.sha256):
        with pytest.raises(InputError, match="is a pipe or a device, but a file is needed; save"):
            door(pipe)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    for read in (images.read_image, videos.read_video, files.existing_file, files.read_text):
        with pytest.raises(
            InputError, match=r"a\.png is a Git LFS pointer and not the file itself; run `git lfs pull`"
        ):
            read(path)


def test_a_path_is_found_in_another_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301/u\u0308").mkdir(parents=True)
    assert files.as_stored(tmp_path / "caf\u00e9/\u00fc") == tmp_path / "cafe\u0301/u\u0308"
    assert files.as_stored(tmp_path / "caf\u00e9/gone") == tmp_path / "caf\u00e9/gone"
    assert files.as_stored(Path("gone/at all")) == Path("gone/at all")
    images.write_image(tmp_path / "cafe\u0301/a.png", np.zeros((4, 4, 3), np.uint8))
    assert images.read_image(tmp_path / "caf\u00e9/a.png").shape == (4, 4, 3)


SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
"""what str.splitlines takes for ends of lines"""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\nb\n\n", ["a", "", "b", ""]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\r", ["a", "b"]),
        ("a\rb\nc", ["a\rb", "c"]),
        (f"a{SEPARATORS}b\nc", [f"a{SEPARATORS}b", "c"]),
    ],
)
def test_lines_end_with_line_feeds_only(text: str, lines: list[str]) -> None:
    assert files.lines_of(text) == lines


def test_json_names_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    path = str(tmp_path / os.fsdecode(b"caf\xe9 \xe2\x98\x83"))
    files.write_json(tmp_path / "a.json", {"path": path})
    content = (tmp_path / "a.json").read_bytes()
    assert rb"caf\udce9 " + "☃".encode() in content
    assert json.loads(content)["path"] == path
