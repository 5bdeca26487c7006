"""Probe the files of a dataset and plan their training samples.

A sample is a `Cut`: `bucket.frames` frames at the model's frame rate, from a certain second on, scaled and cropped to
the size of the bucket. The bucket of a clip is chosen in three steps: first the aspect ratios that crop it least,
within `SAME_SHAPE`; then the greatest length that the clip fills; then the largest picture that it fills. A clip is
never lengthened, and never enlarged by more than `ENLARGE`. A clip that fits no bucket becomes a `Problem`, which gives
a bucket that would fit. Still pictures use buckets of one frame; clips use the others.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from pusa.errors import InputError
from pusa.files import refuse_pointer, sha256
from pusa.media import video_probe
from pusa.media.images import Frames
from pusa.media.video_probe import Truncated
from pusa.models.backbone import Geometry
from pusa.training.data.dataset import Entry, Problem, find, is_official_cache
from pusa.training.data.official_cache import clip_shape

Mode = Literal["head", "uniform", "slide"]
In = TypeVar("In")
Out = TypeVar("Out")

ENLARGE = 1.1
"""The greatest factor by which a picture is enlarged to cover a bucket."""
SAME_SHAPE = 0.1
"""Two buckets are equally good for a clip if the shares of its picture that they keep differ by at most this much."""


@dataclass(frozen=True)
class Source:
    """A folder, a table or a dataset of the hub. prefix: the text before each caption. repeats: see `VideoFile`."""

    path: str | Path
    repeats: int = 1
    prefix: str = ""


@dataclass(frozen=True)
class VideoFile:
    """A readable file.

    captions: one, several variants, or none. frames: 1 for a still picture. fps: frames per second, the average if the
    rate varies; 0 for a still picture. width, height: in pixels, as displayed. sha256: of the file. is_encoded: whether
    the file contains latents and a context instead of pictures; frames, width and height are those of the encoded clip.
    repeats: how often each of its samples is trained on in an epoch.
    """

    path: Path
    captions: tuple[str, ...]
    frames: int
    fps: float
    width: int
    height: int
    sha256: str
    is_encoded: bool = False
    repeats: int = 1

    @property
    def caption(self) -> str:
        """The first caption; "" if there is none."""
        return self.captions[0] if self.captions else ""

    @property
    def seconds(self) -> float:
        """The length in seconds; 0 for a still picture."""
        return self.frames / self.fps if self.fps else 0.0

    def frames_at(self, fps: float) -> int:
        """Return the number of frames after resampling to `fps`, up to the time of the last frame."""
        return int((self.frames - 1) / self.fps * fps + 1e-6) + 1 if self.fps else 1


@dataclass(frozen=True, order=True)
class Bucket:
    """The size of samples: width and height in pixels, and pixel frames; 1 frame is for still pictures."""

    width: int
    height: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Parse `WIDTHxHEIGHTxFRAMES`. Raises InputError for another text."""
        match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[x×X*]\s*([1-9]\d{0,4})\s*[x×X*]\s*([1-9]\d{0,4})\s*", text)
        if not match:
            raise InputError(f"{text!r} is not a bucket; give WIDTHxHEIGHTxFRAMES such as 832x480x81")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def check(self, geometry: Geometry) -> None:
        """Raise InputError if a model with this geometry cannot make clips of this size."""
        if not geometry.is_whole(self.frames):
            below, above = geometry.nearest(self.frames)
            raise InputError(
                f"the bucket {self} has {self.frames} frames, not {geometry.form()}; use {below} or {above}"
            )
        multiple = geometry.multiple
        if self.width % multiple or self.height % multiple:
            nearest = [max(1, round(side / multiple)) * multiple for side in (self.width, self.height)]
            raise InputError(
                f"the bucket {self} does not fit this model, which needs a width and a height that are multiples of "
                f"{multiple}; use {nearest[0]}x{nearest[1]}x{self.frames}"
            )


@dataclass(frozen=True)
class Cut:
    """One training sample: `bucket.frames` frames at the model's rate, from `start` seconds after the first frame."""

    file: VideoFile
    bucket: Bucket
    start: float

    def __str__(self) -> str:
        return f"{self.file.path}, from {self.start:.3g} s on" if self.start else str(self.file.path)


@dataclass(frozen=True)
class Plan:
    """The samples of a training, and the files that are not used.

    fps: frames per second of the samples. files: all readable files, including those without a sample. choices: the
    buckets from which that of each clip was chosen. validation: the contents of clips for validation only. source,
    layout: see `dataset.Listing`. found: how many clips the source has. The last three are empty if `plan` made the
    object.
    """

    cuts: tuple[Cut, ...]
    problems: tuple[Problem, ...]
    fps: float
    files: tuple[VideoFile, ...] = ()
    choices: tuple[Bucket, ...] = ()
    validation: frozenset[str] = frozenset()
    source: str = ""
    layout: str = ""
    found: int = 0

    @property
    def buckets(self) -> dict[Bucket, int]:
        """The number of samples in each bucket that is not empty."""
        return dict(Counter(cut.bucket for cut in self.cuts))


def probe(entry: Entry) -> VideoFile | Problem:
    """Return the properties of a file, or a Problem if it cannot be used. At most two frames are decoded.

    Damage in other frames is found when the clip is read.
    """
    try:
        digest, captions = sha256(entry.path), entry.captions
        refuse_pointer(entry.path)
        if is_official_cache(entry.path):
            frames, width, height = clip_shape(entry.path)
            return VideoFile(entry.path, captions, frames, 16.0, width, height, digest, is_encoded=True)
        video = video_probe.probe(entry.path)
        return VideoFile(entry.path, captions, len(video.times), video.fps, video.width, video.height, digest)
    except Truncated as error:
        return Problem(entry.path, "truncated", _reason(entry.path, error))
    except InputError as error:
        return Problem(entry.path, "unreadable", _reason(entry.path, error))
    except FileNotFoundError:
        reason = "is a broken link; correct it" if entry.path.is_symlink() else "does not exist; check the name"
        return Problem(entry.path, "missing", reason)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Problem(entry.path, "missing", "is a link to itself; correct it")
        return Problem(entry.path, "unreadable", f"cannot be read ({error.strerror or error}); check the disk")


def _reason(path: Path, error: InputError) -> str:
    return str(error).removeprefix(f"{path}").lstrip(": ").rstrip(".")


def plan(
    files: Sequence[VideoFile], buckets: Sequence[Bucket], fps: float, geometry: Geometry, mode: Mode = "head"
) -> Plan:
    """Plan the samples of each file for a model of this geometry. fps: frames per second of the samples.

    mode: "head" takes one sample from the beginning of each clip; "uniform" takes as many as fit without overlap,
    spread evenly; "slide" takes one every half bucket length. Raises InputError if there is no bucket, or if `fps` is
    not above 0 and at most 1000.
    """
    if not buckets:
        raise InputError("there is no bucket; give at least one, such as 832x480x81")
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; give a number above 0 and at most 1000")
    cuts: list[Cut] = []
    problems: list[Problem] = []
    choices = tuple(dict.fromkeys(buckets))
    for file in files:
        chosen = bucket_of(file, choices, fps, geometry)
        if isinstance(chosen, Problem):
            problems.append(chosen)
        else:
            cuts += [Cut(file, chosen, start / fps) for start in _starts(file.frames_at(fps), chosen.frames, mode)]
    return Plan(tuple(cuts), tuple(problems), fps, tuple(files), choices)


def _starts(available: int, frames: int, mode: Mode) -> list[int]:
    """Return the first frame of each sample of a clip. available: frames of the clip. frames: of a sample."""
    if mode == "head" or available <= frames:
        return [0]
    last = available - frames
    if mode == "uniform":
        count = available // frames
        return [round(last * i / max(1, count - 1)) for i in range(count)]
    return list(range(0, last + 1, max(1, frames // 2)))


def bucket_of(file: VideoFile, buckets: Sequence[Bucket], fps: float, geometry: Geometry) -> Bucket | Problem:
    """Return the bucket of a file, or why none fits. fps, geometry: of the model."""
    size = f"{file.width}x{file.height}"
    if file.is_encoded:
        own = Bucket(file.width, file.height, file.frames)
        if own in buckets:
            return own
        return Problem(
            file.path, "too-short", f"contains latents of {own}, which is not a bucket; add the bucket {own}"
        )
    still = file.frames == 1
    moving = [bucket for bucket in buckets if (bucket.frames == 1) == still]
    if not moving:
        kind = "a still picture, and no bucket has 1 frame" if still else "a clip, and all buckets have 1 frame"
        suitable = f"{buckets[0].width}x{buckets[0].height}x{1 if still else geometry.whole(file.frames_at(fps))}"
        return Problem(file.path, "too-short", f"is {kind}; add the bucket {suitable}")
    large = [bucket for bucket in moving if _scale(file, bucket) <= ENLARGE]
    if not large:
        smallest = min(moving, key=lambda bucket: _scale(file, bucket))
        return Problem(
            file.path,
            "too-small",
            f"has {size} pixels and would be enlarged {_scale(file, smallest):.1f} times to cover {smallest}; add a "
            "smaller bucket",
        )
    best = max(kept_share(file, bucket) for bucket in large)
    shaped = [bucket for bucket in large if kept_share(file, bucket) >= best - SAME_SHAPE]
    available = file.frames_at(fps)
    fitting = [bucket for bucket in shaped if bucket.frames <= available]
    if fitting:
        return max(fitting, key=lambda bucket: (bucket.frames, bucket.width * bucket.height, kept_share(file, bucket)))
    needed = min(bucket.frames for bucket in shaped)
    longest = geometry.whole(available)
    suitable = f"the bucket {shaped[0].width}x{shaped[0].height}x{longest} fits"
    if longest == 1:
        suitable = "give a longer clip, because a bucket of 1 frame is for still pictures"
    reason = f"has only {available} of the {needed} frames needed at {fps:g} fps; {suitable}"
    return Problem(file.path, "too-short", reason)


def _scale(file: VideoFile, bucket: Bucket) -> float:
    """Return the factor by which the picture is enlarged to cover the bucket."""
    return max(bucket.width / file.width, bucket.height / file.height)


def kept_share(file: VideoFile, bucket: Bucket) -> float:
    """Return the share of the picture that remains after it is cropped to the bucket's aspect ratio, in (0, 1]."""
    ratio = file.width * bucket.height / (file.height * bucket.width)
    return min(ratio, 1 / ratio)


def survey(
    sources: str | Path | Sequence[Source],
    buckets: Sequence[Bucket],
    fps: float,
    geometry: Geometry,
    mode: Mode = "head",
    *,
    variants: bool = False,
    uncaptioned: bool = False,
    choose: Callable[[Sequence[VideoFile], Sequence[Bucket], float, Geometry], Sequence[Bucket]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Plan:
    """Find and probe the clips of one or several sources and plan their samples.

    buckets, fps, geometry, mode: see `plan`. variants: see `dataset.find`. uncaptioned: whether clips without a caption
    are used. choose: returns further buckets for the files. progress: called with the number of probed clips and the
    number of all clips. workers: threads that probe; the result does not depend on them.

    A clip without a caption gets no sample and is reported as a problem. Of clips with the same bytes, the first one
    with a caption is used and the others are reported. Raises InputError like `dataset.find` and `plan`, and for a
    prefix before the caption of a file that contains its encoded caption.
    """
    given = [Source(sources)] if isinstance(sources, str | Path) else list(sources)
    listings = [(find(source.path, variants=variants), source) for source in given]
    entries = [(entry, source) for listing, source in listings for entry in listing.entries]
    probed: list[VideoFile | Problem] = []
    for result in _map_in_order(probe, [entry for entry, _ in entries], workers):
        probed.append(result)
        if progress:
            progress(len(probed), len(entries))
    known = [problem for listing, _ in listings for problem in listing.problems]
    allowed = {entry.path for entry, _ in entries if not entry.bad} if uncaptioned else set()
    known = [problem for problem in known if problem.kind != "no-caption" or problem.path not in allowed]
    files, problems = _distinct(probed, known)
    source_of = {entry.path: source for entry, source in reversed(entries)}
    files = [_with_source(file, source_of[file.path], file.path in allowed) for file in files]
    planned = plan(files, choose(files, buckets, fps, geometry) if choose else buckets, fps, geometry, mode)
    unusable = sum(problem.kind in ("missing", "duplicate", "unreadable") for problem in known)
    layouts = [
        listing.layout if len(listings) == 1 else f"{listing.source}: {listing.layout}" for listing, _ in listings
    ]
    return replace(
        planned,
        cuts=tuple(cut for cut in planned.cuts if cut.file.captions or cut.file.is_encoded or cut.file.path in allowed),
        problems=(*problems, *planned.problems),
        source=", ".join(listing.source for listing, _ in listings),
        layout="; ".join(layouts),
        found=len(entries) + unusable,
    )


def _with_source(file: VideoFile, source: Source, uncaptioned: bool) -> VideoFile:
    """Return the file with the repeats of its source, and with the prefix before its captions.

    uncaptioned: whether the prefix alone may be the caption. Raises InputError if the caption is encoded already.
    """
    prefix = source.prefix.strip()
    if prefix and file.is_encoded:
        raise InputError(
            f"{file.path} contains its encoded caption, so the prefix {prefix!r} cannot be added; leave the prefix out"
        )
    captions = file.captions or (("",) if uncaptioned and prefix else ())
    if prefix:
        captions = tuple(f"{prefix} {caption}".strip() for caption in captions)
    return replace(file, captions=captions, repeats=source.repeats)


def _distinct(probed: Sequence[VideoFile | Problem], known: Sequence[Problem]) -> tuple[list[VideoFile], list[Problem]]:
    """Return the files with different bytes, and the problems of all others after the known ones.

    A file that has the same bytes as another one is reported for that only, and not for its missing caption.
    """
    used: dict[str, VideoFile] = {}
    for file in probed:
        if isinstance(file, VideoFile) and (
            file.sha256 not in used or (file.captions and not used[file.sha256].captions)
        ):
            used[file.sha256] = file
    files, problems, again = [], list(known), set()
    for file in probed:
        if isinstance(file, Problem):
            problems.append(file)
        elif used[file.sha256] is file:
            files.append(file)
        else:
            first = used[file.sha256].path
            reason = "is found twice" if first == file.path else f"is the same file as {first}"
            problems.append(Problem(file.path, "duplicate", reason))
            again.add(file.path)
    return files, [one for one in problems if one.kind != "no-caption" or one.path not in again]


def _map_in_order(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Iterator[Out]:
    """Like `map`, but with threads. Results keep their order, and only a few calls are queued at a time."""
    if workers <= 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        rest = iter(items)
        pending: list[Future[Out]] = [pool.submit(function, item) for item in itertools.islice(rest, 4 * workers)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(function, item) for item in itertools.islice(rest, 1)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read(cut: Cut, fps: float) -> Frames:
    """Read the pixels of a sample, uint8 [bucket.frames, height, width, 3]. Only the needed part is decoded.

    Frame k is the one nearest to `start + k / fps` seconds, as in `videos.read_video`. Raises InputError if this part
    of the file is damaged, or if the file contains latents.
    """
    if cut.file.is_encoded:
        raise InputError(f"{cut.file.path} contains latents, not pictures; read it with the cache")
    begin = round(cut.start * fps, 6)  # `start` is a whole number of frames over fps
    seconds = np.asarray((begin + np.arange(cut.bucket.frames)) / fps, np.float64)
    return video_probe.read(cut.file.path, seconds, (cut.bucket.width, cut.bucket.height))
