"""Whether the videos of a manifest are all there and are what they should be.

The official code scores what it finds and only warns about the rest, so a missing or wrongly tagged file becomes
another score. A folder of videos holds:

    videos/      the files by their official names, and nothing else, as the official code wants it
    recipes/     how each was made
    run.json     which manifest, model and settings they belong to
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
from pusa.video_probe import look
from pusa.videos import read_video

VIDEOS, RECIPES, RUN = "videos", "recipes", "run.json"
Kind = Literal["missing", "damaged", "wrong", "duplicate", "foreign", "altered"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file."""

    kind: Kind
    file: str
    what: str


def of_video(path: Path, manifest: Manifest, *, whole: bool = True) -> Problem | None:
    """What is wrong with one video: None when frames, size and rate are the manifest's. whole: decode all of it."""
    if not path.exists():
        return Problem("missing", path.name, "is not there")
    try:
        if whole:
            frames, fps = read_video(path)
            count, height, width, _ = frames.shape
        else:
            film = look(path)
            count, height, width, fps = len(film.times), film.height, film.width, film.fps
    except PusaError as error:
        what = str(error).removeprefix(f"{path} ").rstrip(".")
        return Problem("damaged", path.name, f"{what}; remove it, and pusa vbench generate makes it again")
    found = (count, (width, height), round(fps, 3))
    wanted = (manifest.frames, manifest.size, round(manifest.fps, 3))
    if found == wanted:
        return None
    names = ("frames", "size", "frames per second")
    odd = [
        f"{_text(have)} {name} instead of {_text(want)}"
        for name, have, want in zip(names, found, wanted, strict=True)
        if have != want
    ]
    return Problem("wrong", path.name, "has " + " and ".join(odd))


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def problems(manifest: Manifest, folder: Path, progress: Progress = lambda done, total: None) -> list[Problem]:
    """Everything that is wrong with a folder of videos; empty when it can be scored."""
    check_run(folder, manifest)
    videos = folder / VIDEOS
    found: list[Problem] = []
    seen: dict[str, str] = {}
    wanted = {video.file for video in manifest.videos}
    for number, video in enumerate(manifest.videos, 1):
        problem = of_video(videos / video.file, manifest)
        if problem is None:
            content = hashlib.sha256((videos / video.file).read_bytes()).hexdigest()
            problem = _recorded(folder, video.file, video.seed, content)
            if problem is None and content in seen:
                problem = Problem("duplicate", video.file, f"has the bytes of {seen[content]}")
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
    """The SHA-256 of each video that is there; InputError when one is not what the manifest says, by its header."""
    found = {}
    for number, video in enumerate(manifest.videos, 1):
        path = folder / VIDEOS / video.file
        problem = of_video(path, manifest, whole=False)
        if problem is None:
            found[video.file] = hashlib.sha256(path.read_bytes()).hexdigest()
            problem = _recorded(folder, video.file, video.seed, found[video.file])
        if problem is not None and problem.kind != "missing":
            raise InputError(f"{path} {problem.what}; pusa vbench verify names all that is wrong.")
        progress(number, len(manifest.videos))
    if others := sorted(path.name for path in (folder / VIDEOS).glob("[!.]*") if path.suffix != ".mp4"):
        raise InputError(
            f"{folder / VIDEOS} holds {others[0]}, which the official code would take for a video; move it."
        )
    return found


def unrecorded(manifest: Manifest, folder: Path) -> list[str]:
    """The videos that are there without a recipe, so that it cannot be told how they were made."""
    there = (video.file for video in manifest.videos if (folder / VIDEOS / video.file).exists())
    return [file for file in there if not recipe_path(folder, file).exists()]


def _recorded(folder: Path, file: str, seed: int, content: str) -> Problem | None:
    """What the recipe of a whole video says against it; a video from elsewhere has none, and is taken as it is."""
    path = recipe_path(folder, file)
    if not path.exists():
        return None
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return Problem("damaged", file, f"has a recipe that is no JSON, {path.name}")
    if recipe.get("sha256") != content:
        return Problem("altered", file, "is another file than the one that was made")
    if recipe.get("seed") != seed:
        return Problem("altered", file, f"was made with the seed {recipe.get('seed')} instead of {seed}")
    return None


def recipe_path(folder: Path, file: str) -> Path:
    """Where it is kept how a video was made."""
    return folder / RECIPES / f"{Path(file).stem}.json"


def check_run(folder: Path, manifest: Manifest, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the folder was begun with; InputError for another manifest or other settings. {} in a folder without."""
    path = folder / RUN
    if not path.exists():
        return {}
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        identity = run["manifest"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; put it back, or take an empty folder.") from error
    if identity != manifest.identity:
        mine = {"suite": manifest.suite, "size": list(manifest.size), "frames": manifest.frames, "fps": manifest.fps}
        odd = [f"{key} {run.get(key)} instead of {value}" for key, value in mine.items() if run.get(key) != value]
        why = ", ".join(odd) or "of other videos or another seed"
        raise InputError(f"{folder} belongs to another manifest ({why}); take another folder.")
    if settings is not None and (odd := _odd(run["settings"], settings)):
        key = odd[0]
        raise InputError(
            f"{folder} was begun with {key} {run['settings'].get(key)!r} and not {settings.get(key)!r}; take another "
            "folder, or the same settings."
        )
    return run


def _odd(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def begin_run(folder: Path, manifest: Manifest, settings: dict[str, Any]) -> None:
    """Make the folder one of this manifest and these settings, or see that it is."""
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
