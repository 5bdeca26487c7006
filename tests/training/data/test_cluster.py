"""The results of several processes as one; and with Ray installed, two of its processes filling one cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pusa.errors import InputError
from pusa.generation.pipeline import Pipeline
from pusa.media.videos import write_video
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import cluster, samples
from pusa.training.data.cache import CachedSamples, Prepared
from pusa.training.data.cluster import combined_result
from pusa.training.data.dataset import Problem
from pusa.training.data.fingerprints import fingerprint


def test_a_clip_that_one_node_could_read_has_not_failed() -> None:
    unseen, corrupt = (Problem(Path(name), "unreadable", "is damaged") for name in ("a.mp4", "b.mp4"))
    blind = Prepared(made=3, kept=1, shared=0, failed=(unseen, corrupt), captions=2, bytes=10, seconds=1.0)
    other = Prepared(made=1, kept=1, shared=3, failed=(corrupt,), captions=1, bytes=12, seconds=2.0)
    for parts in ((blind, other), (other, blind)):
        assert combined_result(parts, 3.0) == Prepared(4, 1, 0, (corrupt,), 3, 12, 3.0)


@pytest.fixture
def plan(tmp_path: Path, noise_frames: Callable[..., NDArray[np.uint8]]) -> samples.Plan:
    (tmp_path / "data").mkdir()
    for i in range(12):
        write_video(tmp_path / f"data/{i}.mp4", noise_frames(5, seed=i), 8)
        (tmp_path / f"data/{i}.txt").write_text(f"a blue square {i % 4}")
    return samples.survey(tmp_path / "data", [samples.Bucket(32, 32, 5)], 8, GEOMETRIES[16])


@pytest.mark.slow
def test_two_ray_processes_share_a_cache(
    tmp_path: Path, plan: samples.Plan, tiny_pipe: Pipeline, tiny_folder: Path
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "data/7.mp4").unlink()
    seen: list[tuple[str, int, int]] = []
    done: Prepared = cluster.prepare(
        plan, str(tiny_folder), tmp_path / "cache", "local", workers=2, progress=lambda *state: seen.append(state)
    )
    assert (done.made, done.kept, len(done.failed), done.captions) == (11, 0, 1, 5)
    assert done.failed[0].path.name == "7.mp4"
    assert all(0 <= now <= total for _, now, total in seen)
    assert not list((tmp_path / "cache").glob(".cluster-*"))
    rest = samples.plan(
        [cut.file for cut in plan.cuts if cut.file.path.exists()], [samples.Bucket(32, 32, 5)], 8, GEOMETRIES[16]
    )
    assert len(list(CachedSamples(rest, fingerprint(tiny_pipe.backbone, 8), tmp_path / "cache"))) == 11


@pytest.mark.slow
def test_an_address_without_a_cluster_is_refused(tmp_path: Path, plan: samples.Plan) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"There is no Ray cluster at '127\.0\.0\.1:1'"):
        cluster.prepare(plan, "tiny-base", tmp_path / "cache", "127.0.0.1:1")
