"""The official list (Apache-2.0, Vchitect/VBench), and a small one with pictures for it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from pusa.media.images import write_image

OFFICIAL = Path(__file__).with_name("vbench2_i2v_full_info.json.gz")


@pytest.fixture(scope="session")
def info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official vbench2_i2v_full_info.json."""
    path = tmp_path_factory.mktemp("vbench") / "vbench2_i2v_full_info.json"
    path.write_bytes(gzip.decompress(OFFICIAL.read_bytes()))
    return path


@pytest.fixture(scope="session")
def crops(info: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 7:4 by the official names, for the smoke suite."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    entries = json.loads(info.read_text())
    kinds = ("i2v_subject", "i2v_background", "camera_motion")
    for kind in kinds:
        for entry in [e for e in entries if kind in e["dimension"]][:2]:
            colour = rng.integers(0, 255, 3, dtype=np.uint8)
            write_image(folder / entry["image_name"], np.tile(colour, (64, 112, 1)))
    return folder
