"""Score clips of any program: what a clip is like, how well it keeps what it was given, whether its joins show.

What was given, and where a join is, is read from the recipe beside a clip of ours, or said by the caller. Scores are
kept in a folder by the content of the clip and of everything that it is compared with, so a second run looks only at
what is new, and scores of other versions of these measures are not mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pusa.errors import InputError, PusaError
from pusa.evaluation.clips import fidelity, measures, seams
from pusa.evaluation.clips.optical_flow import Motion
from pusa.evaluation.results_folder import make_missing
from pusa.files import make_folder, sha256, write_json
from pusa.generation.request import frame_index
from pusa.images import Frames, Image, contact_sheet, fit, read_image, write_image
from pusa.video_probe import look
from pusa.videos import read_video
from pusa.work.units import Unit
from pusa.work.workers import Worker

VERSION = 2
"""of the measures; scores of another one are refused"""
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
SETTINGS = "evaluation.json"
SMALLEST = 32
"""pixels of the shorter side below which a note is made"""
SHEET = 8
"""frames of a clip on its contact sheet"""


@dataclass(frozen=True)
class Given:
    """A frame that a clip was made from: at `frame` of the clip, a picture file or frame `start` of a video file.

    frame: a number, one from the end, or a time such as "1.5s". noise: its noise multiplier; a frame with noise was
    never meant to be kept exactly.
    """

    frame: int | str
    path: str
    start: int | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Task:
    """A clip to score. truth: a clip that it should be. given: frames that it was made from; joins: first frames after
    a join, as `Given.frame`. fit: how given pictures are brought to the clip's size. lacking: why it cannot be scored.
    """

    path: Path
    truth: Path | None = None
    given: tuple[Given, ...] = ()
    joins: tuple[int | str, ...] = ()
    fit: str = "crop"
    notes: tuple[str, ...] = field(default=())
    lacking: str | None = None

    def key(self) -> str:
        """Of the content of the clip and of everything that it is compared with, wherever the files lie."""
        known = asdict(self) | {"path": sha256(self.path), "truth": self.truth and sha256(self.truth)}
        known["given"] = [asdict(one) | {"path": sha256(Path(one.path))} for one in self.given]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The clips that are meant, and the other files of the folders among `paths`, which are left alone.

    Raises InputError for what is not there and for folders without clips.
    """
    clips: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
            found = [one for one in inside if one.suffix.lower() in SUFFIXES]
            if not found:
                raise InputError(f"{path} holds no clip; give a folder of {', '.join(sorted(SUFFIXES))} files.")
            clips += found
            stems = {one.stem for one in found}
            others += [one for one in inside if one not in found and one.name.split(".")[0] not in stems]
        elif path.is_file():
            clips.append(path)
        else:
            raise InputError(f"There is no file or folder {path}; check the name.")
    return list(dict.fromkeys(clips)), others


def tasks(
    clips: Sequence[Path],
    *,
    truth: Path | None = None,
    images: Mapping[str, Path] | None = None,
    joins: Sequence[str] = (),
) -> list[Task]:
    """What is known of each clip: from its recipe, and from what is given here, which goes for every clip.

    truth: a clip, or a folder with a clip of the same name for each; one that is not there makes its clip fail.
    images: given pictures by their frames. Raises InputError where `truth` is neither.
    """
    if truth is not None and not truth.exists():
        raise InputError(f"There is no file or folder {truth} to compare with; check the name.")
    found = []
    for path in clips:
        task = Task(path, given=tuple(Given(frame, str(file)) for frame, file in (images or {}).items()),
                    joins=tuple(joins))  # fmt: skip
        if truth is not None:
            same = _same_name(truth, path.stem) if truth.is_dir() else truth
            why = f"{truth} has no clip named {path.stem} to compare {path} with; add it, or leave it out."
            task = replace(task, truth=same, lacking=None if same else why)
        found.append(task if task.given or task.joins else _with_recipe(task))
    return found


def _same_name(folder: Path, stem: str) -> Path | None:
    same = (one for one in sorted(folder.iterdir()) if one.stem == stem and one.suffix.lower() in SUFFIXES)
    return next(same, None)


def _with_recipe(task: Task) -> Task:
    """What the recipe beside a clip says; sources that are gone or have changed are named in its notes."""
    sidecar = task.path.with_suffix(".json")
    if not sidecar.is_file():
        return task
    try:
        recipe = json.loads(sidecar.read_text(encoding="utf-8"))
        if "task" not in recipe:  # of another program
            return task
        return _known(task, recipe)
    except PusaError:  # of the clip itself, which will say so when it is scored
        return task
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return replace(task, notes=(f"{sidecar.name} is damaged, so what the clip was made from is not known",))


def _known(task: Task, recipe: Mapping[str, Any]) -> Task:
    """`task` with what its recipe says."""
    kind, result, film = recipe["task"], recipe["result"], look(task.path)
    if (result["frames"], result["size"]) != (len(film.times), [film.width, film.height]):
        return replace(task, notes=(f"{task.path.stem}.json is of another clip, so it is not believed",))
    given: list[Given] = []
    notes: list[str] = []
    joins: list[int] = []

    def is_there(record: Mapping[str, Any]) -> bool:
        path = record.get("path")
        if path and Path(path).is_file() and sha256(Path(path)) == record["sha256"]:
            return True
        notes.append(f"{path or 'a source without a file'} is gone or has changed, so it is not compared with")
        return False

    if kind == "generate":
        for record in filter(is_there, recipe.get("conditions", [])):
            if record["type"] == "image":
                given.append(Given(record["frame"], record["path"], None, record["noise"]))
            else:
                noise = max(record["noise"], default=0.0)
                span = range(record["frames"])
                given += [Given(record["at"] + i, record["path"], record["start"] + i, noise) for i in span]
    else:
        total = result["frames"]
        for name in ("clip", "a", "b"):
            if name in recipe and is_there(recipe[name]):
                count = len(read_video(recipe[name]["path"], recipe.get("fps"))[0])
                backwards = name == "b" or recipe.get("direction") == "backward"
                joins.append(total - count if backwards else count)
    return replace(
        task, given=tuple(given), joins=tuple(joins), fit=recipe.get("fit", "crop"), notes=(*task.notes, *notes)
    )


def score(task: Task, sheet: Path | None = None) -> dict[str, Any]:
    """Everything that can be said of a clip, as JSON; what cannot is in "notes". sheet: where its frames are shown.

    A given frame or a join that the clip does not have is a note. Raises InputError for a file that cannot be read, and
    a truth that is missing or of another length or size.
    """
    if task.lacking:
        raise InputError(task.lacking)
    frames, fps = read_video(task.path)
    count, height, width, _ = frames.shape
    record: dict[str, Any] = {"clip": str(task.path), "frames": count, "size": [width, height], "fps": round(fps, 3)}
    notes = list(task.notes)
    motion = Motion(frames)
    if count >= measures.SHORTEST:
        record["measures"] = measures.measure(frames, fps, motion)
        record["camera"] = measures.camera(motion)
        record["curves"] = measures.curves(motion)
    else:
        notes.append(
            f"{count} frame{'' if count == 1 else 's'}: nothing of motion is measured below {measures.SHORTEST}"
        )
    if task.truth is not None:
        record["truth"] = {"path": str(task.truth), **_against(frames, task)}
    if min(height, width) < SMALLEST:
        notes.append(f"{width}x{height}: flow says little of pictures below {SMALLEST} pixels")

    def tried(one: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return [one()]
        except InputError as error:
            notes.append(str(error).rstrip("."))
            return []

    def joined(join: int | str) -> dict[str, Any]:
        frame = frame_index(join, count, fps, f"the join {join}")
        return {"join": frame, **seams.seam(frames, motion, frame)}

    kept = [found for given in task.given for found in tried(partial(_kept, frames, given, fps, task.fit))]
    seen = [found for join in task.joins for found in tried(partial(joined, join))]
    record |= ({"given": kept} if kept else {}) | ({"seams": seen} if seen else {})
    if sheet is not None:
        shown = np.unique(np.linspace(0, count - 1, min(SHEET, count)).round().astype(int))
        write_image(sheet, contact_sheet(motion.frames[shown], len(shown), [str(i) for i in shown]))
    return record | {"notes": notes}


def _against(frames: Frames, task: Task) -> dict[str, float]:
    assert task.truth is not None
    truth, _ = read_video(task.truth)
    if truth.shape != frames.shape:
        one, other = (f"{len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}" for clip in (frames, truth))
        raise InputError(f"{task.path} has {one} and {task.truth} has {other}; compare clips of one length and size.")
    return fidelity.compare_clips(frames, truth)


def _kept(frames: Frames, given: Given, fps: float, how: str) -> dict[str, Any]:
    frame = frame_index(given.frame, len(frames), fps, Path(given.path).name)
    source: Image = read_image(given.path) if given.start is None else read_video(given.path, fps)[0][given.start]
    picture = fit(source, (frames.shape[2], frames.shape[1]), how)  # type: ignore[arg-type]
    return {"frame": frame, "source": given.path, "noise": given.noise, **fidelity.compare(frames[frame], picture)}


# ------------------------------------------------------------------------------------------------------------- a folder


class Evaluation:
    """A folder of scores."""

    def __init__(self, folder: Path, wanted: Sequence[Task]) -> None:
        self.folder, self.tasks = folder, list(wanted)
        self.keys = [task.key() for task in self.tasks]

    def begin(self) -> None:
        """InputError when the folder holds scores of other measures."""
        file = self.folder / SETTINGS
        if file.exists():
            try:
                version = json.loads(file.read_text(encoding="utf-8"))["version"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} is damaged; take another --out.") from error
            if version != VERSION:
                raise InputError(
                    f"{self.folder} holds scores of version {version} of the measures; take another --out."
                )
        make_folder(self.folder, "the scores")
        write_json(file, {"version": VERSION})

    def file(self, key: str) -> Path:
        """Where a clip's scores are kept."""
        return self.folder / "clips" / f"{key}.json"

    def units(self) -> list[Unit]:
        """Every clip, as work that processes share."""
        return [
            Unit(key, self.file(key), partial(self._make, task, key))
            for task, key in zip(self.tasks, self.keys, strict=True)
        ]

    def _make(self, task: Task, key: str) -> None:
        file = self.file(key)
        try:
            record = score(task, file.with_suffix(".png"))
        except PusaError as error:
            record = {"clip": str(task.path), "error": str(error)}
        write_json(file, record)

    def records(self) -> list[dict[str, Any]]:
        """What was found, clip by clip. A clip that failed is tried anew next time."""
        found = []
        for task, key in zip(self.tasks, self.keys, strict=True):
            record = json.loads(self.file(key).read_text(encoding="utf-8")) | {"clip": str(task.path)}
            if "error" in record:
                self.file(key).unlink()
            found.append(record)
        return found


def make(folder: Path, wanted: Iterable[Task], worker: Worker) -> None:
    """Score what is missing, beside other processes that do the same in the folder."""
    make_missing(Evaluation(folder, list(wanted)).units(), folder, progress=worker.progress)
