"""What a media file is, by its content and not by its name, and the one door to FFmpeg.

Tags (title, artist, chapters) are not read, so their encoding does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pusa.errors import InputError

_TEXT_DEMUXERS = {"tty", "bin", "srt", "webvtt", "ass"}
_PICTURE_BRANDS = frozenset(
    {"mif1", "mif2", "msf1", "heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "avif", "avis", "avio"}
    | {"miaf", "MiHE", "MiHB", "avci", "avcs", "jpeg", "jpgs", "j2ki", "j2is", "vvic", "vvis", "evbi", "unif"}
)
"""brands of the HEIF family, ISO/IEC 23008-12 and AV1 Image File Format"""


MOTION_JPEG = (".mjpeg", ".mjpg")
_rules: dict[str, str] = {}
"""options of FFmpeg for every file, see `accept_only`"""


def accept_only(formats: Sequence[str], codecs: Sequence[str]) -> None:
    """From now on, let FFmpeg open only files of these formats, and find out about tracks of these codecs only.

    It holds for this process, and cannot be taken back. Use it in a process that opens files of strangers.

    Args:
        formats: names of demuxers, as `ffmpeg -demuxers` prints them.
        codecs: names of decoders, as `ffmpeg -decoders` prints them.
    """
    _rules.update(format_whitelist=",".join(formats), codec_whitelist=",".join(codecs), protocol_whitelist="file")


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a file with FFmpeg. Raises the errors of PyAV: FFmpegError, LookupError, ValueError."""
    motion_jpeg = "mjpeg" if path.suffix.lower() in MOTION_JPEG else None  # its content is that of a picture
    with av.open(plain_name(path), format=motion_jpeg, metadata_errors="replace", container_options=_rules) as opened:
        yield opened


def plain_name(path: Path) -> str:
    """The absolute path, so that FFmpeg does not take a name such as `12:30.mp4` for a URL."""
    return str(path.absolute())


def kind_of(container: InputContainer) -> Literal["picture", "text", "video"]:
    """What FFmpeg recognises in an opened file; sound without pictures counts as "video"."""
    if container.format.name.endswith("_pipe") or container.format.name in ("image2", "ico"):
        return "picture"
    return "text" if container.format.name in _TEXT_DEMUXERS else "video"


def is_video(path: Path) -> bool:
    """Whether FFmpeg recognises a video or sound."""
    try:
        with opened(path) as container:
            return kind_of(container) == "video"
    except (av.FFmpegError, LookupError, ValueError):
        return False


def is_heif(path: Path) -> bool:
    """Whether the file belongs to the HEIF family (HEIC, AVIF), pictures or sequences of pictures.

    FFmpeg gives the tiles of such a picture as video tracks. So it must not be used for pictures of this family.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp":
        return False
    brands = [
        head[at : at + 4].decode("latin-1")
        for at in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)
        if at != 12
    ]
    if brands[:1] and brands[0] in _PICTURE_BRANDS:
        return True
    return not _PICTURE_BRANDS.isdisjoint(brands) and not is_sequence(path)


def is_sequence(path: Path) -> bool:
    """Whether a file of the HEIF family has a `moov` box, which describes tracks of moving pictures."""
    return any(kind == b"moov" for kind, _, _ in boxes(path))


def boxes(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """The outermost boxes of an ISO media file (MP4, MOV, HEIF): their types, first bytes, and lengths in bytes.

    The length is the stated one; the box may reach beyond the end of the file. Iteration ends at a box that is no box.
    """
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place + 8 <= size:
            file.seek(place)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - place
            if length < 8:
                return
            yield head[4:8], place, length
            place += length


def picture_track(path: Path, container: InputContainer) -> VideoStream:
    """The video track of an opened file, not its cover picture; InputError if there is none.

    Of several tracks it is the one that `ffmpeg` chooses: the largest picture, and the default track before all others.
    Tracks without frames do not count.
    """
    if kind_of(container) == "text":
        raise InputError(f"{path} is text, but a video is needed; give an mp4, mov, mkv, webm or gif file")
    flags = av.stream.Disposition
    streams = [s for s in container.streams.video if not s.disposition & (flags.attached_pic | flags.timed_thumbnails)]
    if not streams:
        raise InputError(f"{path} has no video track (sound only?); give a video")
    streams = [s for s in streams if s.codec_context is not None]
    if not streams:
        raise InputError(f"{path} has a video track whose codec is not known here; convert it to an H.264 mp4")
    return max(streams, key=_preference)


def _preference(stream: VideoStream) -> int:
    """The score of `ffmpeg` for the choice of a stream; the first of equals is chosen."""
    filled = 100_000_000 if stream.frames or not stream.duration or len(stream.index_entries) else 0
    default = 5_000_000 if stream.disposition & av.stream.Disposition.default else 0
    return filled + default + stream.width * stream.height
