"""Files that hold more than one picture, and files of the HEIF family, under any name."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image as PILImage
from PIL import TiffImagePlugin

from pusa.errors import InputError
from pusa.media import images, video_probe, videos
from tests.footage import animated, psnr, ramp

PICTURE = PILImage.fromarray(ramp(128, 192))
SMALL = PICTURE.resize((48, 32)).transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)


def mpo(path: Path) -> None:
    PICTURE.save(path, format="MPO", save_all=True, append_images=[SMALL], quality=95)


def tiff(path: Path, *kinds: int) -> None:
    """A TIFF file of the picture and smaller copies; `kinds` are the subfile types of its pages."""
    pages = [SMALL if kind & 1 else PICTURE for kind in kinds]
    with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as file:
        for page, kind in zip(pages, kinds, strict=True):
            page.save(file, format="TIFF", tiffinfo={254: kind})
            file.newFrame()


def icons(path: Path) -> None:
    PICTURE.resize((64, 64)).save(path, sizes=[(16, 16), (32, 32), (64, 64)])


def heic(path: Path) -> None:
    """A picture in tiles, with a smaller picture beside it, as phones write."""
    file = pillow_heif.from_pillow(SMALL)
    file.add_from_pillow(PICTURE)
    file.save(path, quality=95, primary_index=1, tile_size=64, format="HEIF")


def avif(path: Path) -> None:
    PICTURE.save(path, format="AVIF", quality=95)


def psd(path: Path, composed: bool = True, layers: int = 2, alpha: bytes = b"") -> None:
    """A Photoshop file with layers and, unless it is not `composed`, the picture that they make, on white."""
    height, width = PICTURE.height, PICTURE.width

    def block(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    version = struct.pack(">IB", 1, composed) + bytes(9)
    resources = b"8BIM" + struct.pack(">HH", 1057, 0) + block(version) + bytes(len(version) % 2)
    records, planes = b"", b""
    for _ in range(abs(layers)):
        records += struct.pack(">4iH", 0, 0, 2, 2, 3)
        records += b"".join(struct.pack(">hI", channel, 2 + 4) for channel in range(3))
        records += b"8BIMnorm" + bytes([255, 0, 0, 0]) + block(block(b"") + block(b"") + bytes(4))
        planes += 3 * (bytes(2) + bytes(4))
    info = struct.pack(">h", layers) + records + planes
    pixels = np.ascontiguousarray(np.asarray(PICTURE).transpose(2, 0, 1)).tobytes()
    path.write_bytes(
        b"8BPS"
        + struct.pack(">H6xHIIHH", 1, 3 + bool(alpha), height, width, 8, 3)
        + block(b"")
        + block(resources)
        + block(block(info + bytes(len(info) % 2)) + block(b""))
        + bytes(2)
        + pixels
        + height * width * alpha
    )


SEVERAL: dict[str, Callable[[Path], object]] = {
    "phone.jpg": mpo,
    "thumbnail.tiff": lambda path: tiff(path, 0, 1),
    "thumbnail-first.tif": lambda path: tiff(path, 1, 0),
    "mask.tif": lambda path: tiff(path, 0, 4, 1),
    "a.ico": icons,
    "a.icns": lambda path: PICTURE.resize((128, 128)).save(path),
    "phone.heic": heic,
    "phone.jpeg": heic,
    "no suffix": heic,
    "a.avif": avif,
    "avif.png": avif,
    "layers.psd": psd,
    "transparent.psd": lambda path: psd(path, layers=-2, alpha=b"\x80"),
    "selection.psd": lambda path: psd(path, alpha=b"\0"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_picture_that_the_file_means_is_read(tmp_path: Path, name: str) -> None:
    SEVERAL[name](tmp_path / name)
    image = images.read_image(tmp_path / name)
    expected = np.asarray(PICTURE.resize(image.shape[1::-1]))
    assert image.shape[0] >= 64
    assert psnr(image, expected) > 30


@pytest.mark.parametrize(
    "name", ["phone.jpg", "thumbnail.tiff", "phone.heic", "a.avif", "phone.jpeg", "a.png", "a.gif"]
)
def test_a_picture_given_as_a_video_is_one_sentence(tmp_path: Path, name: str) -> None:
    SEVERAL.get(name, PICTURE.save)(tmp_path / name)
    with pytest.raises(InputError, match="is a picture, but a video is needed; give it as an image") as caught:
        videos.read_video(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["phone.jpg", "phone.heic", "a.avif", "heic.mp4", "thumbnail.tiff", "mask.tif"])
def test_a_still_picture_is_one_frame_of_a_dataset(tmp_path: Path, name: str) -> None:
    SEVERAL.get(name, heic)(tmp_path / name)
    about = video_probe.probe(tmp_path / name)
    assert (about.times.tolist(), about.fps, about.width, about.height) == ([0.0], 0.0, 192, 128)
    part = video_probe.read(tmp_path / name, np.zeros(1), (192, 128))
    np.testing.assert_array_equal(part[0], images.read_image(tmp_path / name))


def test_pictures_of_equal_rank_are_refused(tmp_path: Path) -> None:
    tiff(tmp_path / "pages.tif", 2, 2, 1)
    with pytest.raises(InputError, match=r"contains 2 pictures, but one is needed; save one of them as PNG$"):
        images.read_image(tmp_path / "pages.tif")


def test_a_raw_file_of_a_camera_is_not_its_thumbnail(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "a.dng", format="TIFF", tiffinfo={254: 1, 330: 8})
    with pytest.raises(InputError, match="camera's raw file; develop it"):
        images.read_image(tmp_path / "a.dng")


@pytest.mark.parametrize("head", [b"II*\0\x10\0\0\0CR\x02\0", b"\0\0\0\x18ftypcrx \0\0\0\1", b"FUJIFILMCCD-RAW 0201"])
def test_raw_files_of_cameras_are_called_so(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.raw").write_bytes(head + bytes(500))
    for read in (images.read_image, video_probe.probe):
        with pytest.raises(InputError, match="camera's raw file; develop it"):
            read(tmp_path / "a.raw")  # type: ignore[operator]
    with pytest.raises(InputError, match="is a picture, but a video is needed"):
        videos.read_video(tmp_path / "a.raw")


def test_layers_without_their_picture_are_refused(tmp_path: Path) -> None:
    psd(tmp_path / "a.psd", composed=False)
    with pytest.raises(InputError, match=r"layers only.*; save it with"):
        images.read_image(tmp_path / "a.psd")


@pytest.mark.parametrize("name", ["moving.avif", "moving.mp4"])
def test_an_animated_avif_is_a_clip(tmp_path: Path, name: str) -> None:
    frames = [PILImage.new("RGB", (64, 48), (60 * k, 200 - 40 * k, 90)) for k in range(4)]
    durations = [100, 100, 200, 100]
    frames[0].save(
        tmp_path / name, format="AVIF", save_all=True, append_images=frames[1:], duration=durations, quality=95
    )
    with pytest.raises(InputError, match=r"contains 4 pictures, but one is needed; .*or give it as a video"):
        images.read_image(tmp_path / name)
    whole, fps = videos.read_video(tmp_path / name, fps=10)
    assert fps == 10
    assert np.abs(whole[[0, 1, 2, 4], 0, 0, 0].astype(int) - [0, 60, 120, 180]).max() < 6
    about = video_probe.probe(tmp_path / name)
    np.testing.assert_allclose(about.times, [0, 0.1, 0.2, 0.4])
    np.testing.assert_array_equal(video_probe.read(tmp_path / name, np.arange(5) / 10, (64, 48)), whole)


def test_a_damaged_heif_picture_is_one_sentence(tmp_path: Path) -> None:
    heic(tmp_path / "a.heic")
    good = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(good[:900])
    for read in (images.read_image, videos.read_video, video_probe.probe):
        with pytest.raises(InputError, match=r"a\.heic") as caught:
            read(tmp_path / "a.heic")  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def test_both_doors_agree_about_animated_pictures(tmp_path: Path) -> None:
    animated(tmp_path / "a.png")
    whole, _ = videos.read_video(tmp_path / "a.png", fps=10)
    part = video_probe.read(tmp_path / "a.png", np.arange(len(whole)) / 10, (8, 8))
    np.testing.assert_array_equal(part, whole)


def test_a_heif_sequence_is_a_clip(tmp_path: Path) -> None:
    videos.write_video(tmp_path / "a.mp4", np.broadcast_to(ramp(32, 48), (3, 32, 48, 3)), 8)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[8:12] = b"msf1"
    (tmp_path / "a.heic").write_bytes(data)
    assert videos.read_video(tmp_path / "a.heic")[0].shape == (3, 32, 48, 3)
    assert len(video_probe.probe(tmp_path / "a.heic").times) == 3
    with pytest.raises(InputError, match="is a video, but a picture is needed; save one of its frames"):
        images.read_image(tmp_path / "a.heic")


def test_postscript_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    with pytest.raises(InputError, match="is not a picture that can be read; convert it"):
        images.read_image(tmp_path / "a.eps")


def small(kind: str) -> bytes:
    file = io.BytesIO()
    PICTURE.resize((24, 16)).save(file, "TIFF", compression=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["raw", "tiff_lzw", "jpeg", "pages", "psd", "heic", "avif"])
def test_whatever_a_file_holds_it_is_pixels_or_a_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    makers = {"pages": lambda p: tiff(p, 0, 1, 0), "psd": psd, "heic": heic, "avif": avif}
    makers.get(kind, lambda p: p.write_bytes(small(kind)))(path)
    good = path.read_bytes()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = bytearray(good)
        for at in rng.integers(0, len(data) if seed % 3 else min(300, len(data)), rng.integers(1, 9)):
            data[at] = rng.choice([0, 255, rng.integers(256)])
        path.write_bytes(data[: rng.integers(1, len(data))] if seed % 5 == 4 else data)
        for read in (images.read_image, videos.read_video, video_probe.probe):
            with warnings.catch_warnings(), contextlib.suppress(InputError):
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", message=".* is HDR")
                read(path)  # type: ignore[operator]


def test_threads_leave_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", 0, 1)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda _: images.read_image(tmp_path / "a.tif").shape, range(80)))
    assert set(shapes) == {(128, 192, 3)}
    assert list(warnings.filters) == before


def test_a_plugin_that_another_library_registered_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PILImage.init()
    monkeypatch.setattr(PILImage, "ID", [name for name in PILImage.ID if name != "HEIF"])
    monkeypatch.setattr(PILImage, "OPEN", {name: plugin for name, plugin in PILImage.OPEN.items() if name != "HEIF"})
    path = tmp_path / "a.jpg"
    exif = PILImage.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(PILImage.fromarray(ramp(32, 48))).save(path, quality=90, exif=exif.tobytes())
    before = images.read_image(path)
    pillow_heif.register_heif_opener()
    assert "HEIF" in PILImage.OPEN
    assert np.array_equal(images.read_image(path), before)
