"""Probe a video or picture file without decoding all of it, and read some of its frames without the others.

The frames of a file are listed from its packets: their timestamps give the number and the times of the frames. So an
hour of video is probed at the speed of the disk. Only the first frame and one near the end are decoded, to learn the
displayed size (after rotation and with square pixels) and whether the codec works. Damage in between is found when the
frames are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pusa import files
from pusa.errors import InputError, PusaError
from pusa.media import containers, decoding, images, picture_files, truncation, videos
from pusa.media.images import Frames, Image

STILLS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jfif", ".mpo", ".bmp", ".webp", ".tif", ".tiff"}
    | {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}
)
"""suffixes by which pictures are found; GIF, PNG, WebP and AVIF files may be animated"""
MOVIES = frozenset(
    {".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv"}
    | {".ogv", ".3gp", ".3g2", ".f4v", ".m2v", ".mxf", ".asf", ".vob", ".qt"}
)
_INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
"""containers in which seeking is exact"""
_UNCOMPRESSED = {"rawvideo", "v210", "v210x", "r210", "r10k", "v308", "v408", "v410", "ayuv", "yuv4", "y41p"}
"""codecs in which a packet of zeros is a black picture"""


class Truncated(InputError):
    """The file ends before the end that its header states."""


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a file contains.

    times: the time of each frame in seconds, ascending, [N]; a still picture has one frame. fps: frames per second, the
    average if the rate varies, and 0 for a still picture. width, height: the displayed size in pixels. sound: whether
    there is an audio track.
    """

    times: NDArray[np.float64]
    fps: float
    width: int
    height: int
    sound: bool = False


@dataclass(frozen=True, eq=False)
class _Track:
    """A video track in display order.

    stamps: timestamps in units of the container, [N], or None if the file has none. times: seconds, [N]. keys: the
    frames at which decoding can begin. squeeze: the width of a pixel divided by its height.
    """

    stamps: NDArray[np.int64] | None
    times: NDArray[np.float64]
    keys: tuple[int, ...]
    fps: float
    squeeze: float


def probe(path: str | Path) -> VideoInfo:
    """Find out what a file contains. Raises Truncated if the file is cut off, InputError if it cannot be read."""
    path = Path(path)
    with _sentences(path):
        if _is_picture(path):
            frames, times = _pictures(path)
            fps = videos.rate_of(times, 0.0)[1] if len(frames) > 1 else 0.0
            return VideoInfo(times, fps, frames.shape[2], frames.shape[1])
        track = _track(path)
        frame = next(_decoded(path, track, 0, whole=False), None)
        if frame is None:
            raise InputError(f"{path} has no picture that can be decoded; export it again")
        with _opened(path) as (container, stream):
            decoding.check_colours(path, stream, frame[1])
            sound = bool(container.streams.audio)
        height, width = decoding.upright(frame[1], track.squeeze).shape[:2]
        if track.keys and track.keys[-1]:
            next(_decoded(path, track, track.keys[-1], whole=False), None)
        return VideoInfo(track.times, track.fps if len(track.times) > 1 else 0.0, width, height, sound)


def read(path: str | Path, seconds: NDArray[np.float64], size: tuple[int, int]) -> Frames:
    """Read the frames nearest to `seconds` [N] after the first frame, cropped to `size` = (width, height).

    Returns uint8 [N, height, width, 3]. The frames are those that `videos.read_video` would choose for a frame rate.
    Decoding begins at the key frame before the first of them and ends at the last. Raises InputError if the file is
    damaged there.
    """
    path = Path(path)
    with _sentences(path):
        if _is_picture(path):
            frames, times = _pictures(path)
            return np.stack([images.fit(frames[i], size) for i in videos.nearest(times, seconds)])
        track = _track(path)
        chosen = videos.nearest(track.times, seconds).tolist()
        start = max((key for key in track.keys if key <= min(chosen)), default=0)
        found: dict[int, Image] = {}
        for place in dict.fromkeys((start, 0)):  # if the seek was not exact, decode from the beginning
            try:
                _collect(path, track, place, set(chosen), size, found)
            except (av.FFmpegError, InputError):
                if place == 0:
                    raise
            if len(found) == len(set(chosen)):
                return np.stack([found[number] for number in chosen])
        lost = min(set(chosen) - found.keys())
        raise InputError(f"{path} is damaged: its frame {lost} cannot be decoded; export it again")


def _collect(
    path: Path, track: _Track, place: int, wanted: set[int], size: tuple[int, int], found: dict[int, Image]
) -> None:
    for number, frame in _decoded(path, track, place):
        if frame.is_corrupt:
            raise InputError(f"{path} is damaged at frame {number}; export it again")
        if number in wanted and number not in found:
            found[number] = images.fit(decoding.upright(frame, track.squeeze), size)
            if len(found) == len(wanted):
                return


def _is_picture(path: Path) -> bool:
    files.existing_file(path)
    return not picture_files.is_for_ffmpeg(path)


def _pictures(path: Path) -> tuple[Frames, NDArray[np.float64]]:
    """A still picture [1, H, W, 3] at time 0, or the frames of an animated picture and their times."""
    if picture_files.moving_frames(path) > 1:
        frames, times, _ = videos.decode_animation(path)
        return frames, times
    return images.read_image(path)[None], np.zeros(1)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    with containers.opened(path) as container:
        if containers.kind_of(container) == "picture":
            raise InputError(f"{path} is not a picture that can be read; convert it to PNG or JPEG")
        yield container, containers.picture_track(path, container)


def _track(path: Path) -> _Track:
    """Read the packets of all tracks, and compare their end with the length that the header states."""
    with _opened(path) as (container, stream):
        stated = float(stream.average_rate or stream.guessed_rate or 0)
        base = float(stream.time_base or 0)
        prefix = _prefix_bytes(stream)
        uncompressed = stream.codec_context.name in _UNCOMPRESSED
        seekable = container.format.name in _INDEXED and not decoding.depends_on_its_start(stream)
        stamps: list[int | None] = []
        keys: list[int | None] = []
        decoding_order: list[int] = []
        first_is_key, overall = False, 0.0
        for packet in container.demux():
            stamp = packet.pts if packet.pts is not None else packet.dts
            last = 0.0 if stamp is None else float((stamp + (packet.duration or 0)) * (packet.time_base or 0))
            overall = max(overall, last)
            if packet.stream_index != stream.index or packet.size == 0 or packet.is_discard:
                continue
            if packet.is_corrupt and container.format.name != "mpegts":  # there it may be a gap between recordings
                raise Truncated(f"{path} is cut off within frame {len(stamps)}; copy it again")
            if not uncompressed and not _whole(bytes(packet), prefix):
                raise InputError(f"{path} is damaged at frame {len(stamps)}; copy or export it again")
            if packet.is_keyframe and seekable:
                keys.append(packet.pts)
            first_is_key |= not stamps and packet.is_keyframe
            stamps.append(packet.pts)
            if packet.dts is not None:
                decoding_order.append(packet.dts)
        if not stamps:
            raise InputError(f"{path} has no frames; export it again")
        if _is_unordered(container, stream):
            stamps = [None] * len(stamps)
        track = _ordered(stamps, decoding_order, stated, base, float(stream.sample_aspect_ratio or 1), keys)
        longest = max(float(np.diff(track.times).max(initial=0.0)), 1 / (stated or 25.0))
        if lack := truncation.lack(path, container, stream, overall, longest, all_tracks=True):
            raise Truncated(f"{path} is cut off: {lack}; copy it again")
    return _decodable(path, track, stamps, first_is_key)


def _is_unordered(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the timestamps are those of another order: AVI has none for frames that are not decoded in order."""
    codec = stream.codec_context
    return container.format.name == "avi" and codec.name in ("h264", "hevc") and bool(codec.has_b_frames)


def _ordered(
    stamps: list[int | None],
    decoding_order: list[int],
    stated: float,
    base: float,
    squeeze: float,
    keys: list[int | None],
) -> _Track:
    """The track of these packets. If their timestamps are no clock, the frames are evenly spaced."""
    known = [stamp for stamp in stamps if stamp is not None]
    if len(set(known)) < len(stamps) or any(a > b for a, b in itertools.pairwise(decoding_order)):
        fps = stated or 25.0
        return _Track(None, np.arange(len(stamps)) / fps, (), fps, squeeze)
    ordered = np.sort(np.array(known, np.int64))
    times = np.asarray(ordered * base, np.float64)
    constant, fps = videos.rate_of(times, stated)
    if not constant:
        fps = (len(times) - 1) / float(times[-1] - times[0])
    places = tuple(np.searchsorted(ordered, [key for key in keys if key is not None]).tolist())
    return _Track(ordered, times, places, fps, squeeze)


def _decodable(path: Path, track: _Track, stamps: list[int | None], first_is_key: bool) -> _Track:
    """The track without the frames at its beginning that need others before it, which a cut has removed.

    stamps: of the packets. first_is_key: whether decoding can begin at the first packet.
    """
    if track.stamps is None:
        if all(stamp is None for stamp in stamps):
            return track
        count = sum(1 for _ in _decoded(path, track, 0))
        return replace(track, times=track.times[:count])
    if first_is_key and stamps[0] == track.stamps[0]:
        return track
    first = next(_decoded(path, track, 0, whole=False), (0, None))[0]
    return replace(
        track,
        stamps=track.stamps[first:],
        times=track.times[first:],
        keys=tuple(key - first for key in track.keys if key >= first),
    )


def _prefix_bytes(stream: VideoStream) -> int:
    """The number of bytes before each unit of an H.264 or HEVC packet that give its length; 0 if there are none."""
    header = stream.codec_context.extradata or b""
    place = {"h264": 4, "hevc": 21}.get(stream.codec_context.name)
    return (header[place] & 3) + 1 if place and len(header) > place and header[0] == 1 else 0


def _whole(packet: bytes, prefix: int) -> bool:
    """Whether a packet can be undamaged: it is not only zeros, and the lengths of its units fill it.

    prefix: see `_prefix_bytes`.
    """
    if not prefix:
        return any(packet[:64])
    place = 0
    while place + prefix < len(packet):
        length = int.from_bytes(packet[place : place + prefix], "big")
        if length == 0 or packet[place + prefix] & 0x80:
            return False
        place += prefix + length
    return place == len(packet)


def _decoded(path: Path, track: _Track, place: int, *, whole: bool = True) -> Iterator[tuple[int, VideoFrame]]:
    """Decoded frames and their indices, from the key frame `place` (0: from the beginning).

    whole: more than one frame will be read, so decode with several threads.
    """
    with _opened(path) as (container, stream):
        if whole:
            stream.thread_type = "AUTO"
        if place and track.stamps is not None:
            container.seek(int(track.stamps[place]), stream=stream, backward=True)
        for count, frame in enumerate(decoding.frames(container, stream)):
            if track.stamps is None:
                yield count, frame
            elif frame.pts is not None:
                yield int(np.searchsorted(track.stamps, frame.pts)), frame


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Raise the errors of the codecs as one sentence about the file."""
    try:
        yield
    except PusaError:
        raise
    except (av.FFmpegError, OSError, LookupError, ValueError, MemoryError) as error:
        if truncation.stated_size(path) > path.stat().st_size:
            raise Truncated(f"{path} is cut off: the file is shorter than its header states; copy it again") from error
        raise files.unreadable(path, "video", error) from error
