"""A dataset in the official layout: a square that moves, filmed twice from two sides, 40 frames at 8 a second."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pusa.media.images import Frames, write_image
from pusa.media.videos import write_video

FPS, COUNT = 8, 40
SIZE = (256, 144)
VIEWS = ("perspective-left", "perspective-center")
SCENES = {"trimmed-square-slides": "Solid Mechanics", "trimmed-square-falls": "Fluid Dynamics"}


def clip(
    name: str = "trimmed-square-slides",
    *,
    first: int = 0,
    offset: tuple[int, int] = (0, 0),
    speed: int = 4,
    count: int = COUNT,
    sign: int = 1,
) -> Frames:
    """The square's way from frame `first` on, moved by `offset` pixels; sign -1 runs the other way."""
    frames = np.full((count, SIZE[1], SIZE[0], 3), 90, np.uint8)
    for t in range(count):
        way = speed * min(max(t + first, 0), COUNT)
        x, y = (20 + way, 60) if "slides" in name else (120, 4 + way // 2)
        if sign < 0:
            x = SIZE[0] - 44 - x
        x, y = x + offset[0], y + offset[1]
        frames[t, max(y, 0) : y + 24, max(x, 0) : x + 24] = (240, 220, 60)
    return frames


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("physics")
    testing = folder / "split-videos" / "testing-videos" / f"{FPS}FPS"
    given = folder / "split-videos" / "conditioning-videos" / f"{FPS}FPS"
    for place in (testing, given, folder / "switch-frames"):
        place.mkdir(parents=True)
    rows, number = [], 0
    for name, category in SCENES.items():
        for view in VIEWS:
            number += 1
            kind, ending = f"{FPS}FPS_{view}", f"{name}.mp4"
            write_video(testing / f"{number:04d}_testing-videos_{kind}_take-1_{ending}", clip(name), FPS, crf=0)
            second = clip(name, offset=(0, 3))
            write_video(testing / f"{number + 100:04d}_testing-videos_{kind}_take-2_{ending}", second, FPS, crf=0)
            before = clip(name, first=-24, count=24)
            write_video(given / f"{number:04d}_conditioning-videos_{kind}_take-1_{ending}", before, FPS, crf=0)
            write_image(folder / "switch-frames" / f"{number:04d}_switch-frames_anyFPS_{view}_{name}.jpg", before[-1])
            for take, identity in ((1, number), (2, number + 100)):
                rows.append([f"{identity:04d}_{view}_take-{take}_{ending}", "A square moves.", category,
                             f"{number:04d}_{view}_{ending}"])  # fmt: skip
    with (folder / "descriptions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("scenario", "description", "category", "generated_video_name"), *rows])
    return folder


@pytest.fixture
def videos(dataset: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a video for every view, made by a function of the scene's name."""

    def write(make: Callable[[str], Frames], folder: str = "videos", fps: float = FPS) -> Path:
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        for row in csv.DictReader((dataset / "descriptions.csv").open()):
            if "_take-1_" in row["scenario"]:
                name = row["scenario"].split("_take-1_")[1].removesuffix(".mp4")
                write_video(place / row["generated_video_name"], make(name), fps, crf=0)
        return place

    return write
