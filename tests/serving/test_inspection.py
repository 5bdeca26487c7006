"""Uploads are opened in a process of its own: what is found out, what is refused, and what a bad file costs."""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from pusa.errors import InputError, PusaError
from pusa.media import containers, images, video_probe, videos
from pusa.serving.inspection import Inspected, UploadLimits, inspect
from tests.footage import animated, clip, cut, encode, no_leftovers, ramp

LIMITS = UploadLimits(cpu_seconds=600, wall_seconds=3000)


def looked_at(path: Path, label: str = "the file", **limits: float) -> Inspected:
    return inspect(path, path.parent, replace(LIMITS, **limits), label)


def refused(path: Path, label: str = "the file", **limits: float) -> str:
    """The sentence for a file; nothing else may be left of it than the file itself."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as error:
        looked_at(path, label, **limits)
    assert sorted(path.parent.iterdir()) == before
    message = str(error.value)
    assert label in message
    assert str(path.parent) not in message
    return message


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit RGB from its chunks between the header and the end."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    )


def black(side: int) -> bytes:
    """The compressed rows of a black square: a thousandth of its pixels."""
    return zlib.compress(bytes(side * (3 * side + 1)), 9)


def slow(path: Path, frames: int = 30) -> Path:
    """A small animated picture whose frames are large, so that decoding it takes seconds."""
    side, rows = 5000, black(5000)
    chunks = [(b"acTL", struct.pack(">II", frames, 0))]
    for n in range(frames):
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", max(0, 2 * n - 1), side, side, 0, 0, 1, 10, 0, 0)))
        chunks.append((b"fdAT", struct.pack(">I", 2 * n) + rows) if n else (b"IDAT", rows))
    path.write_bytes(png(side, side, *chunks))
    return path


# What is found out


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff", "a.avif", "a.heic"])
def test_a_picture_becomes_a_plain_copy_with_the_pixels_that_pusa_reads(tmp_path: Path, name: str) -> None:
    picture = PILImage.fromarray(ramp())
    if name == "a.heic":
        import pillow_heif

        pillow_heif.from_pillow(picture).save(tmp_path / name)
    else:
        picture.save(tmp_path / name)
    expected = images.read_image(tmp_path / name)
    found = looked_at(tmp_path / name)
    assert found == Inspected("image", 32, 24, 1, 0.0, tmp_path / "a.png")
    assert (images.read_image(found.path) == expected).all()
    assert no_leftovers(tmp_path, *{name, "a.png"})


def test_rotation_and_transparency_are_in_the_copy(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.fromarray(ramp()).save(tmp_path / "turned.png", exif=exif)
    found = looked_at(tmp_path / "turned.png")
    assert (found.width, found.height) == (24, 32)
    PILImage.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.webp")
    assert (images.read_image(looked_at(tmp_path / "clear.webp").path) == 255).all()


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv420p"),
        ("a.mkv", "ffv1", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
    ],
)
def test_a_video_stays_as_it_is_and_its_facts_are_those_of_pusa(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    path = encode(tmp_path / name, clip(12), 25, codec, pixels)
    stored = path.read_bytes()
    found, info = looked_at(path), video_probe.probe(path)
    assert found == Inspected("video", info.width, info.height, len(info.times), info.fps, path)
    assert found.frames == 12
    assert path.read_bytes() == stored
    assert no_leftovers(tmp_path, name)


def test_moving_pictures_are_videos(tmp_path: Path) -> None:
    for name in ("a.webp", "a.png", "a.gif", "a.avif"):
        animated(tmp_path / name)
        found = looked_at(tmp_path / name)
        assert (found.kind, found.frames, found.width) == ("video", 4, 8), name
        assert found.path == tmp_path / name


def test_sound_is_no_hindrance(tmp_path: Path) -> None:
    assert looked_at(encode(tmp_path / "a.mp4", clip(), 8, sound=True)).frames == 5


def test_what_was_changed_is_told(tmp_path: Path) -> None:
    hdr = (b"cICP", bytes([9, 16, 0, 1]))
    (tmp_path / "a.png").write_bytes(png(2, 2, hdr, (b"IDAT", black(2))))
    (note,) = looked_at(tmp_path / "a.png", "cat.png").notes
    assert note.startswith("cat.png is HDR")


def test_the_name_of_the_stranger_cannot_break_a_message(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    for label in ("a\0b", "../../etc/passwd\n", "\x1b[2Jx", "\u202egnp.exe"):
        with pytest.raises(InputError) as error:
            looked_at(tmp_path / "a", label)
        assert str(error.value).isprintable()
    with pytest.raises(InputError) as error:
        looked_at(tmp_path / "a", "n" * 10_000)
    assert len(str(error.value)) < 400


# What is refused


def test_what_is_no_picture_and_no_video_is_refused_with_what_is_taken(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "real.mp4", clip(), 8)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n"
    for name, text in {
        "words.png": "These are words.\n" * 20,
        "drawing.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "list.m3u8": playlist,
        "playlist.mp4": playlist,
        "list.ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
        "concat.mp4": "ffconcat version 1.0\nfile real.mp4\n",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "page.html": "<html></html>",
        "program.eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert "give PNG, JPEG" in refused(tmp_path / name, name), name


def test_a_playlist_would_open_other_files_elsewhere(tmp_path: Path) -> None:
    """The control: without the limits of the process, FFmpeg follows a list to another file."""
    videos.write_video(tmp_path / "real.mp4", clip(), 8)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile real.mp4\n")
    with containers.opened(tmp_path / "list.ffconcat") as container:
        assert container.format.name == "concat"


@pytest.mark.parametrize(("name", "codec"), [("a.flv", "flv"), ("a.mpg", "mpeg2video"), ("a.wmv", "wmv2")])
def test_other_formats_are_refused(tmp_path: Path, name: str, codec: str) -> None:
    assert "mpegts or gif" in refused(encode(tmp_path / name, clip(), 25, codec))


def test_other_codecs_are_refused(tmp_path: Path) -> None:
    assert "codec snow" in refused(encode(tmp_path / "a.avi", clip(), 25, "snow"))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert "0 bytes" in refused(tmp_path / "empty.png")
    PILImage.fromarray(ramp(200, 200)).save(tmp_path / "a.jpg")
    assert "damaged" in refused(cut(tmp_path / "a.jpg", 0.5))
    videos.write_video(tmp_path / "a.mp4", clip(40), 8)
    refused(cut(tmp_path / "a.mp4", 0.9))
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 96, 3), np.uint8)
    path = encode(tmp_path / "b.mov", noise, 8, "png", "rgb24")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    video_probe.probe(path)  # only complete decoding finds this
    assert "damaged" in refused(path)


def test_too_large_in_each_way(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", clip(20), 8)
    animated(tmp_path / "a.webp")
    (tmp_path / "a.png").write_bytes(png(30_000, 30_000, (b"IDAT", black(100))))  # a bomb: 2.7 GB of pixels
    (tmp_path / "b.png").write_bytes(png(9000, 9000, (b"IDAT", black(100))))
    assert "bytes, and 999 are taken" in refused(tmp_path / "a.mp4", bytes=999)
    assert "48 x 32 pixels, and 100 are taken" in refused(tmp_path / "a.mp4", pixels=100)
    assert "20 frames, and 19 are taken" in refused(tmp_path / "a.mp4", frames=19)
    assert "lasts 2.5 s, and 2.4 s" in refused(tmp_path / "a.mp4", seconds=2.4)
    assert "4 frames, and 3 are taken" in refused(tmp_path / "a.webp", frames=3)
    assert "8 x 8 pixels" in refused(tmp_path / "a.webp", pixels=63)
    assert "too many pixels" in refused(tmp_path / "a.png")
    assert "9000 x 9000 pixels, and 50,000,000 are taken" in refused(tmp_path / "b.png")


def test_a_frame_that_is_larger_than_its_header_says(tmp_path: Path) -> None:
    """The header of an MP4 file is not what the codec decides by."""
    path = tmp_path / "a.mp4"
    videos.write_video(path, clip(5, 320, 480), 8)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack(">HH", 480, 320), struct.pack(">HH", 16, 16)))
    assert "pixels" in refused(path, pixels=1000)


# What a bad file costs


def test_memory_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(6000, 6000, (b"IDAT", black(6000))))
    assert "100 MiB of memory" in refused(tmp_path / "a.png", memory=100 * 2**20)
    assert "100 MiB of memory" in refused(slow(tmp_path / "b.png"), memory=100 * 2**20)


def test_computing_time_ends(tmp_path: Path) -> None:
    assert "1 s of computing" in refused(slow(tmp_path / "a.png"), cpu_seconds=1)


def test_waiting_ends(tmp_path: Path) -> None:
    assert "in 1 s" in refused(slow(tmp_path / "a.png"), wall_seconds=1)


def test_a_crash_costs_the_process_only_and_it_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSA_TEST_SECRET", "open sesame")
    said: list[str] = []
    path = slow(tmp_path / "a.png", 50)
    thread = threading.Thread(target=lambda: said.append(refused(path)))
    thread.start()
    process = child()
    assert b"PYTHONPATH" in process.joinpath("environ").read_bytes()
    assert b"open sesame" not in process.joinpath("environ").read_bytes()
    while "NoNewPrivs:\t1" not in process.joinpath("status").read_text():
        time.sleep(0.01)
    os.kill(int(process.name), signal.SIGSEGV)
    thread.join()
    assert "Segmentation fault" in said[0]


def child() -> Path:
    """The process that inspects, in /proc, as soon as it runs."""
    while True:
        for tasks in Path("/proc/self/task").iterdir():
            for number in (tasks / "children").read_text().split():
                if b"inspection_process" in Path(f"/proc/{number}/cmdline").read_bytes():
                    return Path(f"/proc/{number}")
        time.sleep(0.01)


def test_a_process_that_cannot_start_is_not_the_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PILImage.fromarray(ramp()).save(tmp_path / "a.png")
    broken = tmp_path / "broken" / "pusa"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError")
    monkeypatch.setattr("sys.path", [str(broken.parent), *sys.path])
    with pytest.raises(PusaError, match="code 1") as error:
        looked_at(tmp_path / "a.png")
    assert not isinstance(error.value, InputError)
