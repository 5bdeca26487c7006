"""Score clips from any program: measures of the clip, fidelity to the given frames and to the truth, and joins.

For a clip of this project, the given frames and the joins are read from its sidecar; for other clips, the caller states
them. Scores are stored by the content of the clip and of everything it is compared with. So a second run measures only
what is new, and scores of other versions of the measures are not mixed in.
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
from pusa.generation.given import frame_index
from pusa.media.images import Frames, Image, contact_sheet, fit, read_image, write_image
from pusa.media.video_probe import probe
from pusa.media.videos import read_video
from pusa.work.units import Unit
from pusa.work.workers import Worker

VERSION = 2
"""the version of the measures; scores of other versions are refused"""
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
SETTINGS = "evaluation.json"
SMALLEST = 32
"""the shorter side in pixels below which a note warns about the flow"""
SHEET = 8
"""the number of frames on a contact sheet"""


@dataclass(frozen=True)
class GivenFrame:
    """A frame that a clip was made from.

    frame: its place in the clip: a frame number, a negative number (from the end), or a time such as "1.5s". path,
    start: a picture file, or frame `start` of a video file. noise: its noise multiplier; if it is not 0, the frame need
    not be kept exactly.
    """

    frame: int | str
    path: str
    start: int | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class ScoringTask:
    """A clip to score, and what it is compared with.

    truth: the clip that it should equal. joins: the first frame after each join, as `GivenFrame.frame`. fit: how given
    pictures are resized, as for `images.fit`. unscorable: why the clip cannot be scored.
    """

    path: Path
    truth: Path | None = None
    given: tuple[GivenFrame, ...] = ()
    joins: tuple[int | str, ...] = ()
    fit: str = "crop"
    notes: tuple[str, ...] = field(default=())
    unscorable: str | None = None

    def key(self) -> str:
        """A hash of the clip's content and of everything it is compared with; the places of the files do not matter."""
        known = asdict(self) | {"path": sha256(self.path), "truth": self.truth and sha256(self.truth)}
        known["given"] = [asdict(one) | {"path": sha256(Path(one.path))} for one in self.given]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The clips among `paths` and in their folders, and the other files of these folders, which are ignored.

    Raises InputError if a path does not exist or a folder contains no clip.
    """
    clips: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
            found = [one for one in inside if one.suffix.lower() in SUFFIXES]
            if not found:
                raise InputError(f"{path} contains no clip; give a folder of {', '.join(sorted(SUFFIXES))} files.")
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
) -> list[ScoringTask]:
    """What each clip is compared with: what is given here applies to every clip; otherwise its sidecar is read.

    truth: a clip, or a folder with a clip of the same name for each; if that clip is missing, scoring fails. images:
    given pictures by frame. Raises InputError if `truth` does not exist.
    """
    if truth is not None and not truth.exists():
        raise InputError(f"There is no file or folder {truth} to compare with; check the name.")
    found = []
    for path in clips:
        task = ScoringTask(path, given=tuple(GivenFrame(frame, str(file)) for frame, file in (images or {}).items()),
                    joins=tuple(joins))  # fmt: skip
        if truth is not None:
            same = _same_name(truth, path.stem) if truth.is_dir() else truth
            why = f"{truth} has no clip named {path.stem} to compare {path} with; add that clip, or leave {path} out."
            task = replace(task, truth=same, unscorable=None if same else why)
        found.append(task if task.given or task.joins else _with_recipe(task))
    return found


def _same_name(folder: Path, stem: str) -> Path | None:
    same = (one for one in sorted(folder.iterdir()) if one.stem == stem and one.suffix.lower() in SUFFIXES)
    return next(same, None)


def _with_recipe(task: ScoringTask) -> ScoringTask:
    """The task with what the sidecar of the clip states."""
    sidecar = task.path.with_suffix(".json")
    if not sidecar.is_file():
        return task
    try:
        recipe = json.loads(sidecar.read_text(encoding="utf-8"))
        if "task" not in recipe:  # a sidecar of another program
            return task
        return _known(task, recipe)
    except PusaError:  # an error of the clip; `score` raises it again
        return task
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return replace(task, notes=(f"{sidecar.name} is damaged, so the given frames are unknown",))


def _known(task: ScoringTask, recipe: Mapping[str, Any]) -> ScoringTask:
    """The task with what its recipe states; sources that are missing or have changed become notes."""
    kind, result, video = recipe["task"], recipe["result"], probe(task.path)
    if (result["frames"], result["size"]) != (len(video.times), [video.width, video.height]):
        return replace(task, notes=(f"{task.path.stem}.json describes another clip, so it is ignored",))
    given: list[GivenFrame] = []
    notes: list[str] = []
    joins: list[int] = []

    def is_there(record: Mapping[str, Any]) -> bool:
        path = record.get("path")
        if path and Path(path).is_file() and sha256(Path(path)) == record["sha256"]:
            return True
        notes.append(f"{path or 'a source without a file'} is missing or has changed, so it is not compared")
        return False

    if kind == "generate":
        for record in filter(is_there, recipe.get("conditions", [])):
            if record["type"] == "image":
                given.append(GivenFrame(record["frame"], record["path"], None, record["noise"]))
            else:
                noise = max(record["noise"], default=0.0)
                span = range(record["frames"])
                given += [GivenFrame(record["at"] + i, record["path"], record["start"] + i, noise) for i in span]
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


def score(task: ScoringTask, sheet: Path | None = None) -> dict[str, Any]:
    """All scores of a clip, as JSON. sheet: where to write a contact sheet.

    A given frame or a join that is outside the clip becomes a note in "notes". Raises InputError if a file cannot be
    read, or if the truth is missing or has another length or size.
    """
    if task.unscorable:
        raise InputError(task.unscorable)
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
            f"{count} frame{'' if count == 1 else 's'}: no motion is measured below {measures.SHORTEST} frames"
        )
    if task.truth is not None:
        record["truth"] = {"path": str(task.truth), **_against(frames, task)}
    if min(height, width) < SMALLEST:
        notes.append(f"{width}x{height}: optical flow is unreliable for pictures below {SMALLEST} pixels")

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


def _against(frames: Frames, task: ScoringTask) -> dict[str, float]:
    assert task.truth is not None
    truth, _ = read_video(task.truth)
    if truth.shape != frames.shape:
        one, other = (f"{len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}" for clip in (frames, truth))
        raise InputError(f"{task.path} has {one} and {task.truth} has {other}; compare clips of equal length and size.")
    return fidelity.compare_clips(frames, truth)


def _kept(frames: Frames, given: GivenFrame, fps: float, how: str) -> dict[str, Any]:
    frame = frame_index(given.frame, len(frames), fps, Path(given.path).name)
    source: Image = read_image(given.path) if given.start is None else read_video(given.path, fps)[0][given.start]
    picture = fit(source, (frames.shape[2], frames.shape[1]), how)  # type: ignore[arg-type]
    return {"frame": frame, "source": given.path, "noise": given.noise, **fidelity.compare(frames[frame], picture)}


# ------------------------------------------------------------------------------------------------------------- a folder


class Evaluation:
    """A folder of scores. wanted: the clips."""

    def __init__(self, folder: Path, wanted: Sequence[ScoringTask]) -> None:
        self.folder, self.tasks = folder, list(wanted)
        self.keys = [task.key() for task in self.tasks]

    def begin(self) -> None:
        """Prepare the folder. Raises InputError if it contains scores of another version of the measures."""
        file = self.folder / SETTINGS
        if file.exists():
            try:
                version = json.loads(file.read_text(encoding="utf-8"))["version"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} is damaged; choose another --out.") from error
            if version != VERSION:
                raise InputError(
                    f"{self.folder} contains scores of version {version} of the measures; choose another --out."
                )
        make_folder(self.folder, "the scores")
        write_json(file, {"version": VERSION})

    def file(self, key: str) -> Path:
        """The file of a clip's scores."""
        return self.folder / "clips" / f"{key}.json"

    def units(self) -> list[Unit]:
        """A unit of work for each clip."""
        return [
            Unit(key, self.file(key), partial(self._make, task, key))
            for task, key in zip(self.tasks, self.keys, strict=True)
        ]

    def _make(self, task: ScoringTask, key: str) -> None:
        file = self.file(key)
        try:
            record = score(task, file.with_suffix(".png"))
        except PusaError as error:
            record = {"clip": str(task.path), "error": str(error)}
        write_json(file, record)

    def records(self) -> list[dict[str, Any]]:
        """The scores of each clip. The record of a clip that failed is removed, so that the next run tries it again."""
        found = []
        for task, key in zip(self.tasks, self.keys, strict=True):
            record = json.loads(self.file(key).read_text(encoding="utf-8")) | {"clip": str(task.path)}
            if "error" in record:
                self.file(key).unlink()
            found.append(record)
        return found


def make(folder: Path, wanted: Iterable[ScoringTask], worker: Worker) -> None:
    """Make the missing scores, together with the other processes that fill the folder."""
    make_missing(Evaluation(folder, list(wanted)).units(), folder, progress=worker.progress)
