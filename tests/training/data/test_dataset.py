"""Every layout that people have is read as it lies there, and what is not used is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pusa.errors import InputError
from pusa.training.data import dataset
from pusa.training.data.dataset import Listing, find


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def captions(listing: Listing) -> dict[str, str | None]:
    return {entry.path.name: entry.caption for entry in listing.entries}


def problems(listing: Listing) -> dict[str, str]:
    return {Path(problem.path).name: f"{problem.kind}: {problem.reason}" for problem in listing.problems}


def test_texts_beside_clips(tmp_path: Path) -> None:
    touch(tmp_path, "a10.mp4", "a2.MOV", "deep/b.webm", "c.png", "d.mp4", "e.mp4", "f.gif", "notes.txt", "x.zip")
    touch(tmp_path, ".hidden.mp4", "README.md", "._a2.MOV")
    (tmp_path / "a10.txt").write_text("ten\n")
    (tmp_path / "a2.TXT").write_bytes(b"\xef\xbb\xbfwith a mark\r\nand two lines\r\n")
    (tmp_path / "deep/b.txt").write_text("below")
    (tmp_path / "c.txt").write_text("wide", encoding="utf-16")
    (tmp_path / "d.txt").write_text(" \n\t")
    (tmp_path / "e.txt").write_bytes(b"caf\xe9")
    listing = find(tmp_path)
    assert captions(listing) == {
        "a2.MOV": "with a mark\nand two lines",
        "a10.mp4": "ten",
        "c.png": "wide",
        "d.mp4": None,
        "e.mp4": None,
        "f.gif": None,
        "b.webm": "below",
    }
    found = problems(listing)
    assert set(found) == {"d.mp4", "e.mp4", "f.gif", "notes.txt", "x.zip"}
    assert found["d.mp4"] == "no-caption: has an empty d.txt; write what the clip shows"
    assert "e.txt is not UTF-8 text (line 1)" in found["e.mp4"]
    assert found["f.gif"] == "no-caption: has no caption file f.txt; write one"
    assert found["x.zip"] == "unused: is not a clip"


DIALECTS = ["file_name,text", "video,prompt", "video_path,caption", "media_path,caption", " Video , PROMPT "]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("header", DIALECTS)
def test_tables_in_every_dialect(tmp_path: Path, header: str, kind: str) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mp4", "left.mp4")
    names = header.split(",")
    rows = [dict(zip(names, row, strict=True)) for row in (("a.mp4", 'red, "big"\nand round'), ("sub/b.mp4", "blue"))]
    if kind == "csv":
        text = f'{header}\r\na.mp4,"red, ""big""\r\nand round"\r\n./sub/b.mp4,blue\r\n'
    else:
        text = json.dumps(rows) if kind == "json" else "\n\n".join(map(json.dumps, rows)) + "\n"
    (tmp_path / f"metadata.{kind}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": 'red, "big"\nand round', "b.mp4": "blue"}
    assert problems(listing) == {"left.mp4": f"unused: is not listed in metadata.{kind}"}
    assert (
        listing.entries[1].where
        == {
            "csv": "metadata.csv, line 4",
            "jsonl": "metadata.jsonl, line 3",
            "json": "metadata.json, item 2",
        }[kind]
    )
    assert find(tmp_path / f"metadata.{kind}") == Listing(
        str(tmp_path / f"metadata.{kind}"), listing.layout, listing.entries, listing.problems
    )


def test_of_several_rows_for_a_clip_the_one_with_a_caption_is_used(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,\na.mp4,red\nb.mp4,\nb.mp4,\nc.mp4,blue\nc.mp4,\n")
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": "red", "b.mp4": None, "c.mp4": "blue"}
    assert [(Path(p.path).name, p.kind, p.reason) for p in listing.problems] == [
        ("a.mp4", "duplicate", "is listed in metadata.csv, line 2 without a caption and again in metadata.csv, line 3, "
         "whose caption is used"),
        ("b.mp4", "no-caption", "has an empty text in metadata.csv, line 4; write what the clip shows"),
        ("b.mp4", "duplicate", "is listed in metadata.csv, line 4 and again in metadata.csv, line 5"),
        ("c.mp4", "duplicate", "is listed in metadata.csv, line 6 and again in metadata.csv, line 7"),
    ]  # fmt: skip


def test_several_captions_of_a_clip_are_variants_on_request(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.mp4,"red\nround\n"\na.mp4,big\nb.mp4,\nb.mp4,blue\n')
    listing = find(tmp_path, variants=True)
    assert [entry.captions for entry in listing.entries] == [("red", "round", "big"), ("blue",)]
    assert problems(listing) == {}
    assert [entry.captions for entry in find(tmp_path).entries] == [("red\nround",), ("blue",)]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.json").write_text('{"a.mp4": ["red", "round", " "], "b.mp4": "two\\nlines"}')
    assert [entry.captions for entry in find(tmp_path).entries] == [("red", "round"), ("two\nlines",)]


CAFE, CAFE_APART = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("on_disk", "written"), [(CAFE, CAFE_APART), (CAFE_APART, CAFE)])
def test_names_are_equal_in_every_unicode_form(tmp_path: Path, on_disk: str, written: str) -> None:
    """macOS stores an accent apart from its letter; other systems store one character."""
    touch(tmp_path, f"{on_disk}/{on_disk}.mp4")
    texts = tmp_path / "texts"
    touch(texts, f"{on_disk}.mp4")
    (texts / f"{written}.txt").write_text("a bar")
    listing = find(texts)
    assert [entry.captions for entry in listing.entries] == [("a bar",)]
    assert listing.problems == ()
    for name, text in (("metadata.csv", f"file_name,text\n{written}/{written}.mp4,one\n{on_disk}/{on_disk}.mp4,\n"),
                       ("videos.txt", f"{written}/{written}.mp4\n"), ("prompts.txt", "one\n")):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
    for source in (tmp_path, tmp_path / "videos.txt"):
        listing = find(source)
        assert captions(listing) == {f"{on_disk}.mp4": "one"}
        assert {problem.kind for problem in listing.problems} <= {"duplicate", "unused"}
        (tmp_path / "metadata.csv").unlink(missing_ok=True)
    assert captions(find(str(tmp_path / written))) == {f"{on_disk}.mp4": None}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "file_name,text\na.mp4,red\n"),
        ("my clips.TSV", "video\tprompt\na.mp4\tred\n"),
        ("data.jsonl", '{"video_path": "a.mp4", "caption": "red"}\n'),
        ("captions.json", '{"a.mp4": "red"}'),
    ],
)
def test_a_table_with_another_name_is_used_unless_clips_have_texts(tmp_path: Path, name: str, text: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / name).write_text(text)
    (tmp_path / "package.json").write_text('{"name": "x"}')
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": "red"}
    assert listing.layout.startswith(name)
    assert problems(listing)["b.mp4"] == f"unused: is not listed in {name}"
    (tmp_path / "b.txt").write_text("blue")
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": None, "b.mp4": "blue"}
    assert problems(listing)[name] == (
        f"unused: is a table of clips, but clips have .txt files; to use it, give {tmp_path / name}"
    )


def test_tables_with_other_names_may_lie_deeper_and_sidecars_are_none(tmp_path: Path) -> None:
    for split in ("train", "test"):
        touch(tmp_path, f"{split}/a.mp4")
        (tmp_path / split / "captions.csv").write_text(f"file_name,text\na.mp4,{split}\n")
    assert [entry.caption for entry in find(tmp_path).entries] == ["test", "train"]
    for number in range(60):
        (tmp_path / f"{number}.json").write_text('{"a.mp4": "x"}')
    assert [entry.caption for entry in find(tmp_path).entries] == [None, None]


def test_a_table_with_unknown_columns_is_the_remedy(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text("clip,words\na.mp4,red\n")
    assert problems(find(tmp_path))["a.mp4"] == (
        "no-caption: has no caption file a.txt; write one, or name the columns of list.csv file_name and text"
    )


def test_text_in_utf_16_without_a_mark_is_no_caption(tmp_path: Path) -> None:
    """Its bytes are valid UTF-8: every second one is zero."""
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_bytes("a cat".encode("utf-16-le"))
    assert problems(find(tmp_path))["a.mp4"] == (
        "no-caption: has no usable caption: a.txt is not UTF-8 text (line 1); save it as UTF-8"
    )


def test_a_table_in_another_encoding_is_the_remedy(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_bytes("file_name,text\na.mp4,grün\n".encode("latin-1"))
    assert problems(find(tmp_path))["a.mp4"] == (
        "no-caption: has no caption file a.txt; write one, or use the table: list.csv is not UTF-8 text (line 2); save "
        "it as UTF-8"
    )


def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (tmp_path / "a.txt").write_text(pointer)
    assert "a.txt is a Git LFS pointer" in problems(find(tmp_path))["a.mp4"]
    (tmp_path / "metadata.csv").write_text(pointer)
    with pytest.raises(
        InputError, match=r"metadata.csv is a Git LFS pointer and not the file itself; run `git lfs pull`"
    ):
        find(tmp_path)


def test_rows_that_cannot_be_used_are_named_by_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.txt")
    outside = tmp_path.parent / "outside.mp4"
    outside.write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text(
        "file_name;text\na.mp4;one\na.mp4;two\n;none\ngone.mp4;three\nb.mp4\nc.mp4;four; and more\n"
        f"../outside.mp4;five\n{outside};six\nd.txt;seven\n"
    )
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": "one", "b.mp4": None, "outside.mp4": "six"}
    kinds = [(Path(p.path).name, p.kind) for p in listing.problems if p.kind != "unused"]
    assert kinds == [
        ("a.mp4", "duplicate"),
        ("metadata.csv, line 4", "missing"),
        ("gone.mp4", "missing"),
        ("b.mp4", "no-caption"),
        ("metadata.csv, line 7", "unreadable"),
        ("outside.mp4", "missing"),
        ("d.txt", "unreadable"),
    ]
    assert (
        "is listed in metadata.csv, line 2 and again in metadata.csv, line 3, with another caption"
        in listing.problems[0].reason
    )


def test_json_lines_that_cannot_be_used_are_named_by_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "metadata.jsonl").write_text(
        '{"video": "a.mp4", "prompt": "one"}\n{broken\n["b.mp4"]\n{"video": 7, "prompt": "x"}\n'
        '{"video": "b.mp4", "prompt": 5}\n{"video": "c.mp4"}\n'
    )
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": "one", "b.mp4": None, "c.mp4": None}
    assert [problem.kind for problem in listing.problems] == [
        "unreadable", "unreadable", "missing", "no-caption", "no-caption",
    ]  # fmt: skip


def test_the_official_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "train/a.mp4.tensors.pth", "train/b.mp4.tensors.pth")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,red\nb.mp4,blue\n")
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": "red", "b.mp4.tensors.pth": "blue"}
    assert problems(listing) == {
        "a.mp4.tensors.pth": "unused: is the official cache of a clip that exists, too; the clip is used"
    }
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "train/a.mp4").unlink()
    assert captions(find(tmp_path)) == {"a.mp4.tensors.pth": None, "b.mp4.tensors.pth": None}
    assert problems(find(tmp_path)) == {}


def test_tables_of_splits_are_read_together(tmp_path: Path) -> None:
    for split in ("train", "test"):
        touch(tmp_path, f"{split}/a.mp4")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.mp4,{split}\n")
    assert [entry.caption for entry in find(tmp_path).entries] == ["test", "train"]


def test_two_lists(tmp_path: Path) -> None:
    touch(tmp_path, "clips/a.mp4", "clips/b.mp4", "clips/c.mp4")
    (tmp_path / "videos.txt").write_text("clips/a.mp4\nclips\\b.mp4\n\n")
    (tmp_path / "prompts.txt").write_text("one\u2028still one\n\n")
    with pytest.raises(InputError, match=r"videos.txt has 2 lines and prompts.txt has 1"):
        find(tmp_path)
    (tmp_path / "prompts.txt").write_text("one\u2028still one\ntwo\n\n")
    listing = find(tmp_path)
    assert captions(listing) == {"a.mp4": "one\u2028still one", "b.mp4": "two"}
    assert problems(listing) == {"c.mp4": "unused: is not listed in videos.txt"}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "contains no files; add .mp4"),
        ({"a.zip": "", "b.zip": "", "c.parquet": ""}, "only 2 .zip, 1 .parquet"),
        ({"metadata.csv": "name,words\na,b\n", "a.mp4": ""}, "has no file column .its columns: name, words."),
        ({"metadata.csv": "video,words\na.mp4,b\n", "a.mp4": ""}, "has no caption column"),
        ({"metadata.csv": "file_name,prompt,caption\na.mp4,b,c\n", "a.mp4": ""}, "several columns of captions"),
        ({"metadata.csv": 'video,prompt\na.mp4,"open\n', "a.mp4": ""}, "from line 2 on .*quotes"),
        ({"metadata.csv": "video,prompt\ngone.mp4,x\n"}, "gone.mp4 .*does not exist"),
        ({"metadata.json": '{"a.mp4": 7}', "a.mp4": ""}, "is not a list; write a list of objects"),
        (
            {"a.csv": "file_name,text\n", "b.jsonl": '{"video": "a.mp4"}', "a.mp4": ""},
            "several tables of clips .a.csv and",
        ),
        ({"metadata.json": "[", "a.mp4": ""}, "is not JSON"),
        ({"metadata.csv": b"video,prompt\na.mp4,caf\xe9\n", "a.mp4": ""}, "not UTF-8 text .line 2."),
        ({"metadata.csv": "", "a.mp4": ""}, "metadata.csv is empty; write a header"),
        ({"metadata.csv": "file_name,text\n\n", "a.mp4": ""}, "metadata.csv lists no clip; write a row for each"),
        ({"metadata.jsonl": "\n"}, "metadata.jsonl lists no clip"),
        ({"metadata.csv": "video,prompt\n", "metadata.jsonl": "{}", "a.mp4": ""}, "several tables"),
        ({"videos.txt": "a.mp4\n"}, "has a videos.txt but no prompts.txt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_read_at_all_is_one_sentence(tmp_path: Path, files: dict[str, Any], match: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=match) as caught:
        find(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)), "it says which folder"


def test_links_that_go_round_are_entered_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/clip.mp4")
    (tmp_path / "a/clip.txt").write_text("one")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.symlink("itself.mp4", tmp_path / "itself.mp4")
    listing = find(tmp_path)
    assert sum(entry.path.name == "clip.mp4" for entry in listing.entries) == 1
    assert {"up", "b"} <= {Path(problem.path).name for problem in listing.problems if problem.kind == "unused"}


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the path of the clips is empty"):
        find("")
    touch(tmp_path, "a.mp4")
    with pytest.raises(InputError, match="is a single file; give its folder"):
        find(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="there is no folder"):
        find(tmp_path / "gone")


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as the hub's cache keeps them (links to blobs), and a table that points out of the dataset."""
    import huggingface_hub

    touch(tmp_path, "blobs/1", "secret.mp4")
    snapshot = tmp_path / "snapshots/abc"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data/a.mp4").symlink_to(tmp_path / "blobs/1")
    (snapshot / "data/metadata.jsonl").write_text(
        '{"file_name": "a.mp4", "text": "red"}\n'
        + json.dumps({"file_name": str(tmp_path / "secret.mp4"), "text": "x"})
        + "\n"
    )
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    listing = find("someone/clips")
    assert (asked["repo_id"], asked["repo_type"]) == ("someone/clips", "dataset")
    assert "*.mp4" in asked["allow_patterns"]
    assert captions(listing) == {"a.mp4": "red"}
    assert "is outside the dataset" in problems(listing)["secret.mp4"]


def test_a_dataset_of_the_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    with pytest.raises(InputError, match=r"someone/clips is neither a folder nor in the local cache"):
        find("someone/clips")

    def broken(*_: Any, **__: Any) -> str:
        raise OSError("the line is cut")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(InputError, match=r"cannot be downloaded .the line is cut."):
        find("someone/clips")

    def unknown(*_: Any, **__: Any) -> str:
        raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    with pytest.raises(InputError, match="neither a folder someone/clips nor a dataset"):
        find("someone/clips")


def test_a_folder_that_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.mp4", "locked/b.mp4")
    (tmp_path / "a.txt").write_text("one")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(dataset.os, "scandir", scandir)
    assert problems(find(tmp_path))["locked"].startswith("unreadable: cannot be opened (Permission denied)")
