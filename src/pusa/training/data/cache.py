"""The cache of encoded clips and captions. `pusa prepare` fills it, and the trainer reads it.

The key of an entry is a hash of everything that it was made from. For latents these are the hash of the file, the cut,
the bucket, the frame rate and the weights of the autoencoder. For a context these are the cleaned caption, the
tokenizer and the weights of the text encoder. Both include a format version. If any of them changes, the key changes,
so a stale entry is never used.

Latents are stored in float32, like the output of the autoencoder. So training from the cache equals training from the
clips, bit for bit; a clip of 832x480x81 takes 8.4 MB. A context is stored in the dtype of the text encoder and without
the zeros after its last token. The reader adds these zeros.
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
from pusa.training.data.official_cache import read_tensors
from pusa.training.data.samples import Bucket, Cut, Plan, VideoFile
from pusa.training.data.tensor_store import Store, key
from pusa.work.units import Outcome, Progress, Unit, make_units, no_progress

FORMAT = 1
"""Increase this number if the code gives other latents or contexts for the same clip and the same weights."""

VERIFYING, ENCODING = "Verifying the cache", "Encoding"


@dataclass(frozen=True, eq=False)
class Sample:
    """One encoded sample.

    key: a hash of the keys of the latents and of the context. origin: the file and its part, for messages.
    latents: float32 [C, F, h, w], normalised. context: [L, D] in the dtype of the text encoder; after the last token of
    the caption it is zero.
    """

    key: str
    origin: str
    latents: Tensor
    context: Tensor
    caption: str
    bucket: Bucket


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`. Each distinct sample is counted once, in one of the first four fields.

    made: encoded by this process. kept: in the cache before. shared: encoded by another process meanwhile.
    failed: a Problem for each sample that is not in the cache. captions: contexts that this process encoded.
    bytes: the size of the plan's entries on disk. seconds: the time of the call.
    """

    made: int
    kept: int
    shared: int
    failed: tuple[Problem, ...]
    captions: int
    bytes: int
    seconds: float


class Cache:
    """The entries of one model and one frame rate in a folder. Several models can share the folder."""

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self.store = Store(folder)
        self.fingerprint = fingerprint

    @staticmethod
    def key(cut: Cut, fingerprint: Fingerprint) -> str:
        """Return the key of the latents of a cut. It is the same on every machine."""
        if cut.file.is_encoded:
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
        """Return the key of the latents of a cut."""
        return self.key(cut, self.fingerprint)

    def contexts(self, cut: Cut) -> list[str]:
        """Return the keys of the contexts of a cut: one, or one for each variant of its caption."""
        if cut.file.is_encoded:
            return [key("context", {"format": FORMAT, "ready": cut.file.sha256})]
        return [self.text(caption) for caption in cut.file.captions or ("",)]

    def text(self, caption: str) -> str:
        """Return the key of the context of a caption."""
        content = {"format": FORMAT, "caption": self.fingerprint.clean(caption), "text": self.fingerprint.text}
        return key("context", content)

    def missing(self, plan: Plan, *, verify: bool = False) -> list[Cut]:
        """Return the cuts whose latents or context are missing. verify: also those that are damaged."""
        found: dict[str, bool] = {}

        def exists(entry: str) -> bool:
            if entry not in found:
                found[entry] = self.store.contains(entry, verify=verify)
            return found[entry]

        return [cut for cut in plan.cuts if not all(map(exists, (self.latents(cut), *self.contexts(cut))))]

    def load(self, cut: Cut, variant: int = 0) -> Sample:
        """Read one sample with a variant of its caption.

        Raises InputError, which names the clip, if an entry is missing or damaged.
        """
        entries = self.latents(cut), self.contexts(cut)[variant]
        try:
            z, context = (self.store.read(entry) for entry in entries)
        except InputError as error:
            raise InputError(f"{cut.file.path}: {error}; run `pusa prepare` again to make it.") from error
        digest = hashlib.sha256(" ".join(entries).encode()).hexdigest()
        context = _padded(context, self.fingerprint.tokens)
        caption = cut.file.captions[variant] if cut.file.captions else ""
        return Sample(digest, str(cut), z.float(), context, caption, cut.bucket)

    def load_text(self, caption: str) -> Tensor:
        """Read the context of a caption, [L, D]. Raises InputError if it is missing or damaged."""
        try:
            return _padded(self.store.read(self.text(caption)), self.fingerprint.tokens)
        except InputError as error:
            raise InputError(f"The caption {caption!r}: {error}; run `pusa prepare` again to make it.") from error


class CachedSamples(Sequence[Sample]):
    """The samples of a plan. Each is read from the cache when it is accessed. Threads can share the object.

    Raises InputError, which names the first clip, if an entry is missing. Reading a damaged entry raises it, too.
    """

    def __init__(self, plan: Plan, fingerprint: Fingerprint, folder: Path) -> None:
        self.plan = plan
        self.cache = Cache(folder, fingerprint)
        if missing := self.cache.missing(plan):
            files = list(dict.fromkeys(cut.file.path for cut in missing))
            names = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
            raise InputError(
                f"The cache {folder} has no complete entry for {names}: run `pusa prepare` with the same settings, and "
                "remove the clips that it cannot encode from the data."
            )

    def __len__(self) -> int:
        return len(self.plan.cuts)

    def __getitem__(self, index: Any) -> Any:
        """Return sample `index`, or a list of samples for a slice."""
        if isinstance(index, slice):
            return [self.cache.load(cut) for cut in self.plan.cuts[index]]
        return self.cache.load(self.plan.cuts[index])

    def captioned(self, index: int, draw: float) -> Sample:
        """Return a sample with one of the variants of its caption. draw: a number in [0, 1) that selects it."""
        cut = self.plan.cuts[index]
        return self.cache.load(cut, int(draw * max(1, len(cut.file.captions))))

    @property
    def buckets(self) -> list[Bucket]:
        """The bucket of each sample; no sample is read."""
        return [cut.bucket for cut in self.plan.cuts]

    @cached_property
    def keys(self) -> list[str]:
        """The key of the latents of each sample; no sample is read."""
        return [self.cache.latents(cut) for cut in self.plan.cuts]

    @cached_property
    def empty_context(self) -> Tensor:
        """The context of the empty caption, [L, D]."""
        return self.cache.load_text("")

    @property
    def fingerprint(self) -> str:
        """A hash of the keys of all samples, in their order."""
        digest = hashlib.sha256()
        for cut, entry in zip(self.plan.cuts, self.keys, strict=True):
            digest.update(f"{entry} {' '.join(self.cache.contexts(cut))}\n".encode())
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
    """Encode the missing entries of a plan; return when every entry exists or has failed.

    Several processes can fill the cache together: `rank` of `world`, or processes that you start by hand. A process
    begins with its own share and continues with entries of other shares that are not made yet. So no process waits for
    a slow or dead one. Samples are encoded one at a time. If a clip cannot be read or has changed since it was planned,
    it becomes a Problem and the others are encoded. Raises InputError if the cache cannot be written, for example
    because the disk is full.
    """
    return _Preparation(plan, encoders, folder, progress, rank, world).run()


@dataclass(frozen=True)
class _Entry:
    """An entry to make: the latents or the context of a cut; or, without a cut, the context of a caption.

    origin: the first clip that has this caption.
    """

    key: str
    cut: Cut | None = None
    caption: str = ""
    origin: str = ""

    @property
    def of_clip(self) -> bool:
        """Whether the entry is the latents of a clip."""
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
            done = partial(self.store.contains, entry.key, verify=True)
            return Unit(entry.key, self.store.path(entry.key), partial(self._make, entry), is_done=done)

        claims = self.store.claims_file
        return make_units(
            list(map(unit, todo)), claims, "the cache", self.progress, label=ENCODING, collect=(_UnusableError,)
        )

    def _entries(self) -> list[_Entry]:
        """Return every entry of the plan once, in an order that is the same in all processes."""
        entries = {key: _Entry(key) for key in [self.cache.text("")]}
        for cut in self.plan.cuts:
            for name, caption in zip(self.cache.contexts(cut), cut.file.captions or ("",), strict=False):
                entry = _Entry(name, cut if cut.file.is_encoded else None, caption, str(cut.file.path))
                entries.setdefault(name, entry)
        for cut in self.plan.cuts:
            key = self.cache.latents(cut)
            entries.setdefault(key, _Entry(key, cut))
        return list(entries.values())

    def _kept(self, keys: Collection[str]) -> set[str]:
        """Return the keys of existing entries. Each process checks the checksums of its own share."""
        kept = set()
        for place, entry in enumerate(keys):
            if self.store.contains(entry, verify=place % self.world == self.rank):
                kept.add(entry)
            self.progress(VERIFYING, place + 1, len(keys))
        return kept

    def _make(self, entry: _Entry) -> None:
        tensor, about = self._encode(entry)
        self.store.write(entry.key, tensor, {"format": FORMAT, **about})

    def _encode(self, entry: _Entry) -> tuple[Tensor, dict[str, Any]]:
        """Return the tensor of an entry, and the values for its header."""
        if entry.cut is None:
            with warnings.catch_warnings(record=True) as caught:
                encoded = self.encoders.encode_text([entry.caption]).tokens[0]
            for warning in caught:
                warnings.warn(f"{entry.origin}: {warning.message}", stacklevel=2)
            return _stripped(encoded), {"caption": entry.caption, "text": self.cache.fingerprint.text}
        file = entry.cut.file
        header = {"file": file.sha256, "bucket": str(entry.cut.bucket)}
        try:
            if file.is_encoded:
                z, context = read_tensors(file.path)
                self._check_shapes(entry.cut, z, context)
                header["made"] = "by the official trainer"
                tensor = z if entry.key.startswith("latents/") else _stripped(context)
            else:
                frames = samples.read(entry.cut, self.plan.fps)
                header |= {
                    "start": f"{entry.cut.start!r}",
                    "fps": f"{self.plan.fps:g}",
                    "vae": self.cache.fingerprint.vae,
                }
                tensor = self.encoders.encode(frames)[0]
        except (InputError, OSError) as error:
            if not file.path.exists():
                raise _UnusableError(Problem(file.path, "missing", "does not exist any more")) from error
            if not self._is_unchanged(file):
                raise _changed(file) from error
            reason = str(error).removeprefix(f"{file.path} ").rstrip(".")
            raise _UnusableError(Problem(file.path, "unreadable", reason)) from error
        if not self._is_unchanged(file):
            raise _changed(file)
        if not tensor.isfinite().all():
            raise _UnusableError(Problem(file.path, "unreadable", "has latents that are not finite"))
        return tensor, header

    def _check_shapes(self, cut: Cut, z: Tensor, context: Tensor) -> None:
        size, width = (cut.bucket.width, cut.bucket.height), self.encoders.text_width
        geometry, channels = self.encoders.geometry, self.encoders.channels
        expected = list(geometry.latent_shape(channels, cut.bucket.frames, size)[1:])
        if list(z.shape) != expected or context.shape[1] != width:
            raise InputError(
                f"has latents of shape {list(z.shape)} and a context of width {context.shape[1]}, but "
                f"{self.encoders.source} needs {expected} and {width}; it was made for another model"
            )

    def _is_unchanged(self, file: VideoFile) -> bool:
        """Return whether the file is the one that was planned. It is hashed only if its times or size have changed."""
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
    """A clip that cannot be encoded. The other clips are not affected."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


def _changed(file: VideoFile) -> _UnusableError:
    reason = "changed after the check; run `pusa prepare` again when the file is complete"
    return _UnusableError(Problem(file.path, "changed", reason))


def _stat(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _stripped(context: Tensor) -> Tensor:
    """Remove the rows of zeros at the end of a context [L, D]."""
    used = context.ne(0).any(dim=1).nonzero()
    return context[: int(used[-1]) + 1] if len(used) else context[:0]


def _padded(context: Tensor, tokens: int) -> Tensor:
    """Add rows of zeros, so that a context is [tokens, D]."""
    missing = tokens - len(context)
    return torch.cat([context, context.new_zeros(missing, context.shape[1])])
