"""Files as other programs write them: tags, several tracks, fragments, odd starts, cuts, wrong durations."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pusa.media import images, video_probe, videos
from tests.footage import clip, encode, numbers

LATIN = b"caf\xe9 \xff\xfe"


def tagged(path: Path) -> Path:
    """A clip whose title is not UTF-8."""
    with av.open(str(path), "w", metadata_errors="surrogateescape") as container:
        container.metadata["title"] = LATIN.decode("utf-8", "surrogateescape")
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.metadata["title"] = LATIN.decode("utf-8", "surrogateescape")
        for picture in clip(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.ts"])
def test_tags_may_have_any_encoding(tmp_path: Path, name: str) -> None:
    path = tagged(tmp_path / name)
    assert LATIN[:4] in path.read_bytes()
    frames, fps = videos.read_video(path)
    assert numbers(frames) == [0, 1, 2, 3, 4]
    assert len(video_probe.probe(path).times) == 5
    np.testing.assert_array_equal(video_probe.read(path, np.arange(5) / fps, (48, 32)), frames)


def tracks(path: Path, sizes: Sequence[tuple[int, int, int]], options: dict[str, str] | None = None) -> Path:
    """One video track for each of (frames, width, height)."""
    with av.open(str(path), "w", options=options or {}) as container:
        streams: list[Any] = []
        for _, width, height in sizes:
            stream: Any = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for stream, (count, width, height) in zip(streams, sizes, strict=True):
            for picture in clip(count, height, width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
            container.mux(stream.encode(None))
    return path


def agree(path: Path) -> images.Frames:
    """All frames, after a check that the other door has the same ones, as many as FFmpeg decodes."""
    frames, _ = videos.read_video(path)
    about = video_probe.probe(path)
    assert len(about.times) == len(frames)
    parts = video_probe.read(path, about.times - about.times[0], frames.shape[2:0:-1])
    np.testing.assert_array_equal(parts, frames)
    return frames


@pytest.mark.parametrize(
    ("name", "sizes", "chosen"),
    [("a.ts", [(5, 48, 32), (4, 96, 64)], 1), ("a.avi", [(5, 48, 32), (4, 96, 64)], 1),
     ("a.ts", [(4, 96, 64), (5, 48, 32)], 0), ("default.mp4", [(5, 48, 32), (4, 96, 64)], 0),
     ("longer.mkv", [(4, 48, 32), (9, 48, 32)], 0)],
)  # fmt: skip
def test_of_several_tracks_it_is_the_one_that_ffmpeg_takes(
    tmp_path: Path, name: str, sizes: list[tuple[int, int, int]], chosen: int
) -> None:
    """The largest picture, but the track that is marked as default before the others; mp4 marks the first."""
    frames = agree(tracks(tmp_path / name, sizes))
    count, width, height = sizes[chosen]
    assert frames.shape == (count, height, width, 3)
    assert numbers(frames) == list(range(count))


@pytest.mark.parametrize(
    "flags",
    ["frag_keyframe+empty_moov", "frag_every_frame+empty_moov+delay_moov", "dash+frag_keyframe+global_sidx",
     "frag_keyframe", "negative_cts_offsets"],
)  # fmt: skip
def test_fragments(tmp_path: Path, flags: str) -> None:
    assert numbers(agree(tracks(tmp_path / "a.mp4", [(17, 48, 32)], {"movflags": flags}))) == list(range(17))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
@pytest.mark.parametrize("start", [-0.5, 5.0])
def test_odd_starts(tmp_path: Path, name: str, start: float) -> None:
    path = encode(tmp_path / name, clip(9), 8, times=[start + k / 8 for k in range(9)], sound=name != "a.ts")
    first = 4 if start < 0 and name in ("a.mp4", "a.mov") else 0  # there an edit list begins at 0
    assert numbers(agree(path)) == list(range(first, 9))
    assert videos.read_video(path, fps=4)[0].shape[0] == (10 - first) // 2


def brighter(count: int) -> images.Frames:
    """Frames that become brighter by 5 levels."""
    return np.broadcast_to(20 + 5 * np.arange(count)[:, None, None, None], (count, 64, 64, 3)).astype(np.uint8)


def rest(path: Path, to: Path, first: int) -> Path:
    """The packets of a file from one on, as a cutter without a decoder writes them."""
    with av.open(str(path)) as source, av.open(str(to), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if number >= first and packet.size:
                packet.stream = copy
                target.mux(packet)
    return to


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.ts", "libx264", {"g": "12", "bf": "2"}), ("a.mkv", "libx264", {"g": "12", "bf": "2"}),
     ("a.mp4", "libx264", {"g": "12", "bf": "2"}), ("a.ts", "mpeg2video", {"g": "12", "bf": "2"}),
     ("a.mkv", "libx265", {"x265-params": "log-level=none:keyint=12:bframes=3:open-gop=1"})],
)  # fmt: skip
@pytest.mark.parametrize("first", [5, 12])
def test_frames_that_lost_their_beginning_are_not_counted(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], first: int
) -> None:
    with av.open(str(tmp_path / f"whole{name}"), "w") as container:
        stream: Any = container.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in brighter(38):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    frames = agree(rest(tmp_path / f"whole{name}", tmp_path / name, first))
    assert 20 < len(frames) <= 38 - first
    assert (np.diff(frames.mean((1, 2, 3))) >= 0).all(), "in their order"


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "libx264"), ("a.h264", "libx264"), ("a.avi", "mpeg4")])
def test_frames_without_timestamps_keep_their_order(tmp_path: Path, name: str, codec: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream(codec, rate=8, options={"bf": "2", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in brighter(18):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    frames = agree(tmp_path / name)
    assert len(frames) == 18
    assert (np.diff(frames.mean((1, 2, 3))) >= 0).all()


def test_motion_jpeg_is_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mjpeg"), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for picture in clip(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    assert numbers(agree(tmp_path / "a.mjpeg")) == list(range(6))


@pytest.mark.parametrize(
    ("name", "mark", "after", "value"),
    [("a.mp4", b"mvhd", 16, struct.pack(">I", 99_999)), ("a.mp4", b"tkhd", 20, struct.pack(">I", 99_999)),
     ("a.mp4", b"mdhd", 16, struct.pack(">I", 999_999)), ("a.mkv", b"\x44\x89\x88", 0, struct.pack(">d", 1e6))],
)  # fmt: skip
def test_a_wrong_duration_does_not_make_a_file_cut_off(
    tmp_path: Path, name: str, mark: bytes, after: int, value: bytes
) -> None:
    path = encode(tmp_path / name, clip(9), 8)
    data = bytearray(path.read_bytes())
    place = data.index(mark) + len(mark) + after
    data[place : place + len(value)] = value
    path.write_bytes(data)
    assert numbers(agree(path)) == list(range(9))


def test_recordings_that_were_joined_are_all_read(tmp_path: Path) -> None:
    once = tracks(tmp_path / "once.ts", [(9, 48, 32)]).read_bytes()
    (tmp_path / "a.ts").write_bytes(once + once)
    assert numbers(agree(tmp_path / "a.ts")) == [*range(9), *range(9)]


def test_a_palette_at_the_beginning_is_used_for_later_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream: Any = container.add_stream("rawvideo", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "monob"
        for k in range(9):
            picture = np.zeros((32, 48, 3), np.uint8)
            picture[:, : 5 * k] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="monob")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, fps = videos.read_video(tmp_path / "a.avi")
    part = video_probe.read(tmp_path / "a.avi", np.arange(5, 9) / fps, (48, 32))
    np.testing.assert_array_equal(part, frames[5:])
