"""Clips as latents and captions as contexts, encoded once: what `pusa prepare` makes and the trainer reads.

An entry is found by what it was made from and how: the hash of the file, the cut, the bucket, the frame rate and the
autoencoder's weights for latents; the cleaned caption, the tokenizer and the text encoder's weights for contexts; and a
format version. Change any of them and the old entry is simply not found: a stale one cannot be used.

Latents are kept in float32, as the autoencoder gives them: training from the cache is training from the clips bit for
bit, and 8.4 MB for a clip of 832x480x81 are less than its reading costs. A context is kept in the text encoder's own
dtype and without the zeros past its end, which are put back when it is read.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.files import sha256
from pusa.models.backbone import Encoders
from pusa.training.data import samples
from pusa.training.data.dataset import Problem
from pusa.training.data.fingerprints import Fingerprint, fingerprint
from pusa.training.data.official_cache import read_ready
from pusa.training.data.samples import Bucket, Cut, Plan, VideoFile
from pusa.training.data.tensor_store import Store, key
from pusa.work.units import Outcome, Progress, Unit, make_units, no_progress

FORMAT = 1
"""Counts up when the same clip and the same weights would give other latents or contexts than before."""

VERIFYING, ENCODING = "Verifying the cache", "Encoding"


@dataclass(frozen=True, eq=False)
class Sample:
    """One clip as the trainer sees it.

    key: of what the latents and the context were made from. origin: for people, the file and what part of it.
    latents: float32 [C, F, h, w], normalised. context: [L, D] in the text encoder's dtype, zero past the caption's
    end.
    """

    key: str
    origin: str
    latents: Tensor
    context: Tensor
    caption: str
    bucket: Bucket


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did. Each distinct clip is counted once, in one of four ways.

    made: by this process. kept: were in the cache. shared: made meanwhile by another process. failed: one Problem per
    clip that is not in the cache. captions: contexts made by this process. bytes: what the plan's entries take on disk.
    """

    made: int
    kept: int
    shared: int
    failed: tuple[Problem, ...]
    captions: int
    bytes: int
    seconds: float


class Cache:
    """The entries for one model and frame rate in a folder; several models may share the folder."""

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self.store = Store(folder)
        self.fingerprint = fingerprint

    @staticmethod
    def key(cut: Cut, fingerprint: Fingerprint) -> str:
        """What the latents of a cut are called, the same on every machine."""
        if cut.file.ready:
            return key("latents", {"format": FORMAT, "ready": cut.file.sha256})
        content = {
            "format": FORMAT,
            "file": cut.file.sha256,
            "start": float(cut.start),
            "bucket": [cut.bucket.width, cut.bucket.height, cut.bucket.frames],
            "fps": float(fingerprint.fps),
            "vae": fingerprint.vae,
        }
        return key("latents", content)

    def latents(self, cut: Cut) -> str:
        """The key of a cut's latents."""
        return self.key(cut, self.fingerprint)

    def context(self, cut: Cut) -> str:
        """The key of a cut's context."""
        if cut.file.ready:
            return key("context", {"format": FORMAT, "ready": cut.file.sha256})
        return self.text(cut.file.caption)

    def text(self, caption: str) -> str:
        """The key of a caption's context."""
        content = {"format": FORMAT, "caption": self.fingerprint.clean(caption), "text": self.fingerprint.text}
        return key("context", content)

    def missing(self, plan: Plan, *, verify: bool = False) -> list[Cut]:
        """The cuts whose latents or context are not there, or with `verify` are damaged."""
        there: dict[str, bool] = {}

        def holds(entry: str) -> bool:
            if entry not in there:
                there[entry] = self.store.holds(entry, verify=verify)
            return there[entry]

        return [cut for cut in plan.cuts if not (holds(self.latents(cut)) and holds(self.context(cut)))]

    def load(self, cut: Cut) -> Sample:
        """One sample, verified. Raises InputError that names the clip when an entry is not there or damaged."""
        entries = self.latents(cut), self.context(cut)
        try:
            z, context = (self.store.read(entry) for entry in entries)
        except InputError as error:
            raise InputError(f"{cut.file.path}: {error}; run `pusa prepare` again to remake it.") from error
        digest = hashlib.sha256(" ".join(entries).encode()).hexdigest()
        context = _padded(context, self.fingerprint.tokens)
        return Sample(digest, str(cut), z.float(), context, cut.file.caption, cut.bucket)

    def load_text(self, caption: str) -> Tensor:
        """The context of a caption, [L, D]. Raises InputError when it is not there or damaged."""
        try:
            return _padded(self.store.read(self.text(caption)), self.fingerprint.tokens)
        except InputError as error:
            raise InputError(f"The caption {caption!r}: {error}; run `pusa prepare` again to remake it.") from error


class Cached(Sequence[Sample]):
    """The samples of a plan, read from the cache when they are asked for; threads may share it.

    Raises InputError when an entry is not there (naming the first clip that lacks one), and on reading a damaged one.
    """

    def __init__(self, plan: Plan, fingerprint: Fingerprint, folder: Path) -> None:
        self.plan = plan
        self.cache = Cache(folder, fingerprint)
        if lost := self.cache.missing(plan):
            files = list(dict.fromkeys(cut.file.path for cut in lost))
            which = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
            raise InputError(
                f"The cache {folder} has no whole entry of {which}: run `pusa prepare` with the same settings, or take "
                "out of the data what it says cannot be cached."
            )

    def __len__(self) -> int:
        return len(self.plan.cuts)

    def __getitem__(self, index: Any) -> Any:
        """Sample `index`; a slice is a list."""
        if isinstance(index, slice):
            return [self.cache.load(cut) for cut in self.plan.cuts[index]]
        return self.cache.load(self.plan.cuts[index])

    @property
    def buckets(self) -> list[Bucket]:
        """The bucket of each sample, without reading any."""
        return [cut.bucket for cut in self.plan.cuts]

    @cached_property
    def keys(self) -> list[str]:
        """The key of each sample's latents, without reading any."""
        return [self.cache.latents(cut) for cut in self.plan.cuts]

    @cached_property
    def empty_context(self) -> Tensor:
        """The context of the empty caption, [L, D]."""
        return self.cache.load_text("")

    @property
    def fingerprint(self) -> str:
        """A hash of what all samples were made from, in their order."""
        digest = hashlib.sha256()
        for cut, entry in zip(self.plan.cuts, self.keys, strict=True):
            digest.update(f"{entry} {self.cache.context(cut)}\n".encode())
        return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- filling the cache


def prepare(
    plan: Plan,
    encoders: Encoders,
    folder: Path,
    *,
    progress: Progress = no_progress,
    rank: int = 0,
    world: int = 1,
) -> Prepared:
    """Encode what a plan needs and the cache has not; returns when every entry is there or named as failed.

    Each process (rank `rank` of `world`, or simply one more started by hand) begins with its own share and then helps
    with the rest, so one that dies or is slow holds nobody up. A clip that cannot be read, or is not the one that was
    planned, becomes a Problem and the others go on. Clips are encoded one at a time. Raises InputError when the cache
    cannot be written, for instance on a full disk.
    """
    return _Preparation(plan, encoders, folder, progress, rank, world).run()


@dataclass(frozen=True)
class _Entry:
    """One entry to make: the latents or the context of a cut, or (without a cut) the context of a caption.

    origin: of a caption, the first clip that has it.
    """

    key: str
    cut: Cut | None = None
    caption: str = ""
    origin: str = ""

    @property
    def of_clip(self) -> bool:
        """Whether it is the latents of a clip."""
        return self.key.startswith("latents/")


class _Preparation:
    def __init__(self, plan: Plan, encoders: Encoders, folder: Path, progress: Progress, rank: int, world: int) -> None:
        self.plan, self.encoders, self.progress = plan, encoders, progress
        self.rank, self.world = rank, world
        self.cache = Cache(folder, fingerprint(encoders, plan.fps))
        self.store = self.cache.store
        self.seen: dict[Path, tuple[int, ...]] = {}

    def run(self) -> Prepared:
        started = time.perf_counter()
        entries = {entry.key: entry for entry in self._entries()}
        kept = self._kept(entries)
        share = [key for place, key in enumerate(entries) if place % self.world == self.rank]
        rest = [key for place, key in enumerate(entries) if place % self.world != self.rank]
        todo = [entries[key] for key in (*share, *rest) if key not in kept]
        outcome = self._fill(todo) if todo else Outcome[_UnusableError]()
        failed = {self.cache.latents(cut): error.problem for key, error in outcome.failed.items()
                  if (cut := entries[key].cut)}  # fmt: skip
        made = sum(entries[key].of_clip for key in outcome.made)
        return Prepared(
            made=made,
            kept=sum(entries[key].of_clip for key in kept - failed.keys()),
            shared=sum(entries[key].of_clip for key in outcome.found),
            failed=tuple(failed.values()),
            captions=len(outcome.made) - made,
            bytes=sum(map(self.store.size, entries)),
            seconds=time.perf_counter() - started,
        )

    def _fill(self, todo: Sequence[_Entry]) -> Outcome[_UnusableError]:
        def unit(entry: _Entry) -> Unit:
            done = partial(self.store.holds, entry.key, verify=True)
            return Unit(entry.key, self.store.path(entry.key), partial(self._make, entry), is_done=done)

        claims = self.store.claims_file
        return make_units(
            list(map(unit, todo)), claims, "the cache", self.progress, label=ENCODING, collect=(_UnusableError,)
        )

    def _entries(self) -> list[_Entry]:
        """Every entry that the plan needs, once, in an order that all processes agree on."""
        entries = {key: _Entry(key) for key in [self.cache.text("")]}
        for cut in self.plan.cuts:
            key = self.cache.context(cut)
            entries.setdefault(key, _Entry(key, cut if cut.file.ready else None, cut.file.caption, str(cut.file.path)))
        for cut in self.plan.cuts:
            key = self.cache.latents(cut)
            entries.setdefault(key, _Entry(key, cut))
        return list(entries.values())

    def _kept(self, keys: Collection[str]) -> set[str]:
        """The keys that are there; each process reads every byte of its own share."""
        kept = set()
        for place, entry in enumerate(keys):
            if self.store.holds(entry, verify=place % self.world == self.rank):
                kept.add(entry)
            self.progress(VERIFYING, place + 1, len(keys))
        return kept

    def _make(self, entry: _Entry) -> None:
        tensor, about = self._encode(entry)
        self.store.write(entry.key, tensor, {"format": FORMAT, **about})

    def _encode(self, entry: _Entry) -> tuple[Tensor, dict[str, Any]]:
        """The tensor of an entry and what its header says of it."""
        if entry.cut is None:
            with warnings.catch_warnings(record=True) as told:
                encoded = self.encoders.encode_text([entry.caption]).tokens[0]
            for warning in told:
                warnings.warn(f"{entry.origin}: {warning.message}", stacklevel=2)
            return _stripped(encoded), {"caption": entry.caption, "text": self.cache.fingerprint.text}
        file = entry.cut.file
        where = {"file": file.sha256, "bucket": str(entry.cut.bucket)}
        try:
            if file.ready:
                z, context = read_ready(file.path)
                self._check_ready(entry.cut, z, context)
                where["made"] = "by the official trainer"
                tensor = z if entry.key.startswith("latents/") else _stripped(context)
            else:
                frames = samples.read(entry.cut, self.plan.fps)
                where |= {
                    "start": f"{entry.cut.start!r}",
                    "fps": f"{self.plan.fps:g}",
                    "vae": self.cache.fingerprint.vae,
                }
                tensor = self.encoders.encode(frames)[0]
        except (InputError, OSError) as error:
            if not file.path.exists():
                raise _UnusableError(Problem(file.path, "missing", "is not there any more")) from error
            if not self._as_planned(file):
                raise _changed(file) from error
            reason = str(error).removeprefix(f"{file.path} ").rstrip(".")
            raise _UnusableError(Problem(file.path, "unreadable", reason)) from error
        if not self._as_planned(file):
            raise _changed(file)
        if not tensor.isfinite().all():
            raise _UnusableError(Problem(file.path, "unreadable", "gives latents that are not finite numbers"))
        return tensor, where

    def _check_ready(self, cut: Cut, z: Tensor, context: Tensor) -> None:
        size, width = (cut.bucket.width, cut.bucket.height), self.encoders.text_width
        geometry, channels = self.encoders.geometry, self.encoders.channels
        expected = list(geometry.latent_shape(channels, cut.bucket.frames, size)[1:])
        if list(z.shape) != expected or context.shape[1] != width:
            raise InputError(
                f"has latents of {list(z.shape)} and a context {context.shape[1]} wide, but {self.encoders.source} "
                f"takes {expected} and {width}; it was made for another model"
            )

    def _as_planned(self, file: VideoFile) -> bool:
        """Whether the file still is the one that was planned; hashed only when its times or size have moved."""
        try:
            before = _stat(file.path)
            if self.seen.get(file.path) == before:
                return True
            if sha256(file.path) != file.sha256 or _stat(file.path) != before:
                return False
        except OSError:
            return False
        self.seen[file.path] = before
        return True


class _UnusableError(Exception):
    """A clip that cannot be cached while the others can."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


def _changed(file: VideoFile) -> _UnusableError:
    reason = "changed while it was being cached; run `pusa prepare` again when it is finished"
    return _UnusableError(Problem(file.path, "changed", reason))


def _stat(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _stripped(context: Tensor) -> Tensor:
    """[L, D] without the rows of zeros at its end."""
    used = context.ne(0).any(dim=1).nonzero()
    return context[: int(used[-1]) + 1] if len(used) else context[:0]


def _padded(context: Tensor, tokens: int) -> Tensor:
    """[L, D] again."""
    missing = tokens - len(context)
    return torch.cat([context, context.new_zeros(missing, context.shape[1])])
