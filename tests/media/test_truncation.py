"""A file that lacks its end is found, and a file that lacks only an index is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.media import truncation, video_probe, videos

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 48, 3), np.uint8)
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "a.mp4": ("libx264", {"movflags": "+faststart"}),
    "fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "frames.mp4": ("libx264", {"movflags": "frag_every_frame+empty_moov+delay_moov"}),
    "a.mov": ("mpeg4", {"movflags": "+faststart"}),
    "a.mkv": ("libx264", {}),
    "a.webm": ("libvpx", {}),
    "a.avi": ("mpeg4", {}),
    "a.flv": ("flv", {}),
    "a.wmv": ("wmv2", {}),
    "a.ogv": ("libvpx", {}),
    "a.gif": ("gif", {}),
}


def write(path: Path, sound: bool = False) -> bytes:
    codec, options = KINDS[path.name]
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=8, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb8" if codec == "gif" else "yuv420p"
        audio: Any = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for picture in NOISE:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 64_000), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            for part in (silence, None):
                container.mux(audio.encode(part))
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_without_its_end_is_found(tmp_path: Path, name: str, share: float) -> None:
    data = write(tmp_path / name)
    frames, _ = videos.read_video(tmp_path / name)
    assert len(frames) == 24
    assert len(video_probe.probe(tmp_path / name).times) == 24
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"cut off|is damaged at frame"):
        videos.read_video(tmp_path / name)
    with pytest.raises(video_probe.Truncated, match="cut off"):
        video_probe.probe(tmp_path / name)


@pytest.mark.parametrize(("name", "bytes_less"), [("a.mkv", 3), ("a.avi", 20), ("fragments.mp4", 3), ("a.gif", 1)])
def test_a_file_that_lacks_only_its_index_is_whole(tmp_path: Path, name: str, bytes_less: int) -> None:
    data = write(tmp_path / name)
    (tmp_path / name).write_bytes(data[:-bytes_less])
    assert len(videos.read_video(tmp_path / name)[0]) == 24
    assert len(video_probe.probe(tmp_path / name).times) == 24


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
def test_sound_that_is_longer_than_the_pictures_is_no_cut(tmp_path: Path, name: str) -> None:
    data = write(tmp_path / name, sound=True)
    for less in (0, 3 if name == "a.mkv" else 0):
        (tmp_path / name).write_bytes(data[: len(data) - less])
        assert len(videos.read_video(tmp_path / name)[0]) == 24
        assert len(video_probe.probe(tmp_path / name).times) == 24


def test_a_live_recording_states_no_size(tmp_path: Path) -> None:
    KINDS["live.mkv"] = ("libx264", {"live": "1"})
    write(tmp_path / "live.mkv")
    del KINDS["live.mkv"]
    assert truncation.stated_size(tmp_path / "live.mkv") == 0
    assert len(videos.read_video(tmp_path / "live.mkv")[0]) == 24


def test_what_states_no_size() -> None:
    assert truncation.stated_size(Path(__file__)) == 0


@pytest.mark.parametrize("suffix", ["webp", "png", "avif"])
def test_animated_pictures_without_their_end(tmp_path: Path, suffix: str) -> None:
    frames = [PILImage.fromarray(picture) for picture in NOISE[:6]]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    data = path.read_bytes()
    path.write_bytes(data[: int(0.7 * len(data))])
    for read in (videos.read_video, video_probe.probe):
        with pytest.raises(InputError, match=r"cut off"):
            read(path)  # type: ignore[operator]
