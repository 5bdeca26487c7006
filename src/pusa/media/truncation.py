"""Find out whether a media file lacks its end.

The sizes in bytes that a file states decide. Stated durations are often wrong, so they decide only where no size is
stated, or where it is not known whether the missing bytes were frames. A file that lacks only an index is whole.
"""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pusa.media.containers import boxes, opened

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF, _ASF_PROPERTIES = (
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"),
)
_SOUND = 0.4
"""about three frames of AAC at the lowest rate in use, in seconds"""
_OGG_PAGE = 65_307
"""the largest length of a page, in bytes"""


def lack(
    path: Path, container: InputContainer, stream: VideoStream, end: float, frame: float, *, all_tracks: bool
) -> str:
    """What a file lacks, as part of a sentence; "" if it is whole, or if its container does not tell.

    Call it when all packets were read. end: the end of what was read, in seconds. frame: the longest time of a frame.
    all_tracks: whether `end` is that of all tracks, and not of `stream` only.
    """
    kinds, size = container.format.name.split(","), path.stat().st_size
    if "mp4" in kinds:
        missing = _end_of_samples(path, stream) - size
        return f"{missing:,} bytes are missing" if missing > 0 else ""
    if "gif" in kinds and _ends_within_block(path.read_bytes()):
        return "it ends within a picture"
    if "ogg" in kinds and _ends_within_page(path, size):
        return "it ends within a page"
    stated, missing = (container.duration or 0) / av.time_base, stated_size(path) - size
    if "asf" in kinds and missing > size // 20:
        return f"{missing:,} bytes are missing"
    if missing > 0 or "flv" in kinds:
        end = end if all_tracks or not container.streams.audio else _last_time(path)
        if stated - end > (0.5 if missing > 0 else 1.5) * max(frame, _SOUND if container.streams.audio else 0.0):
            return f"it should last {stated:.2f} s and ends at {end:.2f} s"
    return ""


def stated_size(path: Path) -> int:
    """The size in bytes that a file states (MP4, MOV, AVI, WebP, Matroska, WebM, ASF); 0 if none is known."""
    with path.open("rb") as file:
        head = file.read(8192)
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8
    if head[4:8] in _ISO_BOXES:
        return max(start + length for _, start, length in boxes(path))
    if head[:4] == _EBML:
        return _end_of_segment(head)
    if head[:16] == _ASF and (place := head.find(_ASF_PROPERTIES)) > 0:
        return int.from_bytes(head[place + 40 : place + 48], "little")
    return 0


def _end_of_samples(path: Path, stream: VideoStream) -> int:
    """The last byte of the frames that an MP4 file lists. A fragment that is cut does not list them."""
    listed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    parts = [(kind, start + length) for kind, start, length in boxes(path)]
    if all(kind != b"moof" for kind, _ in parts):
        return listed
    return max(listed, *(end for kind, end in parts if kind in (b"moof", b"mdat")))


def _end_of_segment(head: bytes) -> int:
    """The last byte of the segment of a Matroska file; 0 if its size is not known, as in a live recording."""
    place, size = 4, 0
    for identifier in (b"", _SEGMENT):
        if head[place : place + len(identifier)] != identifier:
            return 0
        place += len(identifier)
        length = 9 - head[place].bit_length() if place < len(head) and head[place] else 0
        size = int.from_bytes(head[place : place + length], "big") & ((1 << 7 * length) - 1)
        if not length or size == (1 << 7 * length) - 1:
            return 0
        place += length + (0 if identifier else size)
    return place + size


def _ends_within_page(path: Path, size: int) -> bool:
    """Whether the last page of an Ogg file is not complete."""
    with path.open("rb") as file:
        file.seek(max(0, size - _OGG_PAGE))
        tail = file.read()
    place = tail.rfind(b"OggS")
    count = tail[place + 26] if place >= 0 and place + 26 < len(tail) else 255
    return place < 0 or place + 27 + count + sum(tail[place + 27 : place + 27 + count]) > len(tail)


def _ends_within_block(data: bytes) -> bool:
    """Whether a GIF file ends within a block. The mark at the end of a GIF may be missing."""
    if len(data) < 13:
        return True
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while place < len(data) and data[place] in (0x21, 0x2C):
        if data[place] == 0x21:
            place += 2
        else:
            flags = data[place + 9] if place + 9 < len(data) else 0
            place += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return place > len(data)


def _last_time(path: Path) -> float:
    """The end of the last packet of any track, in seconds."""
    end = 0.0
    with opened(path) as container:
        for packet in container.demux():
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                end = max(end, float((stamp + (packet.duration or 0)) * (packet.time_base or 0)))
    return end
