"""Images and videos in and out of arrays, so that nothing above this file touches a codec.

A picture is uint8 RGB [H, W, 3], a clip uint8 RGB [N, H, W, 3]. Reading is strict: a file that is missing, cut off or
of the wrong kind is an `InputError` that names it. Writing is atomic: every file is made beside its destination and
renamed, so an interrupted or failed write leaves what was there before and nothing else.

Transparency is laid over white; embedded colour profiles are not applied. Videos are converted with the matrix that
they are tagged with. Ours are BT.709, limited range, with chroma where H.264 expects it: the codec library's default
conversion darkens a clip by half a grey level and shifts its colours by half a pixel every time it goes round.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from pusa.errors import InputError, PusaError

Image = NDArray[np.uint8]
"""[H, W, 3], RGB"""
Frames = NDArray[np.uint8]
"""[N, H, W, 3], RGB"""
Fit = Literal["crop", "pad", "stretch"]

MAX_SIDE = 16_384
"""pixels; the widest and highest picture that is read"""
MAX_CLIP_BYTES = 4 * 2**30
"""the largest clip that is read, as uint8 RGB in memory"""

_ANIMATIONS = ("GIF", "PNG", "WEBP")
_TEXT_DEMUXERS = {"tty", "bin", "srt", "webvtt", "ass"}
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_BT709 = 1
_LIMITED = 1


def read_image(path: str | Path) -> Image:
    """Read one picture in any format that Pillow knows, upright and as uint8 RGB [H, W, 3].

    Greyscale, palette, CMYK, 16-bit (scaled to 8) and transparent (over white) pictures work; EXIF rotation is
    applied. Raises InputError for anything that is not exactly one picture of at most 16,384 pixels a side.
    """
    path = existing_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
            picture = PILImage.open(path)
    except PILImage.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels to be read safely; scale it down first") from error
    except UnidentifiedImageError as error:
        if _is_video(path):
            raise InputError(f"{path} is a video where a picture is needed; save one of its frames as PNG") from error
        raise InputError(f"{path} is not a picture that can be read; convert it to PNG or JPEG") from error
    except Exception as error:
        raise unreadable(path, "picture", error) from error
    with picture:
        count = int(getattr(picture, "n_frames", 1))
        if count > 1:
            also = ", or give it as a video" if picture.format in _ANIMATIONS else ""
            raise InputError(f"{path} holds {count} pictures where one is needed; save one of them as PNG{also}")
        width, height = picture.size
        if max(width, height) > MAX_SIDE:
            raise InputError(
                f"{path} is {width} x {height} pixels and the limit is {MAX_SIDE} a side; scale it down first"
            )
        try:
            return to_rgb(picture)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:
            raise unreadable(path, "picture", error) from error


def to_rgb(picture: PILImage.Image) -> Image:
    """Turn an opened Pillow picture upright and into uint8 RGB [H, W, 3], by the rules of `read_image`."""
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise InputError("the picture stores floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65_535:
            raise InputError("the picture stores 32-bit pixels, whose range is unknown; convert it to 8 or 16 bits")
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        return _over_white(np.asarray(picture.convert("RGBA")))
    return np.array(picture.convert("RGB"))


def read_video(path: str | Path, fps: float | None = None) -> tuple[Frames, float]:
    """Read every frame of a video or animated picture as uint8 RGB [N, H, W, 3], and its rate in frames per second.

    Frames come upright and with square pixels; GIF, PNG and WebP may be animated.

    With `fps`, frame k of the result is the frame whose timestamp is nearest to k / fps seconds, for every k up to the
    last timestamp: a slower rate drops frames, a faster one repeats them, none is blended or invented. Without it the
    frames are returned as stored; a variable frame rate is made constant in the same way, at its average.

    Raises InputError when the file is no video, is damaged or cut off, or is larger than 4 GiB in memory.
    """
    path = existing_file(path)
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps is {fps}; give a number of frames per second above 0")
    try:
        frames, times, stated = _decode(path)
    except PusaError:
        raise
    except (av.FFmpegError, OSError, LookupError, ValueError) as error:
        raise unreadable(path, "video", error) from error
    constant, own = rate_of(times, stated)
    if constant and (fps is None or math.isclose(fps, own, rel_tol=1e-6)):
        return frames, own
    rate = own if fps is None else float(fps)
    return frames[nearest(times, np.arange(int((times[-1] - times[0]) * rate + 1e-6) + 1) / rate)], rate


def rate_of(times: NDArray[np.float64], stated: float) -> tuple[bool, float]:
    """Whether ascending frame times [N], in seconds, are evenly spaced, and their rate (`stated` where it fits)."""
    span = times[-1] - times[0]
    own = float((len(times) - 1) / span) if span > 0 else stated or 1.0
    if stated and abs(stated - own) < 0.01 * own:
        own = stated
    ideal = times[0] + np.arange(len(times)) / own
    return bool(np.all(np.abs(times - ideal) < 0.5 / own)), own


def nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of the frame nearest to each of `wanted` seconds [N] after the first frame; of two, the earlier."""
    if len(times) == 1:
        return np.zeros(len(wanted), np.int64)
    wanted = times[0] + wanted
    after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    return np.where(wanted - times[after - 1] <= times[after] - wanted + 1e-6, after - 1, after)


def _decode(path: Path) -> tuple[Frames, NDArray[np.float64], float]:
    """All frames, their times in seconds (ascending) and the rate that the file states (0 if none)."""
    with av.open(plain_name(path)) as container:
        if holds_a_picture(container):
            return decode_animation(path)
        stream = picture_track(path, container)
        stream.thread_type = "AUTO"
        stated = float(stream.average_rate or stream.guessed_rate or 0)
        squeeze = float(stream.sample_aspect_ratio or 1)
        frames: list[Image] = []
        times: list[float] = []
        size, end, length = 0, 0.0, 0.0
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise InputError(f"{path} is damaged at frame {len(frames)}; export it again")
            picture = upright(frame, squeeze)
            if frames and picture.shape != frames[0].shape:
                raise InputError(f"{path} changes its size at frame {len(frames)}; export it at one size")
            size += picture.nbytes
            if size > MAX_CLIP_BYTES:
                raise _too_large(path)
            frames.append(picture)
            fallback = times[-1] + 1 / (stated or 25.0) if times else 0.0
            times.append(fallback if frame.pts is None else float(frame.time))
            end = max(end, times[-1] + float((frame.duration or 0) * (frame.time_base or 0)))
        if not frames:
            raise InputError(f"{path} has no frames; export it again")
        if stream.duration and stream.time_base:
            length = float(stream.duration * stream.time_base) + float((stream.start_time or 0) * stream.time_base)
        elif container.duration and not container.streams.audio:
            length = container.duration / av.time_base
    order = np.argsort(times, kind="stable")
    gaps = np.diff(np.asarray(times)[order])
    if length - end > 1.5 * max(gaps.max(initial=0.0), 1 / (stated or 25.0)):
        raise InputError(f"{path} is cut off: it should last {length:.2f} s and ends at {end:.2f} s; copy it again")
    return np.stack([frames[i] for i in order]), np.asarray(times)[order], stated


def picture_track(path: Path, container: InputContainer) -> VideoStream:
    """The video track of an opened file, not its cover picture; InputError when it has none."""
    if container.format.name in _TEXT_DEMUXERS:
        raise InputError(f"{path} is text where a video is needed; give an mp4, mov, mkv, webm or gif")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise InputError(f"{path} has no picture track (sound only?); give a video")
    return streams[0]


def decode_animation(path: Path) -> tuple[Frames, NDArray[np.float64], float]:
    """`_decode` for a file of pictures, which moves only when they have durations (0 is 100 ms, as in browsers)."""
    count = _moving_frames(path)
    if count == 1:
        raise InputError(f"{path} is a picture where a video is needed; give it as an image")
    with PILImage.open(path) as picture:
        if count * picture.width * picture.height * 3 > MAX_CLIP_BYTES:
            raise _too_large(path)
        frames: list[Image] = []
        times = [0.0]
        try:
            for index in range(count):
                picture.seek(index)
                frames.append(to_rgb(picture))
                times.append(times[-1] + (picture.info.get("duration") or 100) / 1000)
        except Exception as error:
            raise unreadable(path, "video", error) from error
    return np.stack(frames), np.asarray(times[:-1]), 0.0


def is_animated(path: Path) -> bool:
    """Whether Pillow finds a picture that moves."""
    return _moving_frames(path) > 1


def _moving_frames(path: Path) -> int:
    try:
        with PILImage.open(path) as picture:
            return int(getattr(picture, "n_frames", 1)) if picture.format in _ANIMATIONS else 1
    except Exception:
        return 1


def _too_large(path: Path) -> InputError:
    return InputError(f"{path} needs more than {MAX_CLIP_BYTES / 2**30:.0f} GiB of memory; cut or scale it down first")


def upright(frame: VideoFrame, squeeze: float) -> Image:
    """One decoded frame as RGB, turned as its metadata says, pixels `squeeze` times as wide as high made square."""
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        picture = _over_white(np.asarray(frame.to_ndarray(format="rgba"), np.uint8))
    else:
        picture = np.asarray(frame.reformat(format="rgb24", interpolation=_EXACT).to_ndarray(), np.uint8)
    if squeeze != 1:
        picture = fit(picture, (max(1, round(picture.shape[1] * squeeze)), picture.shape[0]), "stretch")
    return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture


def _over_white(rgba: NDArray[np.uint8]) -> Image:
    alpha = rgba[..., 3:].astype(np.uint32)
    over = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def existing_file(path: str | Path) -> Path:
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a file in it")
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); save or copy it again")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a usable path ({_reason(error)}); check it") from error
    return path


def plain_name(path: Path) -> str:
    """A name that FFmpeg cannot take for an address, as it would `12:30.mp4`."""
    return str(path.absolute())


def _is_video(path: Path) -> bool:
    try:
        with av.open(plain_name(path)) as container:
            return not holds_a_picture(container) and container.format.name not in _TEXT_DEMUXERS
    except (av.FFmpegError, LookupError, ValueError):
        return False


def holds_a_picture(container: InputContainer) -> bool:
    return container.format.name.endswith("_pipe") or container.format.name in ("image2", "ico")


def unreadable(path: Path, kind: str, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path} may not be read; change its permissions")
    return InputError(f"{path} is damaged, cut off or not a {kind} ({_reason(error)}); save or copy it again")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).strip().rstrip(".")


def fit(frames: NDArray[np.uint8], size: tuple[int, int], mode: Fit = "crop") -> NDArray[np.uint8]:
    """Bring a clip [N, H, W, 3] or a picture [H, W, 3] to `size` = (width, height) pixels, antialiased (Lanczos).

    crop: scaled until it covers the size, the middle kept. pad: scaled until it fits inside, on black. stretch: each
    side on its own. What has the size already is returned untouched. Raises InputError for a size below 1 pixel.
    """
    width, height = size
    if min(width, height) < 1:
        raise InputError(f"the size {width}x{height} has no pixels; give a width and a height of at least 1")
    if mode not in ("crop", "pad", "stretch"):
        raise InputError(f"the fit {mode!r} is unknown; choose crop, pad or stretch")
    clip = frames[None] if frames.ndim == 3 else frames
    _check_frames(clip)
    old_height, old_width = clip.shape[1:3]
    if (old_width, old_height) == (width, height):
        return frames
    box = (0.0, 0.0, float(old_width), float(old_height))
    inner, corner = (width, height), (0, 0)
    if mode == "crop":
        scale = max(width / old_width, height / old_height)
        x, y = max(0.0, (old_width - width / scale) / 2), max(0.0, (old_height - height / scale) / 2)
        box = (x, y, old_width - x, old_height - y)
    elif mode == "pad":
        scale = min(width / old_width, height / old_height)
        inner = (max(1, round(old_width * scale)), max(1, round(old_height * scale)))
        corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    out = np.zeros((len(clip), height, width, 3), np.uint8)
    rows, columns = slice(corner[1], corner[1] + inner[1]), slice(corner[0], corner[0] + inner[0])
    for source, target in zip(clip, out, strict=True):
        scaled = PILImage.fromarray(source).resize(inner, PILImage.Resampling.LANCZOS, box=box)
        target[rows, columns] = np.asarray(scaled)
    return out[0] if frames.ndim == 3 else out


def contact_sheet(
    frames: Frames | Sequence[Image], columns: int | None = None, labels: bool | Sequence[str] = False, gap: int = 2
) -> Image:
    """Lay frames of one size out in rows on white, `gap` pixels apart; about square unless `columns` is given.

    `labels` puts a line of text above each frame: its number (True) or the given strings, one per frame.
    """
    clip = np.stack(list(frames)) if len(frames) else np.zeros((0, 1, 1, 3), np.uint8)
    _check_frames(clip)
    count, height, width = clip.shape[:3]
    if columns is not None and columns < 1:
        raise InputError(f"columns is {columns}; a contact sheet needs at least 1")
    texts = [str(i) for i in range(count)] if labels is True else list(labels or ())
    if texts and len(texts) != count:
        raise InputError(f"{len(texts)} labels for {count} frames; give one label per frame")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    strip = 13 if texts else 0
    cell_width, cell_height = width + gap, height + strip + gap
    rows = math.ceil(count / columns)
    sheet = np.full((rows * cell_height + gap, columns * cell_width + gap, 3), 255, np.uint8)
    corners = [(gap + i // columns * cell_height, gap + i % columns * cell_width) for i in range(count)]
    for (y, x), text in zip(corners, texts, strict=False):
        label = PILImage.new("RGB", (width, strip), "white")
        ImageDraw.Draw(label).text((1, 0), text, fill="black", font=ImageFont.load_default(10))
        sheet[y : y + strip, x : x + width] = np.asarray(label)
    for (y, x), frame in zip(corners, clip, strict=True):
        sheet[y + strip : y + strip + height, x : x + width] = frame
    return sheet


def _check_frames(frames: NDArray[Any]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InputError(f"frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [N, H, W, 3], none empty")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the path of a new file beside `path`, with its suffix, that takes its place when the block ends well.

    However the block ends otherwise (an error, Ctrl-C), the new file is removed and `path` is as it was. Raises
    InputError when `path` cannot take a file (missing or read-only folder, full disk), PusaError on other write errors.
    """
    path = Path(path)
    part = _new_beside(path)
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)  # some writers, such as safetensors, make their files private
        os.replace(part, path)
    except PusaError as error:  # of a writer that was given `part` and knows no other name
        raise type(error)(str(error).replace(str(part), str(path))) from error
    except (OSError, av.FFmpegError) as error:
        raise _unwritable(path, error) from error
    finally:
        _remove(part)


def check_writable(path: str | Path) -> None:
    """Raise now what `replacing` would raise at its start, so that long work does not end in a read-only folder."""
    path = Path(path)
    _remove(_new_beside(path))
    try:
        path.lstat()  # the new file's name is short, so that only this sees a name that is too long
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _new_beside(path: Path) -> Path:
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file name")
        part = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.part{path.suffix}")
        part.open("xb").close()
    except OSError as error:
        raise _unwritable(path, error) from error
    return part


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError | av.FFmpegError) -> PusaError:
    number = getattr(error, "errno", None)
    folder = path.parent
    if number in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"cannot write {path}: the disk is full; free some space or write elsewhere")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"cannot write {path}: the folder {folder} is read-only for you; write elsewhere")
    if number in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir():
        return InputError(f"cannot write {path}: there is no folder {folder}; make it first")
    return PusaError(f"cannot write {path}: {_reason(error)}; check the disk and the file name, or write elsewhere")


# Macroblock-tree lookahead gives other bytes from run to run, even on one thread; without it they are the same.
_X264 = {"threads": "1", "x264-params": "mbtree=0"}


def write_video(path: str | Path, frames: Frames, fps: float, *, crf: int = 12) -> None:
    """Write uint8 RGB [N, H, W, 3] as an H.264 mp4 that every browser plays from its first bytes on.

    yuv420p, BT.709; `crf` from 0 (best) to 51. The same frames give the same bytes with the same codec version: one
    encoder thread, no dates. Raises InputError for an odd width or height, a rate outside (0, 1000] or another suffix.
    """
    path = Path(path)
    _check_frames(frames)
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
        av.open(plain_name(part), "w", format="mp4", options={"movflags": "+faststart"}) as container,
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


def _to_yuv420p(picture: Image) -> NDArray[np.uint8]:
    """BT.709 limited range, planes below one another [3H/2, W]; chroma between rows, on even columns (as in H.264)."""
    r, g, b = (picture[..., i].astype(np.float32) / 255 for i in range(3))
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    planes = [16 + 219 * luma]
    for chroma in ((b - luma) / 1.8556, (r - luma) / 1.5748):
        rows = 128 + 112 * (chroma[::2] + chroma[1::2])
        left = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
        planes.append(0.25 * left + 0.5 * rows[:, ::2] + 0.25 * rows[:, 1::2])
    flat = np.concatenate([plane.ravel() for plane in planes])
    return np.asarray(np.rint(flat), np.uint8).reshape(-1, picture.shape[1])


def write_image(path: str | Path, image: Image) -> None:
    """Write uint8 RGB [H, W, 3] as PNG, JPEG (quality 95) or WebP (lossless), by the name's suffix."""
    path = Path(path)
    _check_frames(image[None])
    options: dict[str, dict[str, Any]] = {
        ".png": {},
        ".jpg": {"quality": 95},
        ".jpeg": {"quality": 95},
        ".webp": {"lossless": True},
    }
    if path.suffix.lower() not in options:
        raise InputError(f"cannot write a picture to {path}: its name must end in {', '.join(options)}")
    with replacing(path) as part:
        PILImage.fromarray(image).save(part, **options[path.suffix.lower()])


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write text as UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON, indented; NaN and infinity, which JSON has not, are a ValueError."""
    write_text_atomic(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
