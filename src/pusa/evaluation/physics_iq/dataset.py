"""The official files: the list of the experiments, and where the dataset stores the files of each.

A description names `{id}_{view}_take-1_{name}.mp4`. The second take of a view has its own id and the same name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pusa.errors import InputError
from pusa.files import existing_file

SECONDS = 5
"""the length of a scored video, in seconds"""
GIVEN_SECONDS = 3
NATIVE_FPS = 30
_NAME = re.compile(r"(?P<id>\d{4})_(?P<view>perspective-[a-z]+)_take-1_(?P<name>[^_]+)\.mp4")
_COLUMNS = ("scenario", "description", "category", "generated_video_name")
TESTING = ("split-videos/testing-videos", "split-videos/testing")
"""the names of this folder in the two variants of the dataset"""
PREFIXES, PICTURES = "split-videos/conditioning-videos", "switch-frames"


@dataclass(frozen=True)
class Scene:
    """One experiment, seen from one side.

    name: of the experiment, the same for all its views. file: the name of the generated video.
    """

    id: str
    view: str
    name: str
    prompt: str
    category: str
    file: str


def scenes(descriptions: Path) -> list[Scene]:
    """The first takes in a descriptions CSV, 198 in the official one; InputError for any other file."""
    existing_file(descriptions)
    found = []
    try:
        with descriptions.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{descriptions} is not a CSV file ({error}); give the official descriptions.") from error
    if not rows or any(column not in rows[0] for column in _COLUMNS):
        raise InputError(
            f"{descriptions} does not have the columns {', '.join(_COLUMNS)}; give the official descriptions."
        )
    for row in rows:
        if "_take-1_" not in row["scenario"]:
            continue
        parts = _NAME.fullmatch(row["scenario"])
        if parts is None:
            raise InputError(
                f"{descriptions}: {row['scenario']!r} is not the name of a first take; give the official file."
            )
        video = row["generated_video_name"]
        found.append(Scene(parts["id"], parts["view"], parts["name"], row["description"], row["category"], video))
    if not found:
        raise InputError(f"{descriptions} has no first take; give the official descriptions.")
    return found


class Dataset:
    """A folder of Physics-IQ or Physics-IQ Verified."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.testing = next((folder / name for name in TESTING if (folder / name).is_dir()), folder / TESTING[0])
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}; give the folder of the Physics-IQ dataset.")

    def take(self, scene: Scene, number: int, fps: float) -> Path | None:
        """The real five seconds of a take: at this frame rate if the dataset has it, else at 30 frames per second."""
        for rate in dict.fromkeys((round(fps), NATIVE_FPS)):
            pattern = f"*_testing-videos_{rate}FPS_{scene.view}_take-{number}_{scene.name}.mp4"
            if found := sorted((self.testing / f"{rate}FPS").glob(pattern)):
                return found[0]
        return None

    def takes(self, scene: Scene) -> list[tuple[str, int]]:
        """The names and sizes in bytes of the real takes, at all frame rates.

        With the content of the video, they identify a comparison.
        """
        found = self.testing.glob(f"*FPS/*_testing-videos_*FPS_{scene.view}_take-?_{scene.name}.mp4")
        return sorted((path.name, path.stat().st_size) for path in found)

    def picture(self, scene: Scene) -> Path:
        """The picture at the moment when the experiment begins."""
        return self.folder / PICTURES / f"{scene.id}_switch-frames_anyFPS_{scene.view}_{scene.name}.jpg"

    def prefix(self, scene: Scene, fps: float) -> Path | None:
        """The three seconds before the experiment begins, or None."""
        for rate in dict.fromkeys((round(fps), NATIVE_FPS)):
            name = f"{scene.id}_conditioning-videos_{rate}FPS_{scene.view}_take-1_{scene.name}.mp4"
            path = self.folder / PREFIXES / f"{rate}FPS" / name
            if path.is_file():
                return path
        return None


def check_sources(paths: Sequence[tuple[Scene, Path | None]], what: str) -> None:
    """Raise InputError if sources are missing; it names their scenes."""
    if missing := [scene.id for scene, path in paths if path is None or not path.is_file()]:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise InputError(f"The dataset lacks the {what} of {', '.join(missing[:4])}{more}; download all of it.")
