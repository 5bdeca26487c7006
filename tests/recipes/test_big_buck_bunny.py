"""The dataset that the recipe makes of a film, here of a small one with three scenes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pusa.media.videos import read_video, write_video
from pusa.training.data.dataset import find
from recipes.big_buck_bunny import dataset

pytest.importorskip("scenedetect")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Three seconds each of a dark, a greenish and a bright moving scene, 24 frames a second."""
    rng = np.random.default_rng(0)
    colours = np.array([[20, 20, 20], [40, 150, 40], [220, 220, 220]])
    frames = np.repeat(colours, 72, 0)[:, None, None] + rng.integers(-3, 4, (216, 64, 96, 1))
    for place in range(144, 216):
        frames[place, :, place % 8 :: 8] -= 120
    write_video(tmp_path / "film.mp4", frames.clip(0, 255).astype(np.uint8), 24)
    return tmp_path / "film.mp4"


def test_scenes_become_clips_with_captions_and_attribution(film: Path, tmp_path: Path) -> None:
    folder = dataset.build(film, tmp_path, (48, 32), 2.0)
    listing = find(folder)
    assert not listing.problems
    assert [(entry.path.name, entry.caption) for entry in listing.entries] == [
        ("scene_001_00072.mp4", "a greenish animated scene with little movement, scene 1 of Big Buck Bunny"),
        ("scene_002_00144.mp4", "a bright animated scene with much movement, scene 2 of Big Buck Bunny"),
    ]
    frames, fps = read_video(folder / "scene_001_00072.mp4")
    assert (frames.shape, fps) == ((72, 32, 48, 3), 24)
    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert all(word in attribution for word in ("Blender Foundation", "licenses/by/3.0", "48 x 32"))
    left_out = json.loads((tmp_path / "scenes.json").read_text())["left_out"]
    assert {"from": 1.5, "to": 3.0, "reason": "shorter than 2 s"} in left_out
    assert (tmp_path / "sheet.png").is_file()
    assert not list(folder.glob("*.png"))


def test_what_is_there_is_kept_and_the_rest_is_made(film: Path, tmp_path: Path) -> None:
    folder = dataset.build(film, tmp_path, (48, 32), 2.0)
    kept, lost = folder / "scene_001_00072.mp4", folder / "scene_002_00144.mp4"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    (folder / "metadata.csv").unlink()
    dataset.build(film, tmp_path, (48, 32), 2.0)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    with (folder / "metadata.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    dataset.build(film, tmp_path, (64, 32), 2.0)
    assert read_video(kept)[0].shape == (72, 32, 64, 3)
