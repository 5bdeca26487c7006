"""What each file holds, which samples become of it and why others do not, and the pixels of a sample."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pusa.errors import InputError
from pusa.media import images, videos
from pusa.models.backbone import Geometry
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import samples
from pusa.training.data.dataset import Entry, Problem
from pusa.training.data.samples import Bucket, Cut, Mode, Source, VideoFile, plan, probe, survey

Frames = Callable[..., NDArray[np.uint8]]
WAN = GEOMETRIES[16]
SQUARE = Bucket(32, 32, 17)


def video(frames: int = 81, fps: float = 16, width: int = 832, height: int = 480, name: str = "a") -> VideoFile:
    return VideoFile(Path(f"{name}.mp4"), ("a caption",), frames, fps, width, height, name)


def problem(file: VideoFile, *buckets: str, fps: float = 16) -> Problem:
    (found,) = plan([file], [Bucket.parse(text) for text in buckets], fps, WAN).problems
    return found


def landed(file: VideoFile, *buckets: str, fps: float = 16) -> str:
    (cut,) = plan([file], [Bucket.parse(text) for text in buckets], fps, WAN).cuts
    return str(cut.bucket)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 200))
def test_buckets_read_back_what_they_print(width: int, height: int, slots: int) -> None:
    bucket = Bucket(width, height, 4 * slots + 1)
    assert Bucket.parse(str(bucket)) == bucket
    Bucket(16 * width, 16 * height, bucket.frames).check(WAN)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("832x480", "is not a bucket"),
        ("0x480x81", "is not a bucket"),
        ("", "not a bucket"),
    ],
)
def test_what_is_no_bucket(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Bucket.parse(text)


def test_sides_and_frames_must_suit_the_model() -> None:
    Bucket(832, 480, 81).check(WAN)
    with pytest.raises(InputError, match=r"832x480x80 has 80 frames, not 4n\+1; use 77 or 81"):
        Bucket(832, 480, 80).check(WAN)
    with pytest.raises(InputError, match=r"832x480x81 has 81 frames, not 6n\+1; use 79 or 85"):
        Bucket(832, 480, 81).check(Geometry(6, 8))
    with pytest.raises(InputError, match="multiples of 32; use 832x448x81"):
        Bucket(832, 450, 81).check(Geometry(4, 16, (1, 2, 2)))


def test_lengths_are_those_after_resampling() -> None:
    assert [video(frames, fps).frames_at(16) for frames, fps in ((81, 16), (121, 24), (151, 30), (150, 29.97))] == [
        81, 81, 81, 80,
    ]  # fmt: skip
    assert video(1, 0).frames_at(16) == 1
    assert video(81, 16).seconds == pytest.approx(5.0625)


def test_a_clip_lands_by_shape_then_length_then_size() -> None:
    wide, tall, short = "832x480x81", "480x832x81", "832x480x49"
    assert landed(video(200), wide, tall, short) == wide
    assert landed(video(60), wide, tall, short) == short
    assert landed(video(200, width=480, height=832), wide, tall, short) == tall
    assert landed(video(200, width=1920, height=1080), wide, "1280x720x81", "1280x720x41") == "1280x720x81"
    assert landed(video(200, width=960, height=540), wide, "1280x720x81") == wide
    assert landed(video(60, width=480, height=832), wide, tall, "480x832x33") == "480x832x33"


def test_why_a_clip_lands_nowhere_and_what_would_take_it() -> None:
    short = problem(video(72, 24), "832x480x81", "832x480x61")
    assert (short.kind, short.reason) == (
        "too-short", "has only 48 of the 61 frames needed at 16 fps; the bucket 832x480x45 fits",
    )  # fmt: skip
    tiny = problem(video(4, 16), "832x480x17")
    assert tiny.reason == (
        "has only 4 of the 17 frames needed at 16 fps; give a longer clip, because a bucket of 1 frame is for still "
        "pictures"
    )
    small = problem(video(width=640, height=360), "832x480x81")
    assert (small.kind, small.reason) == (
        "too-small", "has 640x360 pixels and would be enlarged 1.3 times to cover 832x480x81; add a smaller bucket",
    )  # fmt: skip
    assert landed(video(width=800, height=450), "832x480x81") == "832x480x81"
    assert "add the bucket 832x480x1" in problem(video(1, 0), "832x480x81").reason
    assert "add the bucket 832x480x81" in problem(video(), "832x480x1").reason
    tall = problem(video(60, width=480, height=832), "832x480x49", "480x832x81")
    assert "the bucket 480x832x57 fits" in tall.reason


def test_pictures_and_clips_have_buckets_of_their_own() -> None:
    made = plan([video(), video(1, 0, name="b")], [Bucket(832, 480, 81), Bucket(832, 480, 1)], 16, WAN)
    assert made.buckets == {Bucket(832, 480, 81): 1, Bucket(832, 480, 1): 1}


def starts(mode: Mode, frames: int) -> list[int]:
    return [round(cut.start * 16) for cut in plan([video(frames)], [Bucket(832, 480, 17)], 16, WAN, mode).cuts]


def test_how_long_clips_are_cut() -> None:
    assert starts("head", 60) == [0]
    assert starts("uniform", 60) == [0, 22, 43]
    assert starts("uniform", 20) == [0]
    assert starts("slide", 60) == [0, 8, 16, 24, 32, 40]


@given(st.integers(17, 400), st.sampled_from(["head", "uniform", "slide"]))
def test_samples_stay_within_their_clip(frames: int, mode: Mode) -> None:
    found = starts(mode, frames)
    assert found[0] == 0
    assert found == sorted(set(found))
    assert found[-1] + 17 <= frames
    if mode == "uniform":
        assert all(b - a >= 17 for a, b in pairwise(found))


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="there is no bucket"):
        plan([video()], [], 16, WAN)
    with pytest.raises(InputError, match="fps is 0"):
        plan([video()], [SQUARE], 0, WAN)


def test_a_sample_is_the_resampled_clip_from_its_start(tmp_path: Path, noise_frames: Frames) -> None:
    path = tmp_path / "a.mp4"
    videos.write_video(path, noise_frames(90, size=(48, 32)), 24)
    file = probe(Entry(path, ("moving",), ""))
    assert isinstance(file, VideoFile)
    assert (file.frames, file.fps, file.width, file.height) == (90, 24, 48, 32)
    whole = images.fit(videos.read_video(path, fps=8)[0], (32, 32))
    made = plan([file], [Bucket(32, 32, 9)], 8, WAN, "slide")
    assert len(made.cuts) == 6
    for cut in made.cuts:
        first = round(cut.start * 8)
        np.testing.assert_array_equal(samples.read(cut, 8), whole[first : first + 9])


@pytest.mark.parametrize(("slower", "faster"), [(24, 16), (30, 16), (16, 24), (25, 16), (29.97, 24)])
def test_a_clip_fills_exactly_the_frames_that_it_is_planned_for(
    tmp_path: Path, noise_frames: Frames, slower: float, faster: float
) -> None:
    path = tmp_path / "a.mp4"
    videos.write_video(path, noise_frames(61), slower)
    file = probe(Entry(path, (), ""))
    assert isinstance(file, VideoFile)
    assert file.frames_at(faster) == len(videos.read_video(path, fps=faster)[0])


def test_a_picture_is_a_sample_of_one_frame(tmp_path: Path, noise_frames: Frames) -> None:
    images.write_image(tmp_path / "a.png", noise_frames(1, size=(64, 32))[0])
    file = probe(Entry(tmp_path / "a.png", ("still",), ""))
    assert isinstance(file, VideoFile)
    assert (file.frames, file.fps, file.seconds, file.width) == (1, 0, 0, 64)
    (cut,) = plan([file], [Bucket(32, 32, 1)], 8, WAN).cuts
    assert samples.read(cut, 8).shape == (1, 32, 32, 3)


def ready(path: Path, slots: int = 5) -> None:
    torch.save(
        {"latents": torch.zeros(16, slots, 4, 4), "prompt_emb": {"context": torch.zeros(1, 512, 32)}, "image_emb": {}},
        path,
    )


def test_the_official_cache_is_a_sample_of_its_own_size(tmp_path: Path) -> None:
    ready(tmp_path / "a.mp4.tensors.pth")
    (tmp_path / "b.mp4.tensors.pth").write_bytes(b"no tensors")
    made = survey(tmp_path, [SQUARE], 8, WAN)
    assert made.layout == "official cached tensors"
    (cut,) = made.cuts
    assert cut.file.is_encoded
    assert cut.bucket == SQUARE
    assert [(Path(p.path).name, p.kind) for p in made.problems] == [("b.mp4.tensors.pth", "unreadable")]
    assert "add the bucket 32x32x17" in plan([cut.file], [Bucket(64, 64, 17)], 8, WAN).problems[0].reason
    with pytest.raises(InputError, match="contains latents"):
        samples.read(cut, 8)


@pytest.fixture
def folder(tmp_path: Path, noise_frames: Frames) -> Path:
    """Two good clips and one of everything that can be wrong."""
    made = tmp_path / "clips"
    made.mkdir()
    for seed, (name, (count, side)) in enumerate(
        {
            "good": (40, 32),
            "other": (17, 48),
            "brief": (9, 32),
            "tiny": (20, 16),
            "mute": (20, 32),
            "cut": (40, 32),
        }.items()
    ):
        videos.write_video(made / f"{name}.mp4", noise_frames(count, seed, (side, side)), 8)
        (made / f"{name}.txt").write_text(f"clip {seed}")
    (made / "mute.txt").write_text("")
    raw = (made / "cut.mp4").read_bytes()
    (made / "cut.mp4").write_bytes(raw[: len(raw) * 3 // 4])
    shutil.copy(made / "good.mp4", made / "same.MP4")
    (made / "same.txt").write_text("again")
    (made / "bad.mp4").write_bytes(b"no video")
    (made / "bad.txt").write_text("bad")
    (made / "gone.mp4").symlink_to("nowhere.mp4")
    (made / "gone.txt").write_text("gone")
    return made


def test_a_survey_names_everything_that_is_not_used(folder: Path) -> None:
    made = survey(folder, [SQUARE], 8, WAN)
    assert [cut.file.path.name for cut in made.cuts] == ["good.mp4", "other.mp4"]
    assert {Path(p.path).name: p.kind for p in made.problems} == {
        "bad.mp4": "unreadable",
        "brief.mp4": "too-short",
        "cut.mp4": "truncated",
        "gone.mp4": "missing",
        "mute.mp4": "no-caption",
        "same.MP4": "duplicate",
        "tiny.mp4": "too-small",
    }
    assert (made.found, len(made.files), made.fps) == (9, 5, 8)


def test_of_equal_clips_the_one_with_a_caption_is_used(folder: Path) -> None:
    (folder / "good.txt").unlink()
    made = survey(folder, [SQUARE], 8, WAN)
    assert [(cut.file.path.name, cut.file.caption) for cut in made.cuts] == [
        ("other.mp4", "clip 1"),
        ("same.MP4", "again"),
    ]
    told = [(Path(p.path).name, p.kind, p.reason) for p in made.problems if Path(p.path).name == "good.mp4"]
    assert told == [("good.mp4", "duplicate", f"is the same file as {folder / 'same.MP4'}")]


def test_several_folders_have_repeats_and_prefixes_of_their_own(
    folder: Path, tmp_path: Path, noise_frames: Frames
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    videos.write_video(more / "new.mp4", noise_frames(20, 99), 8)
    (more / "metadata.csv").write_text("file_name,text\nnew.mp4,from the table\n")
    shutil.copy(folder / "other.mp4", more / "again.mp4")
    made = survey([Source(folder, prefix=" sks, "), Source(more, repeats=3)], [SQUARE], 8, WAN)
    assert [(cut.file.path.name, cut.file.caption, cut.file.repeats) for cut in made.cuts] == [
        ("good.mp4", "sks, clip 0", 1), ("other.mp4", "sks, clip 1", 1), ("new.mp4", "from the table", 3),
    ]  # fmt: skip
    assert made.source == f"{folder}, {more}"
    assert made.layout == f"{folder}: clips with a .txt of the same name; {more}: metadata.csv (file_name,text)"
    twice = survey([Source(more), Source(more, prefix="x")], [SQUARE], 8, WAN)
    assert [cut.file.caption for cut in twice.cuts] == ["from the table"]
    assert "is found twice" in [problem.reason for problem in twice.problems]


def test_clips_without_a_caption_are_used_with_consent(folder: Path) -> None:
    (folder / "other.txt").write_bytes(b"caf\xe9")
    names = {"good.mp4": ("clip 0",), "mute.mp4": ()}
    made = survey(folder, [SQUARE], 8, WAN, uncaptioned=True)
    assert {cut.file.path.name: cut.file.captions for cut in made.cuts} == names
    assert {Path(p.path).name for p in made.problems if p.kind == "no-caption"} == {"other.mp4"}, "it has a bad caption"
    made = survey([Source(folder, prefix="sks")], [SQUARE], 8, WAN, uncaptioned=True)
    assert {cut.file.path.name: cut.file.captions for cut in made.cuts} == {
        "good.mp4": ("sks clip 0",),
        "mute.mp4": ("sks",),
    }
    made = survey([Source(folder, prefix="sks")], [SQUARE], 8, WAN)
    assert [cut.file.path.name for cut in made.cuts] == ["good.mp4"], "a prefix is no consent"


def test_a_prefix_cannot_be_added_to_an_encoded_caption(tmp_path: Path) -> None:
    ready(tmp_path / "a.mp4.tensors.pth")
    with pytest.raises(InputError, match="contains its encoded caption, so the prefix 'sks' cannot be added"):
        survey([Source(tmp_path, prefix="sks")], [SQUARE], 8, WAN)


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.gif", "a.mp4.tensors.pth"])
def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    told = probe(Entry(tmp_path / name, ("x",), ""))
    assert isinstance(told, Problem)
    assert told.reason == "is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder"


def test_the_number_of_threads_changes_nothing(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    alone = survey(folder, [SQUARE], 8, WAN, "slide", progress=lambda done, total: seen.append((done, total)))
    assert survey(folder, [SQUARE], 8, WAN, "slide", workers=5) == alone
    assert seen == [(done, 9) for done in range(1, 10)]


def test_content_decides_what_is_the_same(folder: Path) -> None:
    first = probe(Entry(folder / "good.mp4", ("x",), ""))
    again = probe(Entry(folder / "same.MP4", ("x",), ""))
    assert isinstance(first, VideoFile)
    assert again == replace(first, path=folder / "same.MP4")


def test_damage_within_a_clip_is_found_when_it_is_read(tmp_path: Path, noise_frames: Frames) -> None:
    """The units of a packet keep their lengths here, so that only decoding can tell."""
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), np.uint8)
    videos.write_video(path, noise, 8)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(range(1, 41))
    path.write_bytes(raw)
    file = probe(Entry(path, ("x",), ""))
    assert isinstance(file, VideoFile)
    with pytest.raises(InputError, match=r"a\.mp4 is damaged"):
        samples.read(Cut(file, Bucket(32, 32, 17), 0.0), 8)
