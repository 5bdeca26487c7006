"""Transparency that is stored beside the pictures of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pusa.media import video_probe, videos


def half_transparent(path: Path, codec: str, options: dict[str, str]) -> Path:
    """Ten red frames that become darker; their left half is transparent, and the next quarter half so."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuva420p"
        for k in range(10):
            picture = np.zeros((32, 64, 4), np.uint8)
            picture[..., 0] = 250 - 15 * k
            picture[:, 32:48, 3], picture[:, 48:, 3] = 128, 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="yuva420p")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.webm", "libvpx-vp9", {"auto-alt-ref": "0", "crf": "4", "b": "0", "g": "4"}),
     ("a.webm", "libvpx", {"auto-alt-ref": "0", "b": "2000000", "g": "4"}),
     ("a.mkv", "libvpx-vp9", {"auto-alt-ref": "0", "crf": "4", "b": "0"}),
     ("a.mkv", "ffv1", {})],
)  # fmt: skip
def test_transparent_clips_are_laid_over_white(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = half_transparent(tmp_path / name, codec, options)
    frames, fps = videos.read_video(path)
    assert frames.shape == (10, 32, 64, 3)
    for k, frame in enumerate(frames.astype(int)):
        red = np.array([250 - 15 * k, 0, 0])
        assert np.abs(frame[:, 4:28] - 255).max() < 8
        assert np.abs(frame[8:24, 37:43] - (red + 255) / 2).max() < 14
        assert np.abs(frame[8:24, 52:60] - red).max() < 14
    assert fps == 8
    parts = video_probe.read(path, np.arange(5, 10) / fps, (64, 32))
    np.testing.assert_array_equal(parts, frames[5:])
