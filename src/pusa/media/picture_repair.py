"""Copies of PNG, JPEG, TIFF and AVIF files without broken metadata, for files whose pixels are good.

Pillow refuses a whole file for a wrong checksum of a comment. Here only what is needed to show the pixels is kept. Data
of the pixels are never changed, so a damaged picture stays damaged.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_TIFF = (b"II*\0", b"MM\0*")
_AVIF = (b"ftypavif", b"ftypavis", b"ftypmif1")
_AVIF_METADATA = re.compile(rb"(infe.{8}(?:..)?)(?:Exif|mime)", re.DOTALL)
"""the entry of an item of metadata, with a number of two or four bytes"""
_PNG_LENGTHS: dict[bytes, int | None] = {
    b"tRNS": None, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"cICP": 4, b"iCCP": None, b"eXIf": None,
    b"acTL": 8, b"fcTL": 26, b"fdAT": None,
}  # fmt: skip
"""the ancillary chunks that matter, and their lengths in bytes if they are fixed"""
_PNG_COLOURS = (b"sRGB", b"gAMA", b"cHRM", b"cICP", b"iCCP", b"eXIf")

_JPEG_TABLES = {*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD}
_START_OF_SCAN, _QUANTISATION = 0xDA, b"\xff\xdb"
_JPEG_METADATA = {0xE1: b"Exif\0\0", 0xE2: b"ICC_PROFILE\0"}

_TIFF_TAGS = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332,
    338, 339, 340, 341, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532, 34675,
}  # fmt: skip
"""the tags that describe pixels, their orientation and their colours"""
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""bytes of a value, by its type"""


def is_bounded(file: BinaryIO, size: int) -> bool:
    """Whether the directories of a TIFF file state about as much data as the file can hold; True for other files.

    Pillow loads every entry of a directory. Damaged directories may state 65,535 entries with the whole file in each.
    """
    head = file.read(8)
    if not head.startswith(_TIFF) or len(head) < 8:
        return True
    order = "<" if head[:2] == b"II" else ">"
    (place,) = struct.unpack(order + "I", head[4:])
    seen: set[int] = set()
    stated = 0
    while place and place not in seen and place + 2 <= size:
        seen.add(place)
        file.seek(place)
        (count,) = struct.unpack(order + "H", file.read(2))
        entries = file.read(12 * count)
        stated += sum(
            _TIFF_SIZES.get(kind, 8) * number
            for kind, number in struct.iter_unpack(order + "2xHI4x", entries[: len(entries) // 12 * 12])
        )
        if stated + 12 * len(seen) > 2 * size + 2**20:
            return False
        following = file.read(4)
        place = struct.unpack(order + "I", following)[0] if len(following) == 4 else 0
    return True


def can_be_repaired(head: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of a PNG, JPEG, TIFF or AVIF file."""
    return head.startswith((_PNG, _JPEG, *_TIFF)) or head[4:] in _AVIF


def repaired(data: bytes) -> Iterator[bytes]:
    """Copies of a picture with less metadata each: first with its colours and orientation, then without them."""
    for with_colours in (True, False):
        if data.startswith(_PNG):
            yield _png(data, with_colours)
        elif data.startswith(_JPEG):
            yield _jpeg(data, with_colours)
        elif data.startswith(_TIFF):
            yield _tiff(data, with_colours)
    if data[4:12] in _AVIF:
        yield _AVIF_METADATA.sub(rb"\1skip", data)


def _png(data: bytes, with_colours: bool) -> bytes:
    kept, place, animated = [_PNG], len(_PNG), False
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if kind[:1].isupper() or end > len(data):
            kept.append(data[place:end])
        elif _is_sound(data[place:end]) and (with_colours or kind not in _PNG_COLOURS):
            animated |= kind == b"acTL"
            if animated or kind not in (b"fcTL", b"fdAT"):
                kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _is_sound(chunk: bytes) -> bool:
    """Whether an ancillary chunk matters for the pixels and is whole."""
    kind, body = chunk[4:8], chunk[8:-4]
    expected = _PNG_LENGTHS.get(kind, -1)
    whole = bool(body) if expected is None else len(body) == expected
    return whole and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _jpeg(data: bytes, with_colours: bool) -> bytes:
    kept, place = [data[:2]], 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place] != 0xFF or marker == _START_OF_SCAN:
            break
        if marker not in _JPEG_TABLES and data[end : end + 1] != b"\xff":  # its length is wrong
            end = data.find(_QUANTISATION, place + 2)
            if end < 0:
                return data
        elif marker in _JPEG_TABLES or _is_needed(marker, data[place + 4 : end], with_colours):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _is_needed(marker: int, body: bytes, with_colours: bool) -> bool:
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if marker == 0xEE:  # says how the components are to be read
        return body.startswith(b"Adobe") and len(body) >= 12
    mark = _JPEG_METADATA.get(marker)
    return with_colours and mark is not None and body.startswith(mark) and len(body) > len(mark) + 2


def _tiff(data: bytes, with_colours: bool) -> bytes:
    """The first directory with the tags of the pixels only, and no further directory if the file ends before it."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    if start + 2 > len(data):
        return data
    (count,) = struct.unpack(order + "H", data[start : start + 2])
    end = start + 2 + 12 * count
    if end + 4 > len(data):
        return data
    entries = [data[at : at + 12] for at in range(start + 2, end, 12)]
    wanted = _TIFF_TAGS if with_colours else _TIFF_TAGS - {34675}
    kept = [entry for entry in entries if struct.unpack(order + "H", entry[:2])[0] in wanted]
    (following,) = struct.unpack(order + "I", data[end : end + 4])
    following = following if following + 2 <= len(data) else 0
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + struct.pack(order + "I", following)
    return data[:start] + directory.ljust(end + 4 - start, b"\0") + data[end + 4 :]
