"""Check whether all videos of a manifest exist and match it.

The official code scores the videos that it finds and only warns about the others, so a missing or wrong file would
change the score. A folder of videos contains:

    videos/      the files with their official names and nothing else, as the official code requires
    recipes/     how each video was made
    run.json     the manifest, the model and the settings of the videos
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pusa.errors import InputError, PusaError
from pusa.evaluation.vbench.manifest import Manifest
from pusa.files import make_folder, write_json
from pusa.media.video_probe import probe
from pusa.media.videos import read_video

VIDEOS, RECIPES, RUN = "videos", "recipes", "run.json"
Kind = Literal["missing", "damaged", "wrong", "duplicate", "foreign", "altered"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file. what: the end of a sentence that begins with the file's name."""

    kind: Kind
    file: str
    what: str


def check_video(path: Path, manifest: Manifest, *, whole: bool = True) -> Problem | None:
    """The problem of one video, or None if its frames, size and rate match the manifest. whole: decode all of it."""
    if not path.exists():
        return Problem("missing", path.name, "is missing")
    try:
        if whole:
            frames, fps = read_video(path)
            count, height, width, _ = frames.shape
        else:
            info = probe(path)
            count, height, width, fps = len(info.times), info.height, info.width, info.fps
    except PusaError as error:
        what = str(error).removeprefix(f"{path} ").rstrip(".")
        return Problem("damaged", path.name, f"{what}; remove it, and run pusa vbench generate to make it again")
    found = (count, (width, height), round(fps, 3))
    wanted = (manifest.frames, manifest.size, round(manifest.fps, 3))
    if found == wanted:
        return None
    names = ("frames", "size", "frames per second")
    differences = [
        f"{_text(have)} {name} instead of {_text(want)}"
        for name, have, want in zip(names, found, wanted, strict=True)
        if have != want
    ]
    return Problem("wrong", path.name, "has " + " and ".join(differences))


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def problems(manifest: Manifest, folder: Path, progress: Progress = lambda done, total: None) -> list[Problem]:
    """All problems of a folder of videos; empty if it can be scored."""
    check_run(folder, manifest)
    videos = folder / VIDEOS
    found: list[Problem] = []
    seen: dict[str, str] = {}
    wanted = {video.file for video in manifest.videos}
    for number, video in enumerate(manifest.videos, 1):
        problem = check_video(videos / video.file, manifest)
        if problem is None:
            content = hashlib.sha256((videos / video.file).read_bytes()).hexdigest()
            problem = _recorded(folder, video.file, video.seed, content)
            if problem is None and content in seen:
                problem = Problem("duplicate", video.file, f"has the same bytes as {seen[content]}")
            seen.setdefault(content, video.file)
        if problem is not None:
            found.append(problem)
        progress(number, len(manifest.videos))
    there = sorted(path.name for path in videos.iterdir()) if videos.is_dir() else []
    found += [
        Problem("foreign", name, "is not in the manifest") for name in there if name not in wanted and name[0] != "."
    ]
    return found


def contents(manifest: Manifest, folder: Path, progress: Progress = lambda done, total: None) -> dict[str, str]:
    """The SHA-256 of each existing video. Raises InputError if the header of one does not match the manifest."""
    found = {}
    for number, video in enumerate(manifest.videos, 1):
        path = folder / VIDEOS / video.file
        problem = check_video(path, manifest, whole=False)
        if problem is None:
            found[video.file] = hashlib.sha256(path.read_bytes()).hexdigest()
            problem = _recorded(folder, video.file, video.seed, found[video.file])
        if problem is not None and problem.kind != "missing":
            raise InputError(f"{path} {problem.what}; run pusa vbench verify to list all problems.")
        progress(number, len(manifest.videos))
    if others := sorted(path.name for path in (folder / VIDEOS).glob("[!.]*") if path.suffix != ".mp4"):
        raise InputError(
            f"{folder / VIDEOS} contains {others[0]}, which the official code would take for a video; move it away."
        )
    return found


def without_recipe(manifest: Manifest, folder: Path) -> list[str]:
    """The existing videos without a recipe, for which it is unknown how they were made."""
    there = (video.file for video in manifest.videos if (folder / VIDEOS / video.file).exists())
    return [file for file in there if not recipe_path(folder, file).exists()]


def _recorded(folder: Path, file: str, seed: int, content: str) -> Problem | None:
    """The problem of a video according to its recipe. A video without a recipe was made elsewhere and is accepted."""
    path = recipe_path(folder, file)
    if not path.exists():
        return None
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return Problem("damaged", file, f"has a recipe that is not JSON, {path.name}")
    if recipe.get("sha256") != content:
        return Problem("altered", file, "is not the file that was made")
    if recipe.get("seed") != seed:
        return Problem("altered", file, f"was made with the seed {recipe.get('seed')} instead of {seed}")
    return None


def recipe_path(folder: Path, file: str) -> Path:
    """The recipe of a video: a JSON file that states how it was made."""
    return folder / RECIPES / f"{Path(file).stem}.json"


def check_run(folder: Path, manifest: Manifest, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """The run.json of a folder, or {} if there is none. Raises InputError for another manifest or other settings."""
    path = folder / RUN
    if not path.exists():
        return {}
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        identity = run["manifest"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; restore it, or choose an empty folder.") from error
    if identity != manifest.identity:
        mine = {"suite": manifest.suite, "size": list(manifest.size), "frames": manifest.frames, "fps": manifest.fps}
        differences = [
            f"{key} {run.get(key)} instead of {value}" for key, value in mine.items() if run.get(key) != value
        ]
        why = ", ".join(differences) or "other videos or another seed"
        raise InputError(f"{folder} belongs to another manifest ({why}); choose another folder.")
    if settings is not None and (different := _different(run["settings"], settings)):
        key = different[0]
        raise InputError(
            f"The videos in {folder} were made with {key} {run['settings'].get(key)!r}, not {settings.get(key)!r}; "
            "choose another folder, or the same settings."
        )
    return run


def _different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def start_run(folder: Path, manifest: Manifest, settings: dict[str, Any]) -> None:
    """Make the folder for this manifest and these settings, or check that it belongs to them."""
    if not check_run(folder, manifest, settings):
        make_folder(folder / VIDEOS, "the videos")
        make_folder(folder / RECIPES, "the recipes")
        head = {"suite": manifest.suite, "manifest": manifest.identity, "size": list(manifest.size)}
        write_json(folder / RUN, {**head, "frames": manifest.frames, "fps": manifest.fps, "settings": settings})


def summary(found: Iterable[Problem]) -> dict[str, list[str]]:
    """The files of each kind of problem."""
    kinds: dict[str, list[str]] = {}
    for problem in found:
        kinds.setdefault(problem.kind, []).append(problem.file)
    return kinds
