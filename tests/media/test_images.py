"""Pictures: what works, and what is refused with a sentence."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.media import images
from tests.footage import animated, clip, cut, encode, psnr, ramp

RNG = np.random.default_rng(0)


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
        assert images.read_image(path).shape == (24, 32, 3)
        return
    (rgb.quantize(64) if mode == "P" else rgb.convert(mode)).save(path)
    image = images.read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert psnr(image, ramp()) > 25


def test_greyscale_and_bilevel_pictures(tmp_path: Path) -> None:
    grey = ramp()[..., 0]
    PILImage.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(images.read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    PILImage.fromarray(grey > 128).save(tmp_path / "one.png")
    assert np.array_equal(images.read_image(tmp_path / "one.png")[..., 0], np.where(grey > 128, 255, 0))


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
def test_16_bit_pictures_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 257, 257 * 100 + 100, 257 * 100 + 200, 65_535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 5 1 65535\n" + deep.astype(">u2").tobytes())
    else:
        PILImage.fromarray(deep).save(tmp_path / name)
    assert images.read_image(tmp_path / name)[0, :, 0].tolist() == [0, 1, 100, 101, 255]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    PILImage.fromarray(rgba).save(tmp_path / "rgba.png")
    assert images.read_image(tmp_path / "rgba.png")[0, :, 1].tolist() == [255, 127, 0]
    PILImage.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")
    assert images.read_image(tmp_path / "la.png")[0, :, 1].tolist() == [255, 127, 0]
    palette = PILImage.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert images.read_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to see it upright
    PILImage.fromarray(ramp()).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(images.read_image(tmp_path / "phone.png"), np.rot90(ramp(), -1))


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
    "moving.gif": (animated, "contains 4 pictures"),
    "moving.webp": (animated, "contains 4 pictures"),
    "pages.tiff": (animated, "contains 4 pictures"),
    "video.mp4": (lambda p: encode(p, clip(), 8), "is a video, but a picture is needed"),
    "renamed.png": (lambda p: encode(p.with_suffix(".mp4"), clip(), 8).rename(p), "is a video"),
    "wide.png": (wide, "20000 x 2 pixels; the limit is 16384"),
    "bomb.png": (bomb, "too many pixels"),
    "float.tiff": (lambda p: PILImage.fromarray(np.ones((4, 4), np.float32)).save(p), "floating-point"),
    "int32.tiff": (lambda p: PILImage.fromarray(np.full((4, 4), -5, np.int32)).save(p), "32-bit"),
    "dark.tiff": (lambda p: PILImage.fromarray(np.full((4, 4), 255, np.int32)).save(p), "32-bit"),
}


def test_a_pgm_of_16_bits_has_a_known_range(tmp_path: Path) -> None:
    """Pillow opens it with 32 bits, as it opens a TIFF file whose range is unknown."""
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n\xff\xff\x80\x80")
    assert images.read_image(tmp_path / "a.pgm")[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_what_is_not_one_picture_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    make, says = BAD_PICTURES[name]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=says) as caught:
            images.read_image(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    assert "; " in message, "what to do comes after a semicolon"


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 300 + ".png"])
def test_impossible_paths_are_input_errors(path: str) -> None:
    with pytest.raises(InputError):
        images.read_image(path)


sides = st.integers(1, 70)


@settings(deadline=None)
@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), mode=st.sampled_from(["crop", "pad", "stretch"]))
def test_fit_gives_the_size_and_keeps_flat_colours(
    old: tuple[int, int], new: tuple[int, int], mode: images.Fit
) -> None:
    flat = np.full((2, old[1], old[0], 3), (200, 100, 50), np.uint8)
    out = images.fit(flat, new, mode)
    assert out.shape == (2, new[1], new[0], 3)
    assert np.array_equal(images.fit(flat[0], new, mode), out[0])
    inside = out.reshape(-1, 3)
    if mode == "pad":
        inside = inside[inside.any(1)]
        assert len(inside) >= 2 * (min(new[0] / old[0], new[1] / old[1]) * min(old)) ** 2 * 0.2
    assert np.array_equal(np.unique(inside, axis=0), [[200, 100, 50]])


def test_fit_crop_keeps_the_middle_and_pad_keeps_everything() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40, 0] = 255
    assert (images.fit(picture, (20, 20), "crop")[..., 0] == 255).all()
    padded = images.fit(picture, (60, 60), "pad")
    assert np.array_equal(padded[20:40], picture)
    assert not padded[:20].any()
    assert not padded[40:].any()
    stretched = images.fit(picture, (60, 40), "stretch")
    assert np.array_equal(stretched[..., 0] > 127, np.repeat(picture, 2, 0)[..., 0] > 127)


def test_fit_is_antialiased_and_leaves_the_right_size_alone() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = images.fit(checks, (16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 3
    assert images.fit(checks, (64, 64)) is checks


def test_fit_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="at least 1"):
        images.fit(ramp(), (0, 5))
    with pytest.raises(InputError, match="crop, pad or stretch"):
        images.fit(ramp(), (5, 5), "squash")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="uint8"):
        images.fit(ramp().astype(np.float32), (5, 5))  # type: ignore[arg-type]


def test_contact_sheet_lays_frames_out_in_rows() -> None:
    frames = clip(5, 10, 20)
    sheet = images.contact_sheet(frames, columns=3, gap=2)
    assert sheet.shape == (2 * 12 + 2, 3 * 22 + 2, 3)
    for index in range(5):
        y, x = 2 + index // 3 * 12, 2 + index % 3 * 22
        assert np.array_equal(sheet[y : y + 10, x : x + 20], frames[index])
    assert (sheet[14:24, 46:66] == 255).all()
    labelled = images.contact_sheet(frames, columns=3, labels=True)
    assert labelled.shape == (2 * 25 + 2, 68, 3)
    assert (labelled[2:15, 2:22] < 128).any()
    assert np.array_equal(labelled[15:25, 2:22], frames[0])
    assert images.contact_sheet(frames).shape == sheet.shape
    text = "a text that is longer than one of the frames is wide"
    short, long = (images.contact_sheet(frames, columns=3, labels=[text, *rest])[:13] for rest in (["b"] * 4, [""] * 4))
    ink = [np.flatnonzero((one < 128).any(axis=(0, 2))) for one in (short[:, :22], long)]
    assert ink[0].max() <= 22 < 40 < ink[1].max()
    assert images.contact_sheet(frames, columns=9).shape[1] == 5 * 22 + 2


def test_contact_sheet_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="columns"):
        images.contact_sheet(clip(), columns=0)
    with pytest.raises(InputError, match="2 labels for 5 frames"):
        images.contact_sheet(clip(), labels=["a", "b"])
    with pytest.raises(InputError, match="not empty"):
        images.contact_sheet(clip()[:0])


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.JPEG"])
def test_written_pictures_read_back(tmp_path: Path, name: str) -> None:
    images.write_image(tmp_path / name, ramp())
    image = images.read_image(tmp_path / name)
    assert np.array_equal(image, ramp()) or (name.lower().endswith(("jpg", "jpeg")) and psnr(image, ramp()) > 30)
    with pytest.raises(InputError, match=r"must end in \.png"):
        images.write_image(tmp_path / "a.xyz", ramp())
