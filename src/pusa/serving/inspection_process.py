"""The process that opens one uploaded file: `python -m pusa.serving.inspection_process FILE LIMITS`.

`pusa.serving.inspection` starts it in an empty folder and reads what it leaves there: the answer as JSON, and the copy
of a picture. LIMITS are the fields of `UploadLimits` as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import av
import numpy
import PIL
import pillow_heif

from pusa.errors import InputError, PusaError
from pusa.files import existing_file
from pusa.media import containers, images, picture_files, video_probe, videos
from pusa.serving import confinement
from pusa.serving.inspection import ANSWER, PICTURE, TAKEN, UploadLimits

FORMATS = ("mov", "matroska", "avi", "mpegts", "gif")
"""demuxers of FFmpeg whose files hold all of their data themselves"""
CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mpeg2video"),
    *("mpeg1video", "h263", "msmpeg4", "msmpeg4v2", "mjpeg", "gif", "png", "prores", "dnxhd", "ffv1", "huffyuv"),
    *("ffvhuff", "utvideo", "qtrle", "rawvideo", "v210", "theora"),
)
"""decoders of FFmpeg that are in wide use, and so are well tested"""
_SYSTEM = (
    sys.prefix,
    sys.base_prefix,
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/proc",
    "/sys/devices/system/cpu",
)


def main() -> None:
    path, limits = Path(sys.argv[1]), UploadLimits(**json.loads(sys.argv[2]))
    confine(path, limits)
    containers.accept_only(FORMATS, CODECS)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            answer = opened(path, limits)
        notes = [str(warning.message) for warning in told if warning.category is UserWarning]
        answer["notes"] = list(dict.fromkeys(notes))
    except (PusaError, MemoryError) as error:
        answer = {"error": _exhausted(path, limits) if _ran_out_of_memory(error) else str(error)}
    Path(ANSWER).write_text(json.dumps(answer), encoding="utf-8")


def confine(path: Path, limits: UploadLimits) -> None:
    """Limit this process to one file, its own folder, and the libraries."""
    confinement.use_at_most(
        memory=limits.memory,
        written=4 * limits.pixels + 2**20,
        cpu_seconds=limits.cpu_seconds,
        wall_seconds=limits.wall_seconds,
        processors=2,
    )
    libraries = {Path(str(module.__file__)).parents[1] for module in (av, numpy, PIL, pillow_heif)}
    confinement.reach_only([path, Path(__file__).parents[1], *libraries, *_SYSTEM], [Path.cwd()])


def opened(path: Path, limits: UploadLimits) -> dict[str, Any]:
    """Open a file completely, and return the fields of `Inspected` but the path and the notes."""
    existing_file(path)
    if picture_files.moving_frames(path) == 1 and (_is_gif(path) or not picture_files.is_for_ffmpeg(path)):
        return _picture(path, limits)
    return _video(path, limits)


def _picture(path: Path, limits: UploadLimits) -> dict[str, Any]:
    with picture_files.still(path) as picture:
        _check_pixels(path, picture.size, limits)
    pixels = images.read_image(path)
    images.write_image(PICTURE, pixels)
    return {"kind": "image", "width": pixels.shape[1], "height": pixels.shape[0], "frames": 1, "fps": 0.0}


def _video(path: Path, limits: UploadLimits) -> dict[str, Any]:
    moving = picture_files.is_for_ffmpeg(path)
    if moving:
        _check_header(path, limits)
    else:
        with picture_files.animation(path) as (picture, count):
            _check_pixels(path, picture.size, limits)
            _check_frames(path, count, limits)
    info = video_probe.probe(path)
    count = len(info.times)
    if info.fps == 0:
        raise InputError(f"{path} has one frame only; save it as PNG, and give it as a picture")
    _check_pixels(path, (info.width, info.height), limits)
    _check_frames(path, count, limits)
    if (length := float(info.times[-1] - info.times[0]) + 1 / info.fps) > limits.seconds:
        raise InputError(f"{path} lasts {length:.1f} s, and {limits.seconds:g} s are taken; cut it")
    if count * info.width * info.height * 3 > videos.MAX_CLIP_BYTES:
        raise videos.too_large(path)
    if moving:  # others were decoded by `probe`
        videos.check_every_frame(path)
    return {"kind": "video", "width": info.width, "height": info.height, "frames": count, "fps": info.fps}


def _check_header(path: Path, limits: UploadLimits) -> None:
    """Raise InputError for a format or a codec that is not taken, or if the header states more than is taken."""
    try:
        with containers.opened(path) as container:
            track = containers.picture_track(path, container)
            codec = track.codec_context
            if codec.name not in CODECS:
                raise InputError(f"{path} has the codec {codec.name}, which is not taken; convert it to an H.264 mp4")
            _check_pixels(path, (codec.width, codec.height), limits)
            _check_frames(path, track.frames, limits)
    except (av.FFmpegError, LookupError, ValueError) as error:
        if isinstance(error, PusaError):
            raise
        raise InputError(f"{path} is not a picture or a video that is taken; give {TAKEN}") from error


def _check_pixels(path: Path, size: tuple[int, int], limits: UploadLimits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise InputError(f"{path} has {width} x {height} pixels, and {limits.pixels:,} are taken; scale it down")


def _check_frames(path: Path, count: int, limits: UploadLimits) -> None:
    if count > limits.frames:
        raise InputError(f"{path} has {count:,} frames, and {limits.frames:,} are taken; cut it")


def _is_gif(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GIF8"


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is the end of the memory; decoders say so in many ways."""
    while error is not None:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _exhausted(path: Path, limits: UploadLimits) -> str:
    return f"{path} needs more than {limits.memory / 2**20:,.0f} MiB of memory to be opened; give a smaller file"


if __name__ == "__main__":
    main()
