"""What each file holds, and which training samples become of it.

A sample is a cut: `bucket.frames` frames at the model's rate from a certain second on, scaled and cropped to cover the
bucket's size. Which bucket a clip lands in is decided in three steps: the shape that crops it least (within a tenth),
then the longest length that the clip fills, then the largest picture that it fills. A clip is never lengthened, nor
enlarged by more than a tenth; one that fits no bucket is a `Problem` that says which would fit. Still pictures land in
buckets of one frame, moving ones in the others.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from pusa import video_probe
from pusa.errors import InputError
from pusa.files import sha256
from pusa.images import Frames
from pusa.models.backbone import Geometry
from pusa.training.data.dataset import Entry, Problem, find, is_ready
from pusa.training.data.official_cache import size_of
from pusa.video_probe import Truncated

Mode = Literal["head", "uniform", "slide"]
In = TypeVar("In")
Out = TypeVar("Out")

ENLARGE = 1.1
"""A picture may be scaled up by this much to cover a bucket."""
SAME_SHAPE = 0.1
"""Two buckets have the same shape for a clip when what they keep of its picture differs by no more than this share."""


@dataclass(frozen=True)
class VideoFile:
    """A file that can be read.

    frames: 1 for a still picture. fps: frames per second, the average where it varies; 0 for a still picture. width,
    height: pixels as displayed. ready: holds latents and context already, whose clip has these frames and this size.
    """

    path: Path
    caption: str
    frames: int
    fps: float
    width: int
    height: int
    sha256: str
    ready: bool = False

    @property
    def seconds(self) -> float:
        """Length; 0 for a still picture."""
        return self.frames / self.fps if self.fps else 0.0

    def frames_at(self, fps: float) -> int:
        """The number of frames after resampling to `fps`: those up to the time of the last frame."""
        return int((self.frames - 1) / self.fps * fps + 1e-6) + 1 if self.fps else 1


@dataclass(frozen=True, order=True)
class Bucket:
    """A size that samples have: width and height in pixels, frames as the model's geometry has them (1: pictures)."""

    width: int
    height: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Read `WIDTHxHEIGHTxFRAMES`; InputError for anything else."""
        match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[x×X*]\s*([1-9]\d{0,4})\s*[x×X*]\s*([1-9]\d{0,4})\s*", text)
        if not match:
            raise InputError(f"{text!r} is no bucket; give WIDTHxHEIGHTxFRAMES such as 832x480x81")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def check(self, geometry: Geometry) -> None:
        """Raise InputError unless a model of this geometry can make clips of this size."""
        if not geometry.is_whole(self.frames):
            below, above = geometry.nearest(self.frames)
            raise InputError(
                f"the bucket {self} has {self.frames} frames, not {geometry.form()}; use {below} or {above}"
            )
        multiple = geometry.multiple
        if self.width % multiple or self.height % multiple:
            nearest = [max(1, round(side / multiple)) * multiple for side in (self.width, self.height)]
            raise InputError(
                f"the bucket {self} does not suit this model, whose sides are multiples of {multiple}; use "
                f"{nearest[0]}x{nearest[1]}x{self.frames}"
            )


@dataclass(frozen=True)
class Cut:
    """One training sample: `bucket.frames` frames at the model's rate, from `start` seconds after the first frame."""

    file: VideoFile
    bucket: Bucket
    start: float

    def __str__(self) -> str:
        return f"{self.file.path} from {self.start:.3g} s on" if self.start else str(self.file.path)


@dataclass(frozen=True)
class Plan:
    """What will be trained on. fps: of the cuts. files: everything that could be read, also what has no cut.

    source, layout, found: what the clips came from and how many there were; empty for a plan that was made by hand.
    """

    cuts: tuple[Cut, ...]
    problems: tuple[Problem, ...]
    fps: float
    files: tuple[VideoFile, ...] = ()
    source: str = ""
    layout: str = ""
    found: int = 0

    @property
    def buckets(self) -> dict[Bucket, int]:
        """The number of samples in each bucket that has any."""
        return dict(Counter(cut.bucket for cut in self.cuts))


def probe(entry: Entry) -> VideoFile | Problem:
    """What a file holds, without decoding more than two frames of it; a Problem when it cannot be used.

    Damage between the frames that are looked at is found when the clip is read. A missing caption becomes "".
    """
    try:
        digest = sha256(entry.path)
        caption = entry.caption or ""
        if is_ready(entry.path):
            frames, width, height = size_of(entry.path)
            return VideoFile(entry.path, caption, frames, 16.0, width, height, digest, ready=True)
        held = video_probe.probe(entry.path)
        return VideoFile(entry.path, caption, len(held.times), held.fps, held.width, held.height, digest)
    except Truncated as error:
        return Problem(entry.path, "truncated", _reason(entry.path, error))
    except InputError as error:
        return Problem(entry.path, "unreadable", _reason(entry.path, error))
    except FileNotFoundError:
        lost = "is a link to nothing; mend it" if entry.path.is_symlink() else "does not exist; check the name"
        return Problem(entry.path, "missing", lost)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Problem(entry.path, "missing", "is a link to itself; mend it")
        return Problem(entry.path, "unreadable", f"cannot be read ({error.strerror or error}); check the disk")


def _reason(path: Path, error: InputError) -> str:
    return str(error).removeprefix(f"{path}").lstrip(": ").rstrip(".")


def plan(
    files: Sequence[VideoFile], buckets: Sequence[Bucket], fps: float, geometry: Geometry, mode: Mode = "head"
) -> Plan:
    """Decide what becomes of each file at `fps` frames per second, for a model of this geometry.

    mode: "head" takes one sample from the beginning of each clip, "uniform" as many as fit side by side, spread from
    beginning to end, "slide" one every half length. Raises InputError without a bucket or with an impossible rate.
    """
    if not buckets:
        raise InputError("there is no bucket; give at least one, such as 832x480x81")
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; give a number of frames per second above 0")
    cuts: list[Cut] = []
    problems: list[Problem] = []
    for file in files:
        chosen = _bucket(file, list(dict.fromkeys(buckets)), fps, geometry)
        if isinstance(chosen, Problem):
            problems.append(chosen)
        else:
            cuts += [Cut(file, chosen, start / fps) for start in _starts(file.frames_at(fps), chosen.frames, mode)]
    return Plan(tuple(cuts), tuple(problems), fps, tuple(files))


def _starts(available: int, frames: int, mode: Mode) -> list[int]:
    """First frames of the samples of a clip."""
    if mode == "head" or available <= frames:
        return [0]
    last = available - frames
    if mode == "uniform":
        count = available // frames
        return [round(last * i / max(1, count - 1)) for i in range(count)]
    return list(range(0, last + 1, max(1, frames // 2)))


def _bucket(file: VideoFile, buckets: list[Bucket], fps: float, geometry: Geometry) -> Bucket | Problem:
    size = f"{file.width}x{file.height}"
    if file.ready:
        own = Bucket(file.width, file.height, file.frames)
        if own in buckets:
            return own
        return Problem(file.path, "too-short", f"holds latents of {own}, which is no bucket here; add the bucket {own}")
    still = file.frames == 1
    moving = [bucket for bucket in buckets if (bucket.frames == 1) == still]
    if not moving:
        kind = "a still picture" if still else "a clip"
        wanted = f"{buckets[0].width}x{buckets[0].height}x{1 if still else geometry.whole(file.frames_at(fps))}"
        return Problem(file.path, "too-short", f"is {kind} and no bucket is for those; add the bucket {wanted}")
    large = [bucket for bucket in moving if _scale(file, bucket) <= ENLARGE]
    if not large:
        smallest = min(moving, key=lambda bucket: _scale(file, bucket))
        return Problem(
            file.path,
            "too-small",
            f"has {size} pixels and would be enlarged {_scale(file, smallest):.1f} times to cover {smallest}",
        )
    best = max(kept(file, bucket) for bucket in large)
    shaped = [bucket for bucket in large if kept(file, bucket) >= best - SAME_SHAPE]
    available = file.frames_at(fps)
    fitting = [bucket for bucket in shaped if bucket.frames <= available]
    if fitting:
        return max(fitting, key=lambda bucket: (bucket.frames, bucket.width * bucket.height, kept(file, bucket)))
    needed = min(bucket.frames for bucket in shaped)
    fits = f"{shaped[0].width}x{shaped[0].height}x{geometry.whole(available)}"
    reason = f"has {available} of the {needed} frames needed at {fps:g} fps; the bucket {fits} would fit"
    return Problem(file.path, "too-short", reason)


def _scale(file: VideoFile, bucket: Bucket) -> float:
    """How much the picture is enlarged to cover the bucket."""
    return max(bucket.width / file.width, bucket.height / file.height)


def kept(file: VideoFile, bucket: Bucket) -> float:
    """The share of the picture that is left after cropping to the bucket's shape."""
    ratio = file.width * bucket.height / (file.height * bucket.width)
    return min(ratio, 1 / ratio)


def survey(
    source: str | Path,
    buckets: Sequence[Bucket],
    fps: float,
    geometry: Geometry,
    mode: Mode = "head",
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Plan:
    """Find, look into and plan everything that a source holds; `progress` gets how many of how many are done.

    Clips without a caption and clips whose bytes are those of an earlier one are left out, and named like everything
    else that is not used. The result does not depend on the number of `workers`, which are threads.
    """
    listing = find(source)
    problems = list(listing.problems)
    files: list[VideoFile] = []
    first: dict[str, Path] = {}
    probed = _in_order(probe, listing.entries, workers)
    for done, (entry, result) in enumerate(zip(listing.entries, probed, strict=True), 1):
        if isinstance(result, Problem):
            problems.append(result)
        elif result.sha256 in first:
            problems.append(Problem(entry.path, "duplicate", f"is the same file as {first[result.sha256]}"))
        else:
            first[result.sha256] = entry.path
            files.append(result)
        if progress:
            progress(done, len(listing.entries))
    planned = plan(files, buckets, fps, geometry, mode)
    named = sum(problem.kind in ("missing", "duplicate", "unreadable") for problem in listing.problems)
    return Plan(
        tuple(cut for cut in planned.cuts if cut.file.caption or cut.file.ready),
        (*problems, *planned.problems),
        fps,
        tuple(files),
        listing.source,
        listing.layout,
        len(listing.entries) + named,
    )


def _in_order(work: Callable[[In], Out], things: Iterable[In], workers: int) -> Iterator[Out]:
    """`map` over threads with results in order and never more than a few waiting."""
    if workers <= 1:
        yield from map(work, things)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        rest = iter(things)
        waiting: list[Future[Out]] = [pool.submit(work, thing) for thing in itertools.islice(rest, 4 * workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(work, thing) for thing in itertools.islice(rest, 1)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read(cut: Cut, fps: float) -> Frames:
    """The pixels of a sample, uint8 [bucket.frames, height, width, 3]; only the part that is needed is decoded.

    Frame k is the one nearest to `start + k / fps` seconds, as `videos.read_video` chooses it. Raises InputError when
    the file is damaged there, and for a file that holds latents.
    """
    if cut.file.ready:
        raise InputError(f"{cut.file.path} holds latents, not pictures; it is read by the cache")
    begin = round(cut.start * fps, 6)  # `start` is a whole number of frames over fps
    seconds = np.asarray((begin + np.arange(cut.bucket.frames)) / fps, np.float64)
    return video_probe.read(cut.file.path, seconds, (cut.bucket.width, cut.bucket.height))
