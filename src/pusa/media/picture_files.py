"""Open picture files with Pillow: the one picture that a file means, or the frames of an animated picture.

Many pictures have others beside them that are no content of their own: thumbnails, gain maps, depth maps, smaller
copies. They are left out.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image as PILImage
from PIL import PsdImagePlugin, TiffImagePlugin, UnidentifiedImageError

from pusa.errors import InputError
from pusa.files import unreadable
from pusa.media.containers import MOTION_JPEG, is_heif, is_sequence, is_video
from pusa.media.picture_colours import CODES
from pusa.media.picture_repair import can_be_repaired, is_bounded, repaired

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what hinders reading is raised as an error

ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")
"""formats, as Pillow calls them, whose frames are moments of a clip"""
_ONE_PICTURE = ("MPO", "PSD", "ICO", "ICNS", "HEIF")
"""formats in which the picture that Pillow shows first is the picture, and others belong to it"""
_FOR_FFMPEG = ("GIF", "FLI")
"""formats that Pillow reads, and FFmpeg reads with the right times"""
_NOT_READ = ("MPEG", "BUFR", "GRIB", "HDF5", "WMF", "EPS")
"""formats that Pillow only names, and PostScript: a program, which may never end"""
_HEAD = 65_536
"""bytes at the beginning of a file in which its code points for colours stand"""

OVER_WHITE = "over white"
"""the key of `Image.info` of a picture whose colours are on white already, as those of PSD files are"""
_RAW_HEADS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb")
"""the first bytes of raw files of cameras; those of Canon are recognised by later bytes"""
_SUBFILE, _OLD_SUBFILE, _SUB_IFDS, _THUMBNAIL = 254, 255, 330, 513


_filters = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Pillow's warnings about the number of pixels, and about metadata.

    The filters of warnings belong to all threads, so one thread at a time changes them. Keep the block short.
    """
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        yield


@contextmanager
def still(path: Path) -> Iterator[PILImage.Image]:
    """Open the one picture that a file means; its pixels are not decoded yet.

    Raises InputError if the file is no picture, or has several pictures of equal rank. The caller turns the errors of
    decoding into sentences.
    """
    try:
        if _is_raw(path):
            raise InputError(f"{path} is a camera's raw file; develop it, and save it as PNG or JPEG")
        picture = _open(path)
    except PILImage.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels to be read safely; scale it down first") from error
    except UnidentifiedImageError as error:
        if not is_heif(path) and is_video(path):
            raise InputError(f"{path} is a video, but a picture is needed; save one of its frames as PNG") from error
        raise InputError(f"{path} is not a picture that can be read; convert it to PNG or JPEG") from error
    except InputError:
        raise
    except Exception as error:
        raise unreadable(path, "picture", error) from error
    with picture:
        try:
            picture, count = _chosen(path, picture)
        except InputError:
            raise
        except Exception as error:
            raise unreadable(path, "picture", error) from error
        if count > 1:
            also = ", or give it as a video" if picture.format in ANIMATIONS else ""
            raise InputError(f"{path} contains {count} pictures, but one is needed; save one of them as PNG{also}")
        if isinstance(picture, PsdImagePlugin.PsdImageFile):
            picture.info[OVER_WHITE] = True
        yield picture


def is_for_ffmpeg(path: Path) -> bool:
    """Whether a file is to be read with FFmpeg, if at all: everything but pictures, still or animated."""
    if _is_raw(path):
        return False
    if is_heif(path):
        return is_sequence(path) and not _is_avif(path)
    if path.suffix.lower() in MOTION_JPEG:
        return True
    try:
        with _open(path) as picture:
            return picture.format in _FOR_FFMPEG
    except UnidentifiedImageError:
        return True
    except Exception:  # a picture that cannot be read; the one who opens it says why
        return False


def moving_frames(path: Path) -> int:
    """The number of frames of an animated picture; 1 for a still picture and for any other file."""
    try:
        with _open(path) as picture:
            return _count(picture) if picture.format in ANIMATIONS else 1
    except Exception:
        return 1


@contextmanager
def animation(path: Path) -> Iterator[tuple[PILImage.Image, int]]:
    """Open an animated picture, with the number of its frames; 1 for a still picture.

    Raises InputError if the file cannot be opened, or if it cannot be decoded within the block.
    """
    try:
        with _open(path) as picture:
            yield picture, _count(picture) if picture.format in ANIMATIONS else 1
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is a picture, but a video is needed; give it as an image") from error
    except Exception as error:
        raise unreadable(path, "picture", error) from error


def without_metadata(path: Path) -> Iterator[PILImage.Image]:
    """The picture of a file that cannot be decoded, from copies with less metadata; nothing if none can be opened."""
    with suppress(OSError):
        with path.open("rb") as file:
            if not can_be_repaired(file.read(12)):
                return
        for data in repaired(path.read_bytes()):
            with suppress(Exception):
                yield _identified(path, io.BytesIO(data))


def _open(path: Path) -> PILImage.Image:
    with path.open("rb") as file:
        if not is_bounded(file, path.stat().st_size):
            raise UnidentifiedImageError("its directories state more than the file holds")
    try:
        return _identified(path, path)
    except PILImage.DecompressionBombError:
        raise
    except Exception as error:
        if (other := next(without_metadata(path), None)) is not None:
            return other
        if isinstance(error, UnidentifiedImageError) and is_heif(path):
            return _open_heif(path)
        raise


def _identified(path: Path, source: Path | io.BytesIO) -> PILImage.Image:
    with quiet():
        picture = PILImage.open(source)
    if picture.format in _NOT_READ or picture.format == "HEIF":  # another library may have registered a HEIF plugin
        picture.close()
        raise UnidentifiedImageError(f"{picture.format} is not read")
    if codes := _code_points(path, picture.format):
        picture.info[CODES] = codes
        if picture.format == "PNG":
            picture.info.pop("icc_profile", None)  # cICP comes before it; elsewhere the profile comes first
    return picture


def _code_points(path: Path, format: str | None) -> tuple[int, int] | None:
    """The codes of H.273 for primaries and transfer that a PNG or AVIF file states; Pillow does not read them."""
    if format not in ("PNG", "AVIF"):
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if format == "PNG":
        place = head.find(b"\x00\x00\x00\x04cICP", 0, max(0, head.find(b"IDAT")))
        return (head[place + 8], head[place + 9]) if place >= 0 else None
    place = head.find(b"colrnclx")
    if place < 0 or place + 12 > len(head):
        return None
    return int.from_bytes(head[place + 8 : place + 10], "big"), int.from_bytes(head[place + 10 : place + 12], "big")


def _open_heif(path: Path) -> PILImage.Image:
    """The primary picture of a HEIF file, turned upright, in 8 bits."""
    import pillow_heif  # only such files need it

    try:
        file = pillow_heif.open_heif(path, convert_hdr_to_8bit=True)
        picture: PILImage.Image = file[file.primary_index].to_pillow()
    except Exception as error:
        if is_sequence(path) and not _is_avif(path):
            raise InputError(f"{path} is a video, but a picture is needed; save one of its frames as PNG") from error
        raise unreadable(path, "picture", error) from error
    picture.format = "HEIF"
    if nclx := picture.info.get("nclx_profile"):
        picture.info[CODES] = (int(nclx["color_primaries"]), int(nclx["transfer_characteristics"]))
    return picture


def _is_raw(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(16)
    is_canon = head.startswith((b"II*\0", b"MM\0*")) and head[8:10] == b"CR"
    return is_canon or head[4:11] == b"ftypcrx" or head.startswith(_RAW_HEADS)


def _is_avif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return b"avi" in head[8 : int.from_bytes(head[:4], "big")]


def _count(picture: PILImage.Image) -> int:
    return int(getattr(picture, "n_frames", 1))


def _chosen(path: Path, picture: PILImage.Image) -> tuple[PILImage.Image, int]:
    """`_choose` for a picture, or for its copy without metadata if the list of its pages is broken."""
    try:
        with quiet():
            return picture, _choose(path, picture)
    except (InputError, PILImage.DecompressionBombError):
        raise
    except Exception:
        if (other := next(without_metadata(path), None)) is None:
            raise
        return other, _choose(path, other)


def _choose(path: Path, picture: PILImage.Image) -> int:
    """Turn to the picture that the file means, and return the number of pictures of equal rank, at least 1."""
    if isinstance(picture, PsdImagePlugin.PsdImageFile) and not _is_composed(picture):
        raise InputError(
            f"{path} has layers only, without the picture that they make; save it with 'maximize compatibility', or as "
            "PNG"
        )
    if picture.format in _ONE_PICTURE:
        return 1
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return _choose_page(path, picture)
    return _count(picture)


def _is_composed(picture: PsdImagePlugin.PsdImageFile) -> bool:
    """Whether a PSD file contains the composite of its layers; the version resource says so."""
    version = next((data for number, _, data in picture.resources if number == 1057), b"")
    return len(version) < 5 or version[4] != 0


def _choose_page(path: Path, picture: TiffImagePlugin.TiffImageFile) -> int:
    """Turn to the only full page of a TIFF file, and return the number of full pages."""
    pages = []
    for page in range(_count(picture)):
        picture.seek(page)
        tags = picture.tag_v2
        reduced = int(tags.get(_SUBFILE, 0)) & 0b101 or tags.get(_OLD_SUBFILE) == 2 or (page and _THUMBNAIL in tags)
        if not reduced:
            pages.append(page)
        elif page == 0 and _SUB_IFDS in tags:
            raise InputError(f"{path} is a camera's raw file; develop it, and save it as PNG or JPEG")
    picture.seek(pages[0] if pages else 0)
    return max(1, len(pages))
