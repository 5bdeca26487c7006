"""HDR and wide gamut come out as the picture that was meant, on whole clips and on single frames."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

from pusa.errors import InputError
from pusa.media import tone_mapping, video_probe, videos

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
PQ, HLG, SDR, BT2020, P3 = 16, 18, 14, 9, 12
FROM_709 = {
    BT2020: np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]),
    P3: np.array([[0.8225, 0.1774, 0], [0.0332, 0.9669, 0], [0.0171, 0.0724, 0.9108]]),
}
COLOURS = np.array(
    [[0, 0, 0], [40, 40, 40], [90, 90, 90], [150, 150, 150], [180, 180, 180], [180, 60, 40], [60, 170, 60]]
    + [[50, 60, 180], [170, 130, 110], [120, 80, 60], [60, 120, 170], [160, 160, 60]],
    float,
)
"""as shown on a screen of BT.709"""


def pq(nits: NDArray[Any]) -> NDArray[Any]:
    """The inverse EOTF of SMPTE ST 2084."""
    root = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375


def hlg(nits: NDArray[Any]) -> NDArray[Any]:
    """The signal that an HLG display of 1,000 cd/m² shows as these."""
    shown = nits / 1000
    luma = shown @ [0.2627, 0.678, 0.0593]
    scene = shown * np.maximum(luma, 1e-9)[:, None] ** (-0.2 / 1.2)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


def signal(shown: NDArray[Any], transfer: int, primaries: int = BT2020) -> NDArray[Any]:
    """The components of a file of these colours; 255 is diffuse white, 203 cd/m² in HDR."""
    light = (shown / 255) ** 2.4 @ FROM_709[primaries].T
    return {PQ: lambda: pq(203 * light), HLG: lambda: hlg(203 * light)}.get(transfer, lambda: light ** (1 / 2.4))()


def write(path: Path, components: NDArray[Any], transfer: int, primaries: int = BT2020, matrix: int = 9) -> Path:
    """Three frames of patches of 16 x 16 pixels, in 10 bits."""
    picture = np.kron(np.rint(components * 65_535).astype(np.uint16)[None], np.ones((16, 16, 1), np.uint16))
    with av.open(str(path), "w") as container:
        codec = "libx265" if path.suffix == ".mov" else "libx264"
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream: Any = container.add_stream(codec, rate=8, options={"crf": "4", **options})
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = (
            primaries, transfer, matrix, 1
        )  # fmt: skip
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, "rgb48le").reformat(
                format="yuv420p10le", dst_colorspace=Colorspace.ITU709 if matrix == 1 else 9,
                dst_color_range=ColorRange.MPEG, interpolation=EXACT,
            )  # fmt: skip
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patches(frames: NDArray[np.uint8]) -> NDArray[Any]:
    return frames[0, 4:12].reshape(8, -1, 16, 3)[:, :, 4:12].mean(axis=(0, 2))


@pytest.mark.parametrize(
    ("name", "transfer", "primaries", "matrix"),
    [("pq.mp4", PQ, BT2020, 9), ("hlg.mkv", HLG, BT2020, 9), ("phone.mov", HLG, BT2020, 9), ("sdr.mp4", SDR, BT2020, 9),
     ("p3.mp4", 1, P3, 1)],
)  # fmt: skip
def test_colours_are_those_that_were_meant(
    tmp_path: Path, name: str, transfer: int, primaries: int, matrix: int
) -> None:
    path = write(tmp_path / name, signal(COLOURS, transfer, primaries), transfer, primaries, matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames, fps = videos.read_video(path)
        assert np.abs(patches(frames) - COLOURS).max() < 5
        parts = video_probe.read(path, np.arange(3) / fps, (frames.shape[2], frames.shape[1]))
    np.testing.assert_array_equal(parts, frames)


@pytest.mark.parametrize(("transfer", "code"), [("PQ", PQ), ("HLG", HLG)])
def test_hdr_keeps_what_is_brighter_than_white_and_says_so(tmp_path: Path, transfer: str, code: int) -> None:
    nits = np.repeat(np.array([100.0, 203, 300, 400, 600, 1000])[:, None], 3, 1)
    path = write(tmp_path / "a.mp4", pq(nits) if code == PQ else hlg(nits), code)
    with pytest.warns(UserWarning, match=rf"a\.mp4 is HDR \({transfer}\): it is tone-mapped to BT\.709"):
        frames, _ = videos.read_video(path)
    grey = patches(frames)[:, 1]
    assert (np.diff(grey) > 1.5).sum() >= 4, "different lights stay different"
    assert grey[1] > 220
    assert grey[-1] > 250
    with pytest.warns(UserWarning, match=r"is HDR"):
        video_probe.probe(path)


def test_the_usual_colours_are_left_alone() -> None:
    for transfer, primaries in ((1, 1), (2, 2), (6, 6), (13, 1), (1, 5)):
        assert tone_mapping.colours(transfer, primaries) is None


def test_the_table_agrees_with_the_formula() -> None:
    rng = np.random.default_rng(0)
    light = signal(rng.integers(30, 256, (64 * 64, 3)).astype(float), PQ)
    frame = av.VideoFrame.from_ndarray(np.rint(light * 65_535).astype(np.uint16).reshape(64, 64, 3), "rgb48le")
    source = tone_mapping.colours(PQ, BT2020)
    assert source is not None
    exact = tone_mapping.to_bt709(light, source).reshape(64, 64, 3)
    error = np.abs(tone_mapping.mapped(frame, source).astype(int) - exact)
    assert error.mean() < 0.3
    assert error.max() <= 4


@pytest.mark.parametrize(("matrix", "says"), [(14, "colour matrix .code 14. that is not known; export it")])
def test_colours_that_are_not_known_are_refused(tmp_path: Path, matrix: int, says: str) -> None:
    path = write(tmp_path / "a.mp4", signal(COLOURS, PQ), PQ, matrix=matrix)
    for read in (videos.read_video, video_probe.probe):
        with pytest.raises(InputError, match=says):
            read(path)  # type: ignore[operator]


def test_dolby_vision_without_another_base_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mov", signal(COLOURS, PQ), 2, 2, 2)
    data = path.read_bytes()
    tag = b"hev1" if b"hev1" in data else b"hvc1"
    path.write_bytes(data.replace(tag, b"dvh1"))
    for read in (videos.read_video, video_probe.probe):
        with pytest.raises(InputError, match=r"is Dolby Vision that only a Dolby decoder shows; export it"):
            read(path)  # type: ignore[operator]
