"""Read and write videos as arrays. The rest of the project uses no codec.

A clip is uint8 RGB [N, H, W, 3]. If a file is missing, truncated or of the wrong kind, an `InputError` names it.

A video is converted with the colours that its file states. Videos that are written here are BT.709, limited range, with
the chroma position of H.264. The default conversion of the codec library would darken a clip by half a grey level and
shift its colours by half a pixel each time it is written and read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pusa.errors import InputError, PusaError
from pusa.files import existing_file, replacing, unreadable
from pusa.media import containers, decoding, picture_files, tone_mapping, truncation
from pusa.media.images import Frames, Image, check_frames, to_rgb
from pusa.media.picture_colours import stated_hdr

MAX_CLIP_BYTES = 4 * 2**30
"""the largest clip that is read, as uint8 RGB in memory"""

_BT709 = 1
_LIMITED = 1
# With macroblock-tree lookahead, the bytes differ from run to run, even on one thread. Without it they are equal.
_X264 = {"threads": "1", "x264-params": "mbtree=0"}


def read_video(path: str | Path, fps: float | None = None) -> tuple[Frames, float]:
    """Read all frames of a video or animated picture: uint8 RGB [N, H, W, 3], and the frame rate.

    Frames are upright and have square pixels. GIF, PNG, WebP and AVIF files may be animated.

    fps: resample to this rate. Frame k of the result is the frame whose timestamp is nearest to k / fps seconds, for
    every k up to the last timestamp. A lower rate drops frames and a higher rate repeats frames; frames are never
    blended. Without `fps`, the frames are returned as stored; if the frame rate varies, they are resampled to its
    average.

    Raises InputError if the file is not a video, is damaged or truncated, or needs more than 4 GiB of memory.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps is {fps}; give a number of frames per second above 0")
    frames, times, stated = _stored(existing_file(path))
    constant, own = rate_of(times, stated)
    if constant and (fps is None or math.isclose(fps, own, rel_tol=1e-6)):
        return frames, own
    rate = own if fps is None else float(fps)
    return frames[nearest(times, np.arange(int((times[-1] - times[0]) * rate + 1e-6) + 1) / rate)], rate


def read_every_frame(path: str | Path) -> Frames:
    """Read a video as `read_video` does, but return each of its frames once, whatever their times are."""
    return _stored(existing_file(path))[0]


def check_every_frame(path: str | Path) -> int:
    """Decode a video as `read_every_frame` does without keeping it, and return the number of its frames.

    Raises the error that `read_every_frame` would raise. Animated pictures are kept in memory while they are decoded.
    """
    return len(_stored(existing_file(path), lambda picture: picture[:1, :1].copy())[0])


def _stored(
    path: Path, kept: Callable[[Image], Image] = lambda picture: picture
) -> tuple[Frames, NDArray[np.float64], float]:
    """Return the frames of a file, their times in seconds, and its stated rate, with one sentence for what is wrong.

    kept: what is kept of each frame.
    """
    try:
        return _decode(path, kept)
    except PusaError:
        raise
    except (av.FFmpegError, OSError, LookupError, ValueError) as error:
        raise unreadable(path, "video", error) from error


def write_video(path: str | Path, frames: Frames, fps: float, *, crf: int = 12) -> None:
    """Write uint8 RGB [N, H, W, 3] as an H.264 mp4 that browsers can play while it loads.

    The pixel format is yuv420p, BT.709. crf: 0 (best) to 51 (smallest). Equal frames give equal bytes with the same
    version of the codec. Raises InputError for an odd width or height, a rate outside (0, 1000], or another suffix.
    """
    path = Path(path)
    check_frames(frames)
    height, width = frames.shape[1:3]
    if path.suffix.lower() != ".mp4":
        raise InputError(f"cannot write a video to {path}: its name must end in .mp4")
    if width % 2 or height % 2:
        raise InputError(f"a video of {width} x {height} pixels cannot be written; both sides must be even")
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; give a rate above 0 and at most 1000")
    if not 0 <= crf <= 51:
        raise InputError(f"crf is {crf}; give 0 (best) to 51 (smallest)")
    rate = Fraction(fps).limit_denominator(1001)
    with (
        replacing(path) as part,
        _errors_of_the_system(),
        av.open(containers.plain_name(part), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=rate, options=_X264 | {"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        for index, picture in enumerate(frames):
            frame = VideoFrame.from_ndarray(_to_yuv420p(picture), "yuv420p")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rate_of(times: NDArray[np.float64], stated: float) -> tuple[bool, float]:
    """Whether ascending frame times [N], in seconds, are evenly spaced, and the frame rate.

    stated: the rate that the file states, 0 if none; it is returned if it agrees with the times.
    """
    span = times[-1] - times[0]
    own = float((len(times) - 1) / span) if span > 0 else stated or 1.0
    if stated and abs(stated - own) < 0.01 * own:
        own = stated
    ideal = times[0] + np.arange(len(times)) / own
    return bool(np.all(np.abs(times - ideal) < 0.5 / own)), own


def nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """The index of the frame nearest to each of `wanted` seconds [N] after the first frame; of two, the earlier."""
    if len(times) == 1:
        return np.zeros(len(wanted), np.int64)
    wanted = times[0] + wanted
    after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    return np.where(wanted - times[after - 1] <= times[after] - wanted + 1e-6, after - 1, after)


def _decode(path: Path, kept: Callable[[Image], Image]) -> tuple[Frames, NDArray[np.float64], float]:
    """All frames, their times in seconds (ascending), and the rate that the file states (0 if none)."""
    if not picture_files.is_for_ffmpeg(path):
        return decode_animation(path)
    with containers.opened(path) as container:
        if containers.kind_of(container) == "picture":
            return decode_animation(path)
        stream = containers.picture_track(path, container)
        stream.thread_type = "AUTO"
        stated = float(stream.average_rate or stream.guessed_rate or 0)
        squeeze = float(stream.sample_aspect_ratio or 1)
        frames: list[Image] = []
        stamps: list[float | None] = []
        size, end, shape = 0, 0.0, None
        for frame in decoding.frames(container, stream):
            if frame.is_corrupt:
                raise InputError(f"{path} is damaged at frame {len(frames)}; export it again")
            if not frames:
                decoding.check_colours(path, stream, frame)
            picture = decoding.upright(frame, squeeze)
            if picture.shape != (shape := shape or picture.shape):
                raise InputError(f"{path} changes its size at frame {len(frames)}; export it at one size")
            size += picture.nbytes
            if size > MAX_CLIP_BYTES:
                raise too_large(path)
            frames.append(kept(picture))
            stamps.append(None if frame.pts is None else float(frame.time))
            end = max(end, (stamps[-1] or 0.0) + float((frame.duration or 0) * (frame.time_base or 0)))
        if not frames:
            raise InputError(f"{path} has no frames; export it again")
        times = np.arange(len(frames)) / (stated or 25.0)
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known)):
            times = np.asarray(known)
        longest = max(float(np.diff(times).max(initial=0.0)), 1 / (stated or 25.0))
        if lack := truncation.lack(path, container, stream, end, longest, all_tracks=False):
            raise InputError(f"{path} is cut off: {lack}; copy it again")
        if len(frames) == 1 and container.format.name == "gif":
            raise InputError(f"{path} is a picture, but a video is needed; give it as an image")
    return np.stack(frames), times, stated


def decode_animation(path: Path) -> tuple[Frames, NDArray[np.float64], float]:
    """`_decode` for an animated picture. Durations of 0 count as 100 ms, as in browsers; the stated rate is 0."""
    with picture_files.animation(path) as (picture, count):
        if count == 1:
            raise InputError(f"{path} is a picture, but a video is needed; give it as an image")
        if count * picture.width * picture.height * 3 > MAX_CLIP_BYTES:
            raise too_large(path)
        tone_mapping.tell(path, stated_hdr(picture))
        frames: list[Image] = []
        times = [0.0]
        for index in range(count):
            picture.seek(index)
            frames.append(to_rgb(picture))
            times.append(times[-1] + (picture.info.get("duration") or 100) / 1000)
    return np.stack(frames), np.asarray(times[:-1]), 0.0


def too_large(path: Path) -> InputError:
    """The error for a clip that does not fit into `MAX_CLIP_BYTES`."""
    return InputError(f"{path} needs more than {MAX_CLIP_BYTES / 2**30:.0f} GiB of memory; cut or scale it down first")


@contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """Raise FFmpeg's errors as OSError, so that `replacing` recognises a full disk."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _to_yuv420p(picture: Image) -> NDArray[np.uint8]:
    """RGB [H, W, 3] to BT.709 limited range, the three planes below one another, [3H/2, W].

    Chroma is sampled between rows and on even columns, as in H.264.
    """
    r, g, b = (picture[..., i].astype(np.float32) / 255 for i in range(3))
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    planes = [16 + 219 * luma]
    for chroma in ((b - luma) / 1.8556, (r - luma) / 1.5748):
        rows = 128 + 112 * (chroma[::2] + chroma[1::2])
        left = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
        planes.append(0.25 * left + 0.5 * rows[:, ::2] + 0.25 * rows[:, 1::2])
    flat = np.concatenate([plane.ravel() for plane in planes])
    return np.asarray(np.rint(flat), np.uint8).reshape(-1, picture.shape[1])
