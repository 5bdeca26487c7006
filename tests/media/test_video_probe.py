"""Files are surveyed from their packets and read in part, and agree with `videos.read_video` frame for frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pusa.errors import InputError
from pusa.media import video_probe, videos


def footage(count: int, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """Every frame different, its number readable in its corner."""
    y, x = np.mgrid[:height, :width]
    frames = np.stack([np.stack([(x + 7 * k) % 256, (y * 2 + k) % 256, x * 0 + 99], 2) for k in range(count)])
    frames[:, :16, :16] = (2 * np.arange(count) % 256)[:, None, None, None]
    return frames.astype(np.uint8)


def encode(path: Path, frames: NDArray[np.uint8], codec: str, rate: int = 24, **options: str) -> Path:
    fast = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=fast) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


KINDS = [
    ("a.mp4", "libx264", {"g": "24"}),
    ("one-key.mp4", "libx264", {}),
    ("open.mp4", "libx264", {"g": "24", "x264-params": "open-gop=1"}),
    ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1"}),
    ("b.mkv", "libx264", {"g": "24"}),
    ("c.webm", "libvpx-vp9", {"g": "24"}),
    ("d.avi", "mpeg4", {"bf": "2"}),
    ("e.mov", "libx264", {"g": "12"}),
    ("f.ts", "libx264", {"g": "24"}),
    ("g.mpg", "mpeg2video", {}),
    ("h.gif", "gif", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=[kind[0] for kind in KINDS])
def test_parts_are_those_of_the_whole(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = encode(tmp_path / name, footage(73), codec, **options)
    held = video_probe.probe(path)
    whole, _ = videos.read_video(path, fps=16)
    assert (len(held.times), held.width, held.height) == (73, 96, 64)
    assert held.fps == pytest.approx(24, rel=0.05)
    for first in (0, 5, 30, len(whole) - 9):
        part = video_probe.read(path, (first + np.arange(9)) / 16, (96, 64))
        np.testing.assert_array_equal(part, whole[first : first + 9])


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "e.mov", "h.gif"])
def test_a_file_that_is_cut_off_is_called_so(tmp_path: Path, name: str, share: float) -> None:
    codec, options = next(kind[1:] for kind in KINDS if kind[0] == name)
    raw = encode(tmp_path / name, footage(73), codec, **options).read_bytes()
    part = tmp_path / f"part{Path(name).suffix}"
    part.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(video_probe.Truncated, match="cut off"):
        video_probe.probe(part)


@pytest.mark.parametrize("damage", ["zeros", "noise"])
@pytest.mark.parametrize("name", ["a.mp4", "one-key.mp4", "e.mov"])
def test_overwritten_packets_are_seen_without_decoding(tmp_path: Path, name: str, damage: str) -> None:
    codec, options = next(kind[1:] for kind in KINDS if kind[0] == name)
    path = encode(tmp_path / name, footage(73), codec, **options)
    raw = bytearray(path.read_bytes())
    hole = slice(len(raw) // 2, len(raw) // 2 + 600)
    raw[hole] = bytes(600) if damage == "zeros" else np.random.default_rng(0).bytes(600)
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        video_probe.probe(path)


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", footage(240), "libx264", g="12", bf="0")
    seen: list[int] = []
    kept = video_probe._decoded

    def counted(*args: Any, **options: Any) -> Any:
        for number, frame in kept(*args, **options):
            seen.append(number)
            yield number, frame

    monkeypatch.setattr(video_probe, "_decoded", counted)
    video_probe.probe(path)
    assert len(seen) == 2
    seen.clear()
    video_probe.read(path, (200 + np.arange(9)) / 24, (96, 64))
    assert seen[0] > 180
    assert seen[-1] == 208


def test_the_size_is_the_displayed_one(tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    with av.open(str(turned), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(90)
        for picture in footage(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    held = video_probe.probe(turned)
    assert (held.width, held.height) == (64, 96)
    whole, _ = videos.read_video(turned)
    np.testing.assert_array_equal(video_probe.read(turned, np.arange(5) / 8, (64, 96)), whole[:5])


def test_a_variable_rate_is_read_by_time(tmp_path: Path) -> None:
    path = tmp_path / "varies.mp4"
    frames = footage(30)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stamp = 0
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 30)
            stamp += 1 if index % 3 else 4
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    held = video_probe.probe(path)
    assert held.fps == pytest.approx(29 / (held.times[-1] - held.times[0]))
    whole, _ = videos.read_video(path, fps=8)
    np.testing.assert_array_equal(video_probe.read(path, np.arange(9) / 8, (96, 64)), whole[:9])


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp", "a.gif", "moving.webp"])
def test_pictures_have_one_frame_unless_they_move(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(frame) for frame in footage(6, 48, 32)]
    rest = (
        {"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True}
        if name.startswith("moving")
        else {}
    )
    frames[0].save(tmp_path / name, **rest)
    held = video_probe.probe(tmp_path / name)
    moving = name.startswith("moving")
    assert (len(held.times), held.fps) == ((6, pytest.approx(10)) if moving else (1, 0))
    assert (held.width, held.height) == (48, 32)
    assert video_probe.read(tmp_path / name, np.arange(1 + 4 * moving) / 10, (32, 32)).shape == (
        1 + 4 * moving,
        32,
        32,
        3,
    )


def test_what_is_no_film_is_one_sentence(tmp_path: Path) -> None:
    for name, content in {"a.mp4": b"no video", "b.png": b"no picture", "c.mov": b"", "d.gif": b"GIF89a"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            video_probe.probe(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        video_probe.probe(tmp_path / "gone.mp4")
