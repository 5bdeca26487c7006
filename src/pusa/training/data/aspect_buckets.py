"""Buckets for other aspect ratios: of the same length as a given bucket, and of at most the same area."""

from __future__ import annotations

from collections.abc import Sequence

from pusa.models.backbone import Geometry
from pusa.training.data.samples import SAME_SHAPE, Bucket, VideoFile, bucket_of, kept_share

CROPPED = 0.1
"""A clip is cropped too much if its bucket removes more than this share of its picture."""
LEAST_AREA = 0.7
"""The smallest area of a further bucket, as a share of the area of the given one."""


WIDEST = 4
"""The greatest ratio of the sides of a further bucket."""


def with_other_shapes(
    files: Sequence[VideoFile], buckets: Sequence[Bucket], fps: float, geometry: Geometry
) -> list[Bucket]:
    """Return the buckets, and further ones for the files that these crop by more than `CROPPED`.

    One bucket is added after the other: always the one that keeps most of the pictures. A bucket must keep
    `SAME_SHAPE` more of a picture than the others do, or all but `CROPPED` of it. Still pictures get buckets of one
    frame. The result does not depend on the order of the files. A file that is too small or too short for the given
    buckets gets none.
    """
    chosen = list(dict.fromkeys(buckets))
    groups: dict[tuple[int, int, bool], list[VideoFile]] = {}
    for file in files:
        if not file.is_encoded:
            groups.setdefault((file.width, file.height, file.frames == 1), []).append(file)
    # One file stands for all of its size: the longest, so that its length decides nothing.
    weights = {max(group, key=lambda file: file.frames_at(fps)): len(group) for _, group in sorted(groups.items())}

    def kept(file: VideoFile, choice: Sequence[Bucket]) -> float:
        bucket = bucket_of(file, choice, fps, geometry)
        return kept_share(file, bucket) if isinstance(bucket, Bucket) else 0.0

    def gain(file: VideoFile, before: float, candidate: Bucket) -> float:
        if before >= 1 - CROPPED:
            return 0.0
        after = kept(file, [*chosen, candidate])
        return after - before + (after >= 1 - CROPPED) if after - before > SAME_SHAPE or after >= 1 - CROPPED else 0.0

    def best(candidates: Sequence[Bucket]) -> Bucket | None:
        before = {file: kept(file, chosen) for file in weights}
        gains = {
            candidate: sum(weight * gain(file, before[file], candidate) for file, weight in weights.items())
            for candidate in candidates
        }
        found = max(gains, key=lambda candidate: (gains[candidate], candidate.width * candidate.height), default=None)
        return found if found and gains[found] > 0 else None

    candidates = [shape for bucket in _bases(chosen, files) for shape in _shapes(bucket, geometry)]
    while bucket := best(candidates):
        chosen.append(bucket)
    return chosen


def _bases(buckets: Sequence[Bucket], files: Sequence[VideoFile]) -> list[Bucket]:
    """Return the buckets whose length and area others may have, also for still pictures if there are any."""
    stills = any(file.frames == 1 for file in files) and not any(bucket.frames == 1 for bucket in buckets)
    more = [Bucket(bucket.width, bucket.height, 1) for bucket in buckets] if stills else []
    return [*buckets, *more]


def _shapes(bucket: Bucket, geometry: Geometry) -> list[Bucket]:
    """Return buckets of the length of `bucket` with `LEAST_AREA` to 1 of its area, two for each width."""
    area, step = bucket.width * bucket.height, geometry.multiple
    found = []
    for width in range(step, area // step + 1, step):
        highest = area // width // step * step
        found += [Bucket(width, height, bucket.frames) for height in (highest, highest - step) if height > 0]
    return [
        shape
        for shape in found
        if shape.width * shape.height >= LEAST_AREA * area and 1 / WIDEST <= shape.width / shape.height <= WIDEST
    ]
