"""Pictures with colour profiles come out as browsers show them; broken profiles leave the pixels alone."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageCms

from pusa.media import images
from tests.footage import ramp
from tests.media.test_tone_mapping import FROM_709, P3, pq

D50 = (0.9642, 1.0, 0.8249)
PROFILES = {
    "Display P3": ([[0.5151, 0.2919, 0.1572], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]], 2.2),
    "Adobe RGB": ([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]], 2.19921875),
    "sRGB": ([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]], 2.2),
}
"""columns: red, green and blue in XYZ of D50; the exponent"""


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(65_536 * value))


def profile(matrix: list[list[float]] | None, gamma: float) -> bytes:
    """An ICC profile, version 2.4: three primaries with one exponent, or grey with one."""
    xyz = {b"rXYZ": 0, b"gXYZ": 1, b"bXYZ": 2} if matrix else {}
    tags = {name: b"XYZ " + bytes(4) + b"".join(fixed(row[at]) for row in matrix or []) for name, at in xyz.items()}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + b"".join(map(fixed, D50))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC") if matrix else (b"kTRC",), curve)
    text = b"a profile\0"
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(80)
    tags[b"cprt"] = b"text" + bytes(4) + b"none" + bytes(4)
    table, data, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(data), len(content))
        data += content
    kind = b"RGB " if matrix else b"GRAY"
    head = struct.pack(">I4xI4s4s4s12x4s", place + len(data), 0x02400000, b"mntr", kind, b"XYZ ", b"acsp")
    head += bytes(64 - len(head)) + struct.pack(">I", 0) + b"".join(map(fixed, D50))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


def light(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    x = levels / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def written(name: str) -> NDArray[np.uint8]:
    """The levels of a file with this profile that show the colours of `ramp`."""
    matrix, gamma = PROFILES[name]
    xyz = light(COLOURS) @ np.array(PROFILES["sRGB"][0]).T
    shown = np.clip(np.linalg.solve(np.array(matrix), xyz[..., None])[..., 0], 0, 1)
    return np.rint(255 * shown ** (1 / gamma)).astype(np.uint8)


COLOURS = np.clip(ramp(32, 48), 30, 225)


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "avif", "heic", "palette.png", "rgba.png"])
def test_profiles_are_converted_to_srgb(tmp_path: Path, name: str, suffix: str) -> None:
    path, icc = tmp_path / f"a.{suffix}", profile(*PROFILES[name])
    picture = PILImage.fromarray(written(name))
    if suffix == "heic":
        file = pillow_heif.from_pillow(picture)
        file.info["icc_profile"] = icc
        file.save(path, quality=-1, chroma=444)
    else:
        if suffix == "palette.png":
            picture = picture.quantize(256)
        if suffix == "rgba.png":
            picture.putalpha(255)
        options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
        options |= {"quality": 100, "subsampling": "4:4:4"} if suffix == "avif" else {}
        picture.save(path, icc_profile=icc, **options)
    error = np.abs(images.read_image(path).astype(int) - COLOURS)
    assert error.mean() < (4 if suffix == "palette.png" else 1.5)
    unconverted = np.abs(np.asarray(picture.convert("RGB")).astype(int) - COLOURS)
    assert unconverted.mean() > 3 * error.mean()


def test_grey_profiles(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8)[None]
    PILImage.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile(None, 1.0))
    image = images.read_image(tmp_path / "a.png")
    expected = 255 * (1.055 * (grey[0, 1:] / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(image[0, 1:, 1] - expected).max() < 2
    deep = np.arange(256, dtype=np.uint16)[None] * 257
    PILImage.fromarray(deep).save(tmp_path / "deep.png", icc_profile=profile(None, 1.0))
    np.testing.assert_array_equal(images.read_image(tmp_path / "deep.png"), image)


def test_what_means_srgb_stays_bit_for_bit(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("RGB", "L"):
        PILImage.fromarray(ramp()).convert(mode).save(tmp_path / "a.png", icc_profile=own)
        image = images.read_image(tmp_path / "a.png")
        np.testing.assert_array_equal(image, np.asarray(PILImage.fromarray(ramp()).convert(mode).convert("RGB")))


@pytest.mark.parametrize("icc", [b"junk", b"\0" * 200, profile(*PROFILES["Adobe RGB"])[:200], profile(None, 1.0)])
def test_a_profile_that_does_not_fit_leaves_the_pixels(tmp_path: Path, icc: bytes) -> None:
    PILImage.fromarray(ramp()).save(tmp_path / "a.png", icc_profile=icc)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), ramp())


def with_chunks(path: Path, picture: NDArray[np.uint8], **chunks: bytes) -> Path:
    PILImage.fromarray(picture).save(path)
    raw = path.read_bytes()
    added = b""
    for name, data in chunks.items():
        body = name.encode() + data
        added += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(raw[:33] + added + raw[33:])
    return path


def test_gamma_and_primaries_of_a_png(tmp_path: Path) -> None:
    linear = np.rint(255 * light(COLOURS)).astype(np.uint8)
    image = images.read_image(with_chunks(tmp_path / "a.png", linear, gAMA=struct.pack(">I", 100_000)))
    assert np.abs(image.astype(int) - COLOURS).max() <= 8, "8 bits of light are coarse"
    usual = with_chunks(tmp_path / "b.png", ramp(), gAMA=struct.pack(">I", 45_455))
    np.testing.assert_array_equal(images.read_image(usual), ramp())
    sure = with_chunks(tmp_path / "c.png", ramp(), sRGB=b"\0", gAMA=struct.pack(">I", 100_000))
    np.testing.assert_array_equal(images.read_image(sure), ramp())
    p3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    shown = light(COLOURS) @ FROM_709[P3].T
    wide = np.rint(255 * (1.055 * np.maximum(shown, 1e-9) ** (1 / 2.4) - 0.055)).astype(np.uint8)
    image = images.read_image(with_chunks(tmp_path / "d.png", wide, gAMA=struct.pack(">I", 45_455), cHRM=p3))
    assert np.abs(image.astype(int) - COLOURS).max() <= 3
    image = images.read_image(with_chunks(tmp_path / "e.png", wide, cICP=bytes([12, 13, 0, 1])))
    assert np.abs(image.astype(int) - COLOURS).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "avif", "heic"])
def test_hdr_pictures_are_tone_mapped_with_a_note(tmp_path: Path, suffix: str) -> None:
    shown = np.repeat(np.linspace(30, 180, 48)[None, :, None], 32, 0).repeat(3, 2)
    levels = np.rint(255 * pq(203 * (shown / 255) ** 2.4)).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        with_chunks(path, levels, cICP=bytes([9, 16, 0, 1]))
    elif suffix == "heic":
        file = pillow_heif.from_pillow(PILImage.fromarray(levels))
        file.save(path, quality=-1, chroma=444, color_primaries=9, transfer_characteristics=16, save_nclx_profile=True)
    else:
        PILImage.fromarray(levels).save(path, quality=100, subsampling="4:4:4")
        raw = path.read_bytes()
        at = raw.index(b"colrnclx") + 8
        path.write_bytes(raw[:at] + struct.pack(">HH", 9, 16) + raw[at + 4 :])
    with pytest.warns(UserWarning, match=rf"a\.{suffix} is HDR \(PQ\): it is tone-mapped to BT\.709"):
        image = images.read_image(path)
    assert np.abs(image - shown).max() < 5
