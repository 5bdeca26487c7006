"""Broken metadata beside good pixels: the pixels are used. Broken pixels stay an error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.media import images
from tests.footage import ramp

PICTURE = PILImage.fromarray(ramp(48, 64))
JUNK = np.random.default_rng(0).bytes(60)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PICTURE.save(file, kind, **options)
    return file.getvalue()


PNG, JPEG, TIFF = encoded("PNG"), encoded("JPEG", quality=95), encoded("TIFF", tiffinfo={270: "a long description"})
WEBP = encoded("WEBP", lossless=True)


def chunk(kind: str, body: bytes, wrong: bool = False) -> bytes:
    data = kind.encode() + body
    return struct.pack(">I", len(body)) + data + struct.pack(">I", zlib.crc32(data) ^ wrong)


def png(kind: str, body: bytes, wrong: bool = False, at: int = 33) -> bytes:
    return PNG[:at] + chunk(kind, body, wrong) + PNG[at:]


def jpeg(marker: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) + 2 if length is None else length
    return JPEG[:2] + struct.pack(">BBH", 0xFF, marker, size) + body + JPEG[2:]


def tiff(place: str) -> bytes:
    """An offset in the file leads beyond its end: of the description, or of the next directory."""
    data = bytearray(TIFF)
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    offsets = {struct.unpack("<H", data[at : at + 2])[0]: at + 8 for at in range(start + 2, start + 2 + 12 * count, 12)}
    at = offsets[270] if place == "text" else start + 2 + 12 * count
    data[at : at + 4] = struct.pack("<I", 0x7FFFFFF0)
    return bytes(data)


def webp(kind: bytes, flag: int) -> bytes:
    head = b"VP8X" + struct.pack("<I", 10) + bytes([flag, 0, 0, 0, 63, 0, 0, 47, 0, 0])
    part = kind + struct.pack("<I", 4) + b"junk"
    body = b"WEBP" + head + (part + WEBP[12:] if kind == b"ICCP" else WEBP[12:] + part)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def heic() -> bytes:
    file, out = pillow_heif.from_pillow(PICTURE), io.BytesIO()
    file.info["exif"] = b"Exif\0\0II*\0" + JUNK
    file.info["icc_profile"] = JUNK
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.save(out, quality=-1, chroma=444)
    return out.getvalue()


def avif(place: int) -> bytes:
    """The payload of the EXIF item is overwritten, from `place` bytes before its start."""
    exif = PILImage.Exif()
    exif[0x010F] = "the maker"
    data = bytearray(encoded("AVIF", quality=100, exif=exif.tobytes()))
    end = data.index(b"the maker")
    at = max(data.rfind(b"MM\0*", 0, end), data.rfind(b"II*\0", 0, end)) - place
    data[at : at + 12] = b"\xff" * 12
    return bytes(data)


BROKEN = {
    "comment-crc.png": png("tEXt", b"k\0v", wrong=True),
    "last-crc.png": png("tEXt", b"k\0v", wrong=True, at=len(PNG) - 12),
    "exif-crc.png": png("eXIf", b"junk", wrong=True),
    "profile.png": png("iCCP", b"n\0\0junk"),
    "profile-empty.png": png("iCCP", b""),
    "gamma-short.png": png("gAMA", b"\0"),
    "primaries-zero.png": png("cHRM", bytes(32)),
    "gamma-zero.png": png("gAMA", bytes(4)),
    "srgb-last.png": png("sRGB", b"", at=len(PNG) - 12),
    "animation-short.png": png("acTL", b"\0"),
    "workflow.png": png("iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
    "unknown-crc.png": png("xxXx", b"y", wrong=True),
    "codes.png": png("cICP", bytes([255] * 4)),
    "jfif.jpg": jpeg(0xE0, b"JFIF\0"),
    "exif.jpg": jpeg(0xE1, b"Exif\0\0II*\0" + JUNK),
    "profile.jpg": jpeg(0xE2, b"ICC_PROFILE\0"),
    "profile-part.jpg": jpeg(0xE2, b"ICC_PROFILE\0\1\3" + JUNK),
    "more-pictures.jpg": jpeg(0xE2, b"MPF\0II*\0" + JUNK),
    "photoshop.jpg": jpeg(0xED, b"Photoshop 3.0\0008BIM" + JUNK[:9]),
    "adobe.jpg": jpeg(0xEE, b"Adobe"),
    "too-long.jpg": jpeg(0xE1, b"Exif\0\0abcd", 40),
    "too-short.jpg": jpeg(0xE1, b"Exif\0\0abcd", 6),
    "length-zero.jpg": jpeg(0xE2, b"Exif\0\0abcd", 0),
    "text.tif": tiff("text"),
    "next.tif": tiff("next"),
    "exif.webp": webp(b"EXIF", 8),
    "profile.webp": webp(b"ICCP", 32),
    "exif.heic": heic(),
    "payload.avif": avif(0),
    "payload-start.avif": avif(10),
    "exif.avif": encoded("AVIF", quality=100, exif=b"Exif\0\0II*\0" + JUNK, xmp=b"\xff<", icc_profile=JUNK),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_pixels_are_used(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = images.read_image(tmp_path / name)
    assert image.shape == (48, 64, 3)
    assert np.abs(image.astype(int) - ramp(48, 64)).mean() < 2.5


def test_orientation_and_colours_survive_another_broken_part(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6
    whole = encoded("PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk("tEXt", b"k\0v", wrong=True) + whole[33:])
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), np.rot90(ramp(48, 64), -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_damaged_pixels_stay_an_error(tmp_path: Path, kind: str) -> None:
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "a", kind)
    good = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError):
        images.read_image(tmp_path / "a")
    if kind == "PNG":
        (tmp_path / "a").write_bytes(good[:400] + bytes([good[400] ^ 1]) + good[401:])
        with pytest.raises(InputError):
            images.read_image(tmp_path / "a")


@pytest.mark.parametrize("entries", [(1000, 1_000_000), (60_000, 30_000)])
def test_a_directory_that_states_more_than_the_file_holds_is_not_loaded(
    tmp_path: Path, entries: tuple[int, int]
) -> None:
    """Loading it would take minutes and as much memory."""
    count, length = entries
    directory = b"".join(struct.pack("<HHII", 1000 + number % 60_000, 7, length, 8) for number in range(count))
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", count) + directory + bytes(1_000_000))
    with pytest.raises(InputError, match="is not a picture that can be read; convert it"):
        images.read_image(tmp_path / "a.tif")


def test_directories_in_a_circle_end(tmp_path: Path) -> None:
    data = bytearray(TIFF)
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    at = start + 2 + 12 * count
    data[at : at + 4] = data[4:8]
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif"), ramp(48, 64))
