"""Further buckets for the aspect ratios of the clips."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data.aspect_buckets import CROPPED, LEAST_AREA, with_other_shapes
from pusa.training.data.samples import Bucket, VideoFile, kept_share, plan

WAN = GEOMETRIES[16]
WIDE = Bucket(832, 480, 81)


def clip(width: int, height: int, frames: int = 100) -> VideoFile:
    name = f"{width}x{height}x{frames}"
    return VideoFile(Path(name), ("x",), frames, 16 if frames > 1 else 0, width, height, name)


def test_clips_of_the_shape_of_a_bucket_need_no_other() -> None:
    files = [clip(1920, 1080), clip(1664, 960), clip(848, 480)]
    assert with_other_shapes(files, [WIDE], 16, WAN) == [WIDE]


@pytest.mark.parametrize("size", [(1080, 1920), (1440, 1080), (1080, 1080), (1920, 800), (1000, 1250), (1400, 1000)])
def test_other_shapes_get_a_bucket_that_keeps_the_picture_in_the_same_memory(size: tuple[int, int]) -> None:
    files = [clip(*size), clip(1920, 1080)]
    buckets = with_other_shapes(files, [WIDE], 16, WAN)
    assert buckets[0] == WIDE
    assert len(buckets) == 2
    assert LEAST_AREA <= buckets[1].width * buckets[1].height / (832 * 480) <= 1
    buckets[1].check(WAN)
    for cut in plan(files, buckets, 16, WAN).cuts:
        assert kept_share(cut.file, cut.bucket) >= 1 - CROPPED


def test_still_pictures_get_buckets_of_one_frame() -> None:
    buckets = with_other_shapes([clip(1920, 1080), clip(1000, 1000, 1), clip(1920, 1080, 1)], [WIDE], 16, WAN)
    assert {bucket.frames for bucket in buckets[1:]} == {1}
    assert len(plan([clip(1000, 1000, 1), clip(1920, 1080, 1)], buckets, 16, WAN).cuts) == 2


def test_few_buckets_serve_many_shapes_in_any_order() -> None:
    rng = random.Random(0)
    files = [clip(rng.randrange(600, 1900), rng.randrange(600, 1900)) for _ in range(60)]
    buckets = with_other_shapes(files, [WIDE], 16, WAN)
    assert len(buckets) <= 24
    assert with_other_shapes(files[::-1], [WIDE], 16, WAN) == buckets
    cuts = plan(files, buckets, 16, WAN).cuts
    assert sum(kept_share(cut.file, cut.bucket) >= 1 - CROPPED for cut in cuts) >= 0.9 * len(cuts)
    one = plan(files, [WIDE], 16, WAN).cuts
    assert sum(kept_share(cut.file, cut.bucket) for cut in cuts) > 1.2 * sum(kept_share(c.file, c.bucket) for c in one)


def test_what_no_bucket_can_take_adds_none() -> None:
    assert with_other_shapes([clip(200, 200), clip(1080, 1920, 40)], [WIDE], 16, WAN) == [WIDE]
    assert with_other_shapes([], [WIDE], 16, WAN) == [WIDE]
