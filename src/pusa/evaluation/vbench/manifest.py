"""The videos that VBench-I2V needs: 1,118 pairs of prompt and picture, five samples each, with the official names.

The list comes from the official `vbench2_i2v_full_info.json`, which is part of the official code. A manifest is a file
of JSON lines: a head, and a line for each video. A seed is a function of (seed of the run, prompt, index), so a video
is the same in every suite, however the work is divided.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pusa.errors import InputError
from pusa.files import existing_file, lines_of, write_text_atomic

Suite = Literal["full", "core", "subset750", "smoke"]
SAMPLES = 5
"""videos of each prompt"""
FORMAT = "pusa-vbench-i2v-1"
CROPS = {"1-1": 1.0, "3-2": 1.5, "8-5": 1.6, "7-4": 1.75, "16-9": 16 / 9}
"""the official crops, by their ratio of width to height"""
_KEYS = {"prompt_en": str, "dimension": list, "image_name": str}


@dataclass(frozen=True)
class Video:
    """A video to make. image: the file name of the picture. index: the sample. dimensions: those that measure it."""

    prompt: str
    image: str
    index: int
    seed: int
    dimensions: tuple[str, ...]

    @property
    def file(self) -> str:
        """The official name, `{prompt}-{index}.mp4`."""
        return f"{self.prompt}-{self.index}.mp4"


@dataclass(frozen=True)
class Manifest:
    """A suite.

    size: (width, height). fps: the frame rate that the files state. crop: the official crop for this size.
    """

    suite: Suite
    size: tuple[int, int]
    frames: int
    fps: float
    crop: str
    seed: int
    info_sha256: str
    videos: tuple[Video, ...]

    @property
    def identity(self) -> str:
        """A hash of the whole manifest."""
        return hashlib.sha256(json.dumps(_lines(self), ensure_ascii=False).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write the manifest as JSON lines."""
        write_text_atomic(path, "\n".join(_lines(self)) + "\n")


def _lines(manifest: Manifest) -> list[str]:
    head = {"format": FORMAT, **{key: value for key, value in asdict(manifest).items() if key != "videos"}}
    rows = ({"file": video.file, **asdict(video)} for video in manifest.videos)
    return [json.dumps(row, ensure_ascii=False) for row in (head, *rows)]


def build(
    info: Path,
    suite: Suite = "full",
    size: tuple[int, int] = (832, 480),
    frames: int = 81,
    fps: float = 16,
    seed: int = 0,
) -> Manifest:
    """The manifest of a suite, from the official JSON.

    full: all 5,590 videos; only this suite has a total. core: the 1,775 videos without camera motion. subset750: as
    many videos as in the ablations of the paper, 50 entries of each kind; the paper does not say which, so they are
    drawn with a fixed seed. smoke: one sample of two entries of each kind. Raises InputError if the file is not the
    official list.
    """
    entries = _entries(info)
    kinds = {kind: [e for e in entries if _kind(e) == kind] for kind in ("subject", "background", "camera")}
    chosen: Iterable[dict[str, Any]] = entries
    samples = range(SAMPLES)
    if suite == "core":
        chosen = [entry for entry in entries if _kind(entry) != "camera"]
    elif suite == "subset750":
        rng = np.random.default_rng(750)
        chosen = [e for each in kinds.values() for e in _drawn(each, 50, rng)]
    elif suite == "smoke":
        chosen, samples = [e for each in kinds.values() for e in each[:2]], range(1)
    videos = tuple(
        Video(e["prompt_en"], e["image_name"], index, seed_of(seed, e["prompt_en"], index), tuple(e["dimension"]))
        for e in chosen
        for index in samples
    )
    digest = hashlib.sha256(info.read_bytes()).hexdigest()
    return Manifest(suite, size, frames, fps, crop_for(size), seed, digest, videos)


def _drawn(entries: Sequence[dict[str, Any]], count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    if len(entries) < count:
        raise InputError(
            f"the list has {len(entries)} entries of a kind, but the suite needs {count}; give the official list"
        )
    return [entries[i] for i in sorted(rng.choice(len(entries), count, replace=False))]


def _kind(entry: dict[str, Any]) -> str:
    if "camera_motion" in entry["dimension"]:
        return "camera"
    return "subject" if "i2v_subject" in entry["dimension"] else "background"


def seed_of(seed: int, prompt: str, index: int) -> int:
    """The seed of a sample, in [0, 2^53), so that every JSON reader reads it exactly."""
    digest = hashlib.sha256(f"{seed}\n{prompt}\n{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def crop_for(size: tuple[int, int]) -> str:
    """The official crop whose ratio is nearest to that of (width, height).

    Raises InputError for portrait sizes and for sizes that are much wider than 16:9.
    """
    ratio = size[0] / size[1] if min(size) > 0 else 0.0
    if not 0.95 <= ratio <= 1.9:
        raise InputError(
            f"The size {size[0]}x{size[1]} does not fit any official crop; choose a ratio from 1:1 to 16:9."
        )
    return _nearest(ratio)


def shape_of(ratio: float) -> str | None:
    """The official crop that a picture of this ratio belongs to, or None. 7-4 and 16-9 differ by 1.6 %."""
    name = _nearest(ratio)
    return name if abs(ratio / CROPS[name] - 1) < 0.02 else None


def _nearest(ratio: float) -> str:
    return min(CROPS, key=lambda name: abs(np.log(CROPS[name] / ratio)))


def _entries(info: Path) -> list[dict[str, Any]]:
    existing_file(info)
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{info} is not JSON ({error}); give the official vbench2_i2v_full_info.json.") from error
    right = isinstance(entries, list) and entries and all(_is_entry(entry) for entry in entries)
    if not right or not any("i2v_subject" in entry["dimension"] for entry in entries):
        raise InputError(f"{info} is not the list of VBench-I2V; give the official vbench2_i2v_full_info.json.")
    prompts = [entry["prompt_en"] for entry in entries]
    if twice := sorted({prompt for prompt in prompts if prompts.count(prompt) > 1}):
        raise InputError(
            f"{info} has the prompt {twice[0]!r} twice, so two videos would have one name; give the official list."
        )
    return list(entries)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in _KEYS.items())


def read(path: Path) -> Manifest:
    """Read a manifest from its file. Raises InputError if the file is not a manifest or was changed."""
    existing_file(path)
    try:
        head, *rows = [json.loads(line) for line in lines_of(path.read_text(encoding="utf-8")) if line.strip()]
        if head.pop("format") != FORMAT:
            raise KeyError("format")
        files = [row.pop("file") for row in rows]
        videos = tuple(Video(**{**row, "dimensions": tuple(row["dimensions"])}) for row in rows)
        manifest = Manifest(**{**head, "size": tuple(head["size"])}, videos=videos)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a manifest of VBench-I2V; write one with `pusa vbench manifest`.") from error
    for place, (file, video) in enumerate(zip(files, videos, strict=True), 2):
        if file != video.file or video.seed != seed_of(manifest.seed, video.prompt, video.index):
            raise InputError(
                f"{path}, line {place}: the file or the seed does not match the prompt; write the manifest again."
            )
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise InputError(f"{path} has {twice[0]} twice; write the manifest again.")
    return manifest
