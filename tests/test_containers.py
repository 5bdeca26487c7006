"""Files as other programs write them: tags, several tracks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pusa import video_probe, videos
from tests.footage import clip, numbers

LATIN = b"caf\xe9 \xff\xfe"


def tagged(path: Path) -> Path:
    """A clip whose title is not UTF-8."""
    import av

    with av.open(str(path), "w", metadata_errors="surrogateescape") as container:
        container.metadata["title"] = LATIN.decode("utf-8", "surrogateescape")
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.metadata["title"] = LATIN.decode("utf-8", "surrogateescape")
        for picture in clip(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.ts"])
def test_tags_may_have_any_encoding(tmp_path: Path, name: str) -> None:
    path = tagged(tmp_path / name)
    assert LATIN[:4] in path.read_bytes()
    frames, fps = videos.read_video(path)
    assert numbers(frames) == [0, 1, 2, 3, 4]
    assert len(video_probe.probe(path).times) == 5
    np.testing.assert_array_equal(video_probe.read(path, np.arange(5) / fps, (48, 32)), frames)
