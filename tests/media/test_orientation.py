"""Every rotation and mirror that a container states, on whole clips and on single frames."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from av.filter import Graph
from av.video.frame import VideoFrame
from PIL import Image as PILImage

from pusa.media import images, orientation, video_probe, videos
from tests.footage import psnr, ramp

SIDES = (64, 96)  # height, width
STATES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def shown(picture: images.Image, a: int, b: int, c: int, d: int) -> images.Image:
    """By the definition: the pixel (x, y) is shown at (a x + c y, b x + d y), moved so that nothing is negative."""
    y, x = np.indices(picture.shape[:2])
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    out = np.zeros((down.max() + 1, across.max() + 1, 3), np.uint8)
    out[down, across] = picture
    return out


def with_matrix(path: Path, *matrix: float) -> Path:
    """A clip whose track header states a, b, c, d."""
    videos.write_video(path, np.broadcast_to(ramp(*SIDES), (3, *SIDES, 3)), 8)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (round(65_536 * entry) for entry in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("matrix", STATES)
def test_rotations_and_mirrors_of_videos(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = with_matrix(tmp_path / "phone.mp4", *matrix)
    frames, fps = videos.read_video(path)
    expected = shown(ramp(*SIDES), *matrix)
    assert frames.shape == (3, *expected.shape)
    assert psnr(frames, expected[None]) > 40
    about = video_probe.probe(path)
    assert (about.height, about.width) == expected.shape[:2]
    parts = video_probe.read(path, np.arange(3) / fps, (about.width, about.height))
    np.testing.assert_array_equal(parts, frames)


@pytest.mark.parametrize("degrees", [10, 200])
def test_another_angle_turns_the_picture_within_its_size(tmp_path: Path, degrees: int) -> None:
    turn = math.radians(degrees)
    path = with_matrix(tmp_path / "a.mp4", math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn))
    frames, _ = videos.read_video(path)
    assert frames.shape == (3, *SIDES, 3)
    graph = Graph()
    frame = VideoFrame.from_ndarray(ramp(*SIDES), "rgb24")
    source = graph.add_buffer(width=SIDES[1], height=SIDES[0], format=frame.format, time_base=1)  # type: ignore[arg-type]
    graph.link_nodes(source, graph.add("rotate", f"{turn}"), graph.add("buffersink")).configure()
    graph.push(frame)
    assert psnr(frames[0], graph.pull().to_ndarray(format="rgb24")) > 25
    assert not frames[0, 0, 0].any(), "the corners are black"


def test_a_matrix_without_a_direction_changes_nothing() -> None:
    np.testing.assert_array_equal(orientation.turned(ramp(), (0, 0, 0, 0)), ramp())
    np.testing.assert_array_equal(orientation.turned(ramp(), None), ramp())


@pytest.mark.parametrize("orientation_tag", range(1, 9))
def test_the_shown_size_is_that_of_the_upright_picture(tmp_path: Path, orientation_tag: int) -> None:
    path, exif = tmp_path / "a.jpg", PILImage.Exif()
    exif[0x0112] = orientation_tag
    PILImage.fromarray(ramp(24, 32)).save(path, exif=exif)
    with PILImage.open(path) as picture:
        width, height = orientation.shown_size(picture)
    assert images.read_image(path).shape == (height, width, 3)
