"""Pictures and clips in and out: what works, what is refused with a sentence, and nothing half written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import struct
import warnings
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

from pusa import media
from pusa.errors import InputError, PusaError

RNG = np.random.default_rng(0)


def ramp(height: int = 24, width: int = 32) -> media.Image:
    """A smooth colourful picture, different in all four corners."""
    y, x = np.mgrid[0 : height - 1 : height * 1j, 0 : width - 1 : width * 1j]
    return np.stack([255 * x / width, 255 * y / height, 255 - 120 * x / width], -1).astype(np.uint8)


def clip(count: int = 5, height: int = 32, width: int = 48) -> media.Frames:
    """Frames whose overall brightness names them: frame k is about 20 + 12 k."""
    levels = 20 + 12 * np.arange(count)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(frames: media.Frames) -> list[int]:
    """Which frames of `clip` these are."""
    return [round((float(f.mean()) - 20) / 12) for f in frames]


def encode(
    path: Path,
    frames: media.Frames,
    fps: float,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: list[float] | None = None,
    sound: bool = False,
) -> Path:
    """A file as another program might write it; `times` in seconds makes a variable frame rate."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio: Any = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if times:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def no_leftovers(folder: Path, *expected: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) == sorted(expected)


# Pictures that work


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.bmp", "RGB"), ("a.webp", "RGB"), ("a.tiff", "RGB"), ("a.jpg", "RGB"), ("a.jpg", "CMYK"),
     ("a.tiff", "CMYK"), ("a.gif", "P"), ("a.png", "P"), ("a.tiff", "LAB"), ("a.tiff", "YCbCr")],
)  # fmt: skip
def test_common_picture_kinds_come_out_as_rgb(tmp_path: Path, name: str, mode: str) -> None:
    rgb = PILImage.fromarray(ramp())
    path = tmp_path / name
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
        picture = ImageCms.applyTransform(rgb, transform)
        assert picture is not None
        picture.save(path)
        assert media.read_image(path).shape == (24, 32, 3)
        return
    (rgb.quantize(64) if mode == "P" else rgb.convert(mode)).save(path)
    image = media.read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert psnr(image, ramp()) > 25


def test_greyscale_and_bilevel_pictures(tmp_path: Path) -> None:
    grey = ramp()[..., 0]
    PILImage.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(media.read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    PILImage.fromarray(grey > 128).save(tmp_path / "one.png")
    assert np.array_equal(media.read_image(tmp_path / "one.png")[..., 0], np.where(grey > 128, 255, 0))


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
def test_16_bit_pictures_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 257, 257 * 100 + 100, 257 * 100 + 200, 65_535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 5 1 65535\n" + deep.astype(">u2").tobytes())
    else:
        PILImage.fromarray(deep).save(tmp_path / name)
    assert media.read_image(tmp_path / name)[0, :, 0].tolist() == [0, 1, 100, 101, 255]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    PILImage.fromarray(rgba).save(tmp_path / "rgba.png")
    assert media.read_image(tmp_path / "rgba.png")[0, :, 1].tolist() == [255, 127, 0]
    PILImage.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")
    assert media.read_image(tmp_path / "la.png")[0, :, 1].tolist() == [255, 127, 0]
    palette = PILImage.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert media.read_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to see it upright
    PILImage.fromarray(ramp()).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(media.read_image(tmp_path / "phone.png"), np.rot90(ramp(), -1))


# Pictures that do not


def animated(path: Path) -> None:
    frames = [PILImage.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def wide(path: Path) -> None:
    PILImage.new("L", (20_000, 2)).save(path)


def bomb(path: Path) -> None:
    """A PNG header that promises 60,000 x 60,000 pixels."""
    PILImage.new("L", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)


def noisy_jpeg(path: Path) -> None:
    PILImage.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    cut(path, 0.5)


def noisy_png(path: Path) -> None:
    PILImage.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    cut(path, 0.5)


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.png": (lambda p: None, "does not exist"),
    "folder.png": (lambda p: p.mkdir(), "is a folder"),
    "empty.png": (lambda p: p.touch(), "is empty"),
    "text.png": (lambda p: p.write_text("hello"), "is not a picture"),
    "page.svg": (lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "is not a picture"),
    "cut.jpg": (noisy_jpeg, "damaged, cut off"),
    "cut.png": (noisy_png, "damaged, cut off"),
    "stub.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00"), "not a picture"),
    "moving.gif": (animated, "holds 4 pictures"),
    "moving.webp": (animated, "holds 4 pictures"),
    "pages.tiff": (animated, "holds 4 pictures"),
    "video.mp4": (lambda p: encode(p, clip(), 8), "is a video where a picture is needed"),
    "renamed.png": (lambda p: encode(p.with_suffix(".mp4"), clip(), 8).rename(p), "is a video"),
    "wide.png": (wide, "20000 x 2 pixels and the limit is 16384"),
    "bomb.png": (bomb, "too many pixels"),
    "float.tiff": (lambda p: PILImage.fromarray(np.ones((4, 4), np.float32)).save(p), "floating-point"),
    "int32.tiff": (lambda p: PILImage.fromarray(np.full((4, 4), -5, np.int32)).save(p), "32-bit"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_what_is_not_one_picture_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    make, says = BAD_PICTURES[name]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=says) as caught:
            media.read_image(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    assert "; " in message, "what to do comes after a semicolon"


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 300 + ".png"])
def test_impossible_paths_are_input_errors(path: str) -> None:
    with pytest.raises(InputError):
        media.read_image(path)


def test_damage_never_escapes_as_another_exception(tmp_path: Path) -> None:
    PILImage.fromarray(ramp()).save(tmp_path / "a.png")
    media.write_video(tmp_path / "a.mp4", clip(), 8)
    for name, read in (("a.png", media.read_image), ("a.mp4", media.read_video)):
        good = (tmp_path / name).read_bytes()
        for seed in range(40):
            rng = np.random.default_rng(seed)
            data = bytearray(good)
            for at in rng.integers(0, len(data), 8):
                data[at] = rng.integers(256)
            (tmp_path / f"x{name}").write_bytes(data[: rng.integers(1, len(data))] if seed % 2 else data)
            with contextlib.suppress(InputError):
                read(tmp_path / f"x{name}")


# Clips in


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
    frames, rate = media.read_video(encode(tmp_path / name, source, fps, codec, pixels))
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
    media.write_video(tmp_path / "a.mp4", source, fps)
    frames, rate = media.read_video(tmp_path / "a.mp4")
    assert frames.shape == source.shape
    assert rate == pytest.approx(fps, rel=1e-4)
    assert np.abs(frames.astype(int) - source).max() <= 6


def test_going_round_neither_darkens_nor_tints_nor_shifts(tmp_path: Path) -> None:
    source = np.stack([np.ascontiguousarray(np.rot90(ramp(64, 64), i)) for i in range(4)])
    frames = source
    for _ in range(4):
        media.write_video(tmp_path / "a.mp4", frames, 8, crf=4)
        frames, _rate = media.read_video(tmp_path / "a.mp4")
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
        frames, rate = media.read_video(path, fps)
        assert rate == fps
        assert numbers(frames) == expected


def test_variable_frame_rate_becomes_constant_at_the_right_moments(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 2.0]
    path = encode(tmp_path / "phone.mkv", clip(6), 10, times=times)
    frames, fps = media.read_video(path, 10)
    assert fps == 10
    assert numbers(frames) == [int(np.argmin([abs(t - k / 10) for t in times])) for k in range(21)]
    frames, fps = media.read_video(path)
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
        media.read_image(path)
    read, fps = media.read_video(path, fps=10)
    assert fps == 10
    assert read[:, 0, 0, 0].tolist() in ([0, 60, 120, 120, 180], [0, 60, 120, 180, 180])
    assert media.read_video(path)[1] == pytest.approx(3 / 0.4)


def test_pages_are_no_video(tmp_path: Path) -> None:
    animated(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"save one of them as PNG$"):
        media.read_image(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="is a picture where a video is needed"):
        media.read_video(tmp_path / "a.tiff")


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_rotation_metadata_is_applied(tmp_path: Path, quarter: int) -> None:
    """Players turn a picture clockwise by the matrix in the track header."""
    source = np.broadcast_to(ramp(32, 48), (3, 32, 48, 3))
    media.write_video(tmp_path / "phone.mp4", source, 8)
    data = bytearray((tmp_path / "phone.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    assert struct.unpack(">9i", data[at : at + 36])[0] == 0x10000
    a, b = {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[quarter]
    matrix = (a * 0x10000, b * 0x10000, 0, -b * 0x10000, a * 0x10000, 0, 0, 0, 0x40000000)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "phone.mp4").write_bytes(data)
    frames, _ = media.read_video(tmp_path / "phone.mp4")
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
    assert media.read_video(tmp_path / "dv.mp4")[0].shape == (3, 32, 64, 3)


def test_transparent_gif_is_laid_over_white(tmp_path: Path) -> None:
    frames = [PILImage.new("RGBA", (8, 8), (0, 0, 0, 0)) for _ in range(2)]
    frames[1].paste((250, 0, 0, 255), (0, 0, 4, 8))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    read, fps = media.read_video(tmp_path / "a.gif")
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
    media.write_video(path, RNG.integers(0, 256, (24, 32, 48, 3), np.uint8), 8)
    cut(path, share)


BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda p: None, "does not exist"),
    "folder.mp4": (lambda p: p.mkdir(), "is a folder"),
    "empty.mp4": (lambda p: p.touch(), "is empty"),
    "text.mp4": (lambda p: p.write_text("hello"), "not a video"),
    "text.txt": (lambda p: p.write_text("hello\n" * 99), "text where a video|not a video"),
    "picture.png": (lambda p: PILImage.fromarray(ramp()).save(p), "is a picture where a video is needed"),
    "picture.jpg": (lambda p: PILImage.fromarray(ramp()).save(p), "is a picture where a video is needed"),
    "sound.m4a": (sound_only, "no picture track"),
    "headless.mp4": (headless, "damaged|no frames|no picture"),
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
        media.read_video(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message


def test_a_clip_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media.write_video(tmp_path / "a.mp4", clip(), 8)
    monkeypatch.setattr(media, "MAX_CLIP_BYTES", clip().nbytes - 1)
    with pytest.raises(InputError, match="memory"):
        media.read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(tmp_path: Path, fps: float) -> None:
    media.write_video(tmp_path / "a.mp4", clip(), 8)
    with pytest.raises(InputError, match="fps"):
        media.read_video(tmp_path / "a.mp4", fps)
    with pytest.raises(InputError, match="fps"):
        media.write_video(tmp_path / "b.mp4", clip(), fps)


# Shape

sides = st.integers(1, 70)


@settings(deadline=None)
@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), mode=st.sampled_from(["crop", "pad", "stretch"]))
def test_fit_gives_the_size_and_keeps_flat_colours(old: tuple[int, int], new: tuple[int, int], mode: media.Fit) -> None:
    flat = np.full((2, old[1], old[0], 3), (200, 100, 50), np.uint8)
    out = media.fit(flat, new, mode)
    assert out.shape == (2, new[1], new[0], 3)
    assert np.array_equal(media.fit(flat[0], new, mode), out[0])
    inside = out.reshape(-1, 3)
    if mode == "pad":
        inside = inside[inside.any(1)]
        assert len(inside) >= 2 * (min(new[0] / old[0], new[1] / old[1]) * min(old)) ** 2 * 0.2
    assert np.array_equal(np.unique(inside, axis=0), [[200, 100, 50]])


def test_fit_crop_keeps_the_middle_and_pad_keeps_everything() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40, 0] = 255
    assert (media.fit(picture, (20, 20), "crop")[..., 0] == 255).all()
    padded = media.fit(picture, (60, 60), "pad")
    assert np.array_equal(padded[20:40], picture)
    assert not padded[:20].any()
    assert not padded[40:].any()
    stretched = media.fit(picture, (60, 40), "stretch")
    assert np.array_equal(stretched[..., 0] > 127, np.repeat(picture, 2, 0)[..., 0] > 127)


def test_fit_is_antialiased_and_leaves_the_right_size_alone() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = media.fit(checks, (16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 3
    assert media.fit(checks, (64, 64)) is checks


def test_fit_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="at least 1"):
        media.fit(ramp(), (0, 5))
    with pytest.raises(InputError, match="crop, pad or stretch"):
        media.fit(ramp(), (5, 5), "squash")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="uint8"):
        media.fit(ramp().astype(np.float32), (5, 5))  # type: ignore[arg-type]


def test_contact_sheet_lays_frames_out_in_rows() -> None:
    frames = clip(5, 10, 20)
    sheet = media.contact_sheet(frames, columns=3, gap=2)
    assert sheet.shape == (2 * 12 + 2, 3 * 22 + 2, 3)
    for index in range(5):
        y, x = 2 + index // 3 * 12, 2 + index % 3 * 22
        assert np.array_equal(sheet[y : y + 10, x : x + 20], frames[index])
    assert (sheet[14:24, 46:66] == 255).all()
    labelled = media.contact_sheet(frames, columns=3, labels=True)
    assert labelled.shape == (2 * 25 + 2, 68, 3)
    assert (labelled[2:15, 2:22] < 128).any()
    assert np.array_equal(labelled[15:25, 2:22], frames[0])
    assert media.contact_sheet(frames).shape == sheet.shape
    assert media.contact_sheet(frames, columns=9).shape[1] == 5 * 22 + 2


def test_contact_sheet_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="columns"):
        media.contact_sheet(clip(), columns=0)
    with pytest.raises(InputError, match="2 labels for 5 frames"):
        media.contact_sheet(clip(), labels=["a", "b"])
    with pytest.raises(InputError, match="none empty"):
        media.contact_sheet(clip()[:0])


# Files out


def test_video_bytes_depend_on_the_frames_only(tmp_path: Path) -> None:
    source = RNG.integers(0, 256, (9, 32, 48, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        media.write_video(tmp_path / name, source, 16)
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
    media.write_video("http:12:30 %d.mp4", clip(), 8)
    assert numbers(media.read_video("http:12:30 %d.mp4")[0]) == [0, 1, 2, 3, 4]


def test_crf_trades_size_for_quality(tmp_path: Path) -> None:
    source = RNG.integers(0, 256, (9, 32, 48, 3), np.uint8)
    media.write_video(tmp_path / "good.mp4", source, 8, crf=4)
    media.write_video(tmp_path / "small.mp4", source, 8, crf=40)
    assert (tmp_path / "good.mp4").stat().st_size > 2 * (tmp_path / "small.mp4").stat().st_size


@pytest.mark.parametrize(
    ("name", "frames", "says"),
    [("a.mp4", clip(3, 31, 48), "48 x 31.*even"), ("a.gif", clip(), "end in .mp4"), ("a.mp4", clip()[:0], "none empty"),
     ("a.mp4", clip().astype(np.float32), "uint8"), ("a.mp4", clip()[0], "uint8")],
)  # fmt: skip
def test_impossible_clips_are_refused_and_nothing_is_written(
    tmp_path: Path, name: str, frames: np.ndarray, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        media.write_video(tmp_path / name, frames, 8)
    assert no_leftovers(tmp_path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.mp4": lambda p: media.write_video(p, RNG.integers(0, 256, (9, 64, 64, 3), np.uint8), 8),
    "a.png": lambda p: media.write_image(p, RNG.integers(0, 256, (99, 99, 3), np.uint8)),
    "a.json": lambda p: media.write_json(p, ["x" * 9999]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_unusable_folders_are_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / name).mkdir()
    for path, says in [
        (tmp_path / "none" / name, "there is no folder"),
        (tmp_path / "file" / name, "there is no folder"),
        (tmp_path / name, "it is a folder"),
    ]:
        for act in (WRITERS[name], media.check_writable):
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
    for act in (WRITERS[name], media.check_writable):
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
        media.replacing(tmp_path / "a.json") as part,
    ):
        media.write_json(part, [])
    assert no_leftovers(tmp_path)


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    class Interrupted(np.ndarray):
        def __iter__(self) -> Any:
            yield from list(super().__iter__())[:3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        media.write_video(path, clip(9).view(Interrupted), 8)
    with pytest.raises(KeyboardInterrupt), media.replacing(tmp_path / "b.safetensors") as part:  # noqa: PT012
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert no_leftovers(tmp_path, "a.mp4")


def test_writing_replaces_and_keeps_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        for name, write in WRITERS.items():
            media.check_writable(tmp_path / name)
            assert no_leftovers(tmp_path)
            for _ in range(2):
                write(tmp_path / name)
            assert no_leftovers(tmp_path, name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
            (tmp_path / name).unlink()
    finally:
        os.umask(mask)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.JPEG"])
def test_written_pictures_read_back(tmp_path: Path, name: str) -> None:
    media.write_image(tmp_path / name, ramp())
    image = media.read_image(tmp_path / name)
    assert np.array_equal(image, ramp()) or (name.lower().endswith(("jpg", "jpeg")) and psnr(image, ramp()) > 30)
    with pytest.raises(InputError, match=r"must end in \.png"):
        media.write_image(tmp_path / "a.xyz", ramp())


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    media.write_json(tmp_path / "a.json", {"prompt": "σ × é", "size": [64, 64]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"prompt": "σ × é", "size": [64, 64]}
    assert "σ" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        media.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["size"] == [64, 64]


def test_a_private_file_of_the_writer_gets_the_usual_mode(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    with media.replacing(tmp_path / "a.bin") as part:
        part.write_bytes(b"a")
        part.chmod(0o600)
    assert (tmp_path / "a.bin").stat().st_mode == usual.stat().st_mode
