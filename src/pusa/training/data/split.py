"""Which clips are held out for validation, and the clips that a run has seen.

Whether a clip is held out depends on the hash of its own content, and not on its name or on other clips. So if clips
are added, a held-out clip stays held out: it is never trained on, and validations before and after stay comparable.

A run writes its clips into `clips.json`. When it is resumed, they keep their part and their order, also if their files
were renamed or moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.files import write_json
from pusa.training.data.samples import Plan, VideoFile

SHARE = 0.1
"""The share of the clips that is held out by default."""
LEAST = 10
"""With fewer clips, none is held out by default."""
RECORD = "clips.json"
"""The file in the folder of a run that lists its clips."""
SHOWN = 5
"""How many changed clips a message names."""


def held_out(contents: Collection[str], setting: float | None) -> set[str]:
    """Return the contents (hashes of files) that are held out.

    setting: a share above 0 and below 1 (float), a number of clips (int), or None: a tenth, and none of fewer than 10.
    With a share, whether a clip is held out depends on this clip only. A number is exact, but another clip may take the
    place of a held-out one when clips are added.
    """
    if setting is None:
        setting = SHARE if len(contents) >= LEAST else 0
    if isinstance(setting, float):
        return {content for content in contents if int.from_bytes(_digest(content)[:8], "big") < setting * 2**64}
    return set(sorted(contents, key=_digest)[:setting])


def _digest(content: str) -> bytes:
    return hashlib.sha256(f"held out {content}".encode()).digest()


def hold_out(plan: Plan, setting: float | None, seen: Mapping[str, bool] | None = None) -> tuple[Plan, Plan]:
    """Divide the plan into the training part and the held-out files with all their cuts.

    setting: see `held_out`. If the plan has clips for validation only, exactly these are held out. seen: {content:
    whether it is held out} of a run that is resumed, which decides for these clips. Otherwise the held-out files are
    ordered by their content. In the training part, each sample
    occurs as often as its file is repeated. Raises InputError if no clip is left for training.
    """
    contents = {cut.file.sha256 for cut in plan.cuts}
    apart = held_out(contents, setting)
    if plan.validation:
        apart = contents & plan.validation
    elif seen:
        apart = {content for content in contents if seen.get(content, content in apart)}
    if len(apart) == len(contents):
        raise InputError(
            f"data.held_out is {setting}, and there are {len(contents)} clips: leave at least one clip for training."
        )
    learnt = [cut for cut in plan.cuts if cut.file.sha256 not in apart for _ in range(cut.file.repeats)]
    others = [cut for cut in plan.cuts if cut.file.sha256 in apart]
    if not seen and not plan.validation:  # validation uses the first ones, so an added clip should seldom be among them
        others.sort(key=lambda cut: _digest(cut.file.sha256))
    return replace(plan, cuts=tuple(learnt)), replace(plan, cuts=tuple(others))


@dataclass(frozen=True)
class SeenClip:
    """A clip of a run. path: of its file when the run was last started. content: the hash of the file."""

    path: str
    content: str
    captions: tuple[str, ...]
    held_out: bool
    repeats: int = 1


@dataclass(frozen=True)
class SeenClips:
    """The clips of a run, in their order. settings: those that decide which samples are cut from clips."""

    settings: Mapping[str, Any]
    clips: tuple[SeenClip, ...]

    @property
    def parts(self) -> dict[str, bool]:
        """Whether each content is held out."""
        return {clip.content: clip.held_out for clip in self.clips}

    def in_order(self, plan: Plan) -> Plan:
        """Return the plan with these clips in this order, and with other clips after them."""
        places = {clip.content: place for place, clip in enumerate(self.clips)}
        cuts = sorted(plan.cuts, key=lambda cut: places.get(cut.file.sha256, len(places)))
        return replace(plan, cuts=tuple(cuts))

    def changes(self, training: Plan) -> list[str]:
        """Return what has changed in the clips that are trained on, a phrase for each clip."""
        before = {clip.content: clip for clip in self.clips if not clip.held_out}
        now = _files(training)
        found = [f"{clip.path} is gone" for content, clip in before.items() if content not in now]
        for content, file in now.items():
            old = before.get(content)
            if old is None:
                found.append(f"{file.path} is new")
            elif old.captions != file.captions:
                found.append(f"the caption of {file.path} was {_short(old.captions)} and is {_short(file.captions)}")
            elif old.repeats != file.repeats:
                found.append(f"{file.path} had {old.repeats} repeats and has {file.repeats}")
        return found

    def with_parts(self, training: Plan, apart: Plan) -> SeenClips:
        """Return these clips, as their files are now, and the other clips of both parts after them."""
        now = {
            content: SeenClip(str(file.path), content, file.captions, held, file.repeats)
            for part, held in ((training, False), (apart, True))
            for content, file in _files(part).items()
        }
        kept = [now.pop(clip.content, clip) for clip in self.clips]
        return SeenClips(self.settings, (*kept, *now.values()))

    def write(self, run: Path) -> None:
        """Write the clips into the folder of a run."""
        clips = [{**vars(clip), "captions": list(clip.captions)} for clip in self.clips]
        write_json(run / RECORD, {"settings": dict(self.settings), "clips": clips})


def read(run: Path) -> SeenClips | None:
    """Return the clips of the run in a folder, or None if it did not write them. InputError if the file is damaged."""
    path = run / RECORD
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        clips = [SeenClip(**{**clip, "captions": tuple(clip["captions"])}) for clip in data["clips"]]
        return SeenClips(dict(data["settings"]), tuple(clips))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it to go on without it.") from error


def before_clips_were_written(plan: Plan, setting: float | None) -> dict[str, bool]:
    """Return the parts of a run that wrote no `clips.json`. By default it held out a tenth of its clips, at most 16."""
    contents = {cut.file.sha256 for cut in plan.cuts}
    apart = held_out(contents, min(16, len(contents) // 10) if setting is None else setting)
    return {content: content in apart for content in contents}


def listed(changes: Sequence[str]) -> str:
    """Return the first changes and the number of the others."""
    more = len(changes) - SHOWN
    return "; ".join(changes[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _files(plan: Plan) -> dict[str, VideoFile]:
    return {cut.file.sha256: cut.file for cut in plan.cuts}


def _short(captions: Sequence[str]) -> str:
    text = " | ".join(captions)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
