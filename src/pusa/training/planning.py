"""From the settings to the samples of a training: `check`, `prepare` and `train` plan in the same way.

Only the configuration of the model is read, and no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pusa.errors import InputError
from pusa.models.backbone import Sizes
from pusa.models.loading import configurations, sources
from pusa.training.config.tree import Config
from pusa.training.data import samples
from pusa.training.data.samples import Bucket, Plan
from pusa.training.estimate import sizes_for


@dataclass(frozen=True)
class ModelPlan:
    """What the configuration of a model decides. kinds: its transformers. buckets: of the settings, or its own size.

    fps: the rate to which clips are resampled.
    """

    name: str
    folder: Path
    kinds: tuple[str, ...]
    sizes: Sizes
    buckets: tuple[Bucket, ...]
    fps: float


def model_plan(config: Config) -> ModelPlan:
    """Find the model and read its configuration. Raises InputError for another model or a bucket that does not fit."""
    name, folder = sources.find(config.model.source, parts=())
    kinds = configurations.check(name, folder, expert=config.model.expert)
    sizes, buckets = sizes_for(name, folder, config.data.buckets or ())
    fps = config.data.fps or configurations.defaults_of(folder).fps
    return ModelPlan(name, folder, tuple(kinds), sizes, tuple(buckets), fps)


def survey(
    config: Config, model: ModelPlan, *, progress: Callable[[int, int], None] | None = None, workers: int = 1
) -> Plan:
    """Find and probe the clips, and plan their samples. progress, workers, errors: see `samples.survey`."""
    if config.data.path is None:
        raise InputError("There are no clips: give a folder, or set data.path.")
    return samples.survey(
        config.data.path,
        model.buckets,
        model.fps,
        model.sizes.geometry,
        config.data.cut,
        progress=progress,
        workers=workers,
    )
