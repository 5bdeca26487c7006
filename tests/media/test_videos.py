"""Clips in and out: what works, what is refused with a sentence, and no frame lost."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.media import images, videos
from tests.footage import animated, clip, cut, encode, no_leftovers, numbers, psnr, ramp

RNG = np.random.default_rng(0)


def test_damage_never_escapes_as_another_exception(tmp_path: Path) -> None:
    PILImage.fromarray(ramp()).save(tmp_path / "a.png")
    videos.write_video(tmp_path / "a.mp4", clip(), 8)
    for name, read in (("a.png", images.read_image), ("a.mp4", videos.read_video)):
        good = (tmp_path / name).read_bytes()
        for seed in range(40):
            rng = np.random.default_rng(seed)
            data = bytearray(good)
            for at in rng.integers(0, len(data), 8):
                data[at] = rng.integers(256)
            (tmp_path / f"x{name}").write_bytes(data[: rng.integers(1, len(data))] if seed % 2 else data)
            with contextlib.suppress(InputError):
                read(tmp_path / f"x{name}")


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mp4", "libx264", "yuv420p"), ("a.mov", "libx264", "yuv444p"), ("a.mkv", "libx264", "yuv420p10le"),
     ("a.webm", "libvpx-vp9", "yuv420p"), ("a.avi", "mpeg4", "yuv420p"), ("a.gif", "gif", "rgb8")],
)  # fmt: skip
@pytest.mark.parametrize("fps", [8, 10, 30000 / 1001])
def test_containers_give_all_frames_and_their_rate(
    tmp_path: Path, name: str, codec: str, pixels: str, fps: float
) -> None:
    source = np.clip(clip(9)[:, :, :, :] + np.zeros((1, 1, 48, 1), np.uint8), 0, 255)
    frames, rate = videos.read_video(encode(tmp_path / name, source, fps, codec, pixels))
    assert frames.dtype == np.uint8
    assert frames.shape == source.shape
    assert rate == pytest.approx(fps, rel=0.01 if name != "a.gif" else 0.15)  # GIF counts in hundredths of a second
    if name != "a.gif":
        assert numbers(frames) == list(range(9))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 7),
    half=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    fps=st.sampled_from([1.0, 8.0, 12.5, 16.0, 24000 / 1001, 60.0]),
    seed=st.integers(0, 99),
)
def test_write_then_read_keeps_count_size_rate_and_colours(
    tmp_path: Path, count: int, half: tuple[int, int], fps: float, seed: int
) -> None:
    colour = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), np.uint8)
    source = np.broadcast_to(colour, (count, 2 * half[1], 2 * half[0], 3))
    videos.write_video(tmp_path / "a.mp4", source, fps)
    frames, rate = videos.read_video(tmp_path / "a.mp4")
    assert frames.shape == source.shape
    assert rate == pytest.approx(fps, rel=1e-4)
    assert np.abs(frames.astype(int) - source).max() <= 6


def test_going_round_neither_darkens_nor_tints_nor_shifts(tmp_path: Path) -> None:
    source = np.stack([np.ascontiguousarray(np.rot90(ramp(64, 64), i)) for i in range(4)])
    frames = source
    for _ in range(4):
        videos.write_video(tmp_path / "a.mp4", frames, 8, crf=4)
        frames, _rate = videos.read_video(tmp_path / "a.mp4")
    assert np.abs((frames.astype(float) - source).mean((0, 1, 2))).max() < 0.3
    assert psnr(frames, source) > 45


def test_resampling_takes_the_nearest_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", clip(17), 16)
    for fps, expected in [
        (16.0, list(range(17))),
        (8.0, list(range(0, 17, 2))),
        (32.0, [i // 2 for i in range(33)]),
        (12.0, [0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16]),
        (0.5, [0]),
    ]:
        frames, rate = videos.read_video(path, fps)
        assert rate == fps
        assert numbers(frames) == expected


def test_variable_frame_rate_becomes_constant_at_the_right_moments(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 2.0]
    path = encode(tmp_path / "phone.mkv", clip(6), 10, times=times)
    frames, fps = videos.read_video(path, 10)
    assert fps == 10
    assert numbers(frames) == [int(np.argmin([abs(t - k / 10) for t in times])) for k in range(21)]
    frames, fps = videos.read_video(path)
    assert fps == pytest.approx(2.5)
    assert len(frames) == 6
    assert numbers(frames) == [0, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animated_pictures_are_videos(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [PILImage.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in range(4)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 100, 200, 100], **options)
    with pytest.raises(InputError, match="or give it as a video"):
        images.read_image(path)
    read, fps = videos.read_video(path, fps=10)
    assert fps == 10
    assert read[:, 0, 0, 0].tolist() in ([0, 60, 120, 120, 180], [0, 60, 120, 180, 180])
    assert videos.read_video(path)[1] == pytest.approx(3 / 0.4)


def test_pages_are_no_video(tmp_path: Path) -> None:
    animated(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"save one of them as PNG$"):
        images.read_image(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="is a picture, but a video is needed"):
        videos.read_video(tmp_path / "a.tiff")


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_rotation_metadata_is_applied(tmp_path: Path, quarter: int) -> None:
    """Players turn a picture clockwise by the matrix in the track header."""
    source = np.broadcast_to(ramp(32, 48), (3, 32, 48, 3))
    videos.write_video(tmp_path / "phone.mp4", source, 8)
    data = bytearray((tmp_path / "phone.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    assert struct.unpack(">9i", data[at : at + 36])[0] == 0x10000
    a, b = {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[quarter]
    matrix = (a * 0x10000, b * 0x10000, 0, -b * 0x10000, a * 0x10000, 0, 0, 0, 0x40000000)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "phone.mp4").write_bytes(data)
    frames, _ = videos.read_video(tmp_path / "phone.mp4")
    upright = np.rot90(source, -quarter, (1, 2))
    assert frames.shape == upright.shape
    assert psnr(frames, upright) > 30


def test_non_square_pixels_are_made_square(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "dv.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        for picture in clip(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    assert videos.read_video(tmp_path / "dv.mp4")[0].shape == (3, 32, 64, 3)


def test_transparent_gif_is_laid_over_white(tmp_path: Path) -> None:
    frames = [PILImage.new("RGBA", (8, 8), (0, 0, 0, 0)) for _ in range(2)]
    frames[1].paste((250, 0, 0, 255), (0, 0, 4, 8))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    read, fps = videos.read_video(tmp_path / "a.gif")
    assert len(read) == 2
    assert fps == pytest.approx(10)
    assert read[0].min() == 255
    assert read[1, 0, 7].tolist() == [255, 255, 255]


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def headless(path: Path) -> None:
    """An mp4 whose index says that there are no frames."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()


def noise(path: Path, share: float, codec: str = "libx264") -> None:
    encode(path, RNG.integers(0, 256, (24, 32, 48, 3), np.uint8), 8, codec)
    cut(path, share)


def noise_faststart(path: Path, share: float) -> None:
    videos.write_video(path, RNG.integers(0, 256, (24, 32, 48, 3), np.uint8), 8)
    cut(path, share)


BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda p: None, "does not exist"),
    "folder.mp4": (lambda p: p.mkdir(), "is a folder"),
    "empty.mp4": (lambda p: p.touch(), "is empty"),
    "text.mp4": (lambda p: p.write_text("hello"), "not a video"),
    "text.txt": (lambda p: p.write_text("hello\n" * 99), "text, but a video|not a video"),
    "picture.png": (lambda p: PILImage.fromarray(ramp()).save(p), "is a picture, but a video is needed"),
    "picture.jpg": (lambda p: PILImage.fromarray(ramp()).save(p), "is a picture, but a video is needed"),
    "sound.m4a": (sound_only, "no video track"),
    "headless.mp4": (headless, "damaged|no frames|no video"),
    "cut.mp4": (lambda p: noise(p, 0.7), "damaged, cut off"),
    "cut_late.mp4": (lambda p: noise_faststart(p, 0.9), "cut off"),
    "cut_early.mp4": (lambda p: noise_faststart(p, 0.3), "cut off"),
    "cut.webm": (lambda p: noise(p, 0.6, "libvpx-vp9"), "cut off"),
    "cut.mkv": (lambda p: noise(p, 0.6), "cut off"),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_what_is_not_a_whole_video_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    make, says = BAD_CLIPS[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=says) as caught:
        videos.read_video(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message


def test_a_clip_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos.write_video(tmp_path / "a.mp4", clip(), 8)
    monkeypatch.setattr(videos, "MAX_CLIP_BYTES", clip().nbytes - 1)
    with pytest.raises(InputError, match="memory"):
        videos.read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(tmp_path: Path, fps: float) -> None:
    videos.write_video(tmp_path / "a.mp4", clip(), 8)
    with pytest.raises(InputError, match="fps"):
        videos.read_video(tmp_path / "a.mp4", fps)
    with pytest.raises(InputError, match="fps"):
        videos.write_video(tmp_path / "b.mp4", clip(), fps)


def test_video_bytes_depend_on_the_frames_only(tmp_path: Path) -> None:
    source = RNG.integers(0, 256, (9, 32, 48, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        videos.write_video(tmp_path / name, source, 16)
    a = (tmp_path / "a.mp4").read_bytes()
    assert a == (tmp_path / "b.mp4").read_bytes()
    assert a.index(b"moov") < a.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 16
        assert stream.codec_context.colorspace == 1


def test_names_that_look_like_addresses_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    videos.write_video("http:12:30 %d.mp4", clip(), 8)
    assert numbers(videos.read_video("http:12:30 %d.mp4")[0]) == [0, 1, 2, 3, 4]


def test_crf_trades_size_for_quality(tmp_path: Path) -> None:
    source = RNG.integers(0, 256, (9, 32, 48, 3), np.uint8)
    videos.write_video(tmp_path / "good.mp4", source, 8, crf=4)
    videos.write_video(tmp_path / "small.mp4", source, 8, crf=40)
    assert (tmp_path / "good.mp4").stat().st_size > 2 * (tmp_path / "small.mp4").stat().st_size


@pytest.mark.parametrize(
    ("name", "frames", "says"),
    [("a.mp4", clip(3, 31, 48), "48 x 31.*even"), ("a.gif", clip(), "end in .mp4"), ("a.mp4", clip()[:0], "not empty"),
     ("a.mp4", clip().astype(np.float32), "uint8"), ("a.mp4", clip()[0], "uint8")],
)  # fmt: skip
def test_impossible_clips_are_refused_and_nothing_is_written(
    tmp_path: Path, name: str, frames: np.ndarray, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        videos.write_video(tmp_path / name, frames, 8)
    assert no_leftovers(tmp_path)
