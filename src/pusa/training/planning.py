"""From the settings to the samples of a training: `check`, `prepare` and `train` plan in the same way.

Only the configuration of the model is read, and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pusa.errors import InputError
from pusa.models.backbone import Sizes
from pusa.models.loading import configurations, sources
from pusa.training.config.sections import AUTO, Folder
from pusa.training.config.tree import Config
from pusa.training.data import samples
from pusa.training.data.aspect_buckets import with_other_shapes
from pusa.training.data.samples import Bucket, Plan, Source
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
    given = [text for text in config.data.buckets or () if text != AUTO]
    sizes, buckets = sizes_for(name, folder, given)
    fps = config.data.fps or configurations.defaults_of(folder).fps
    return ModelPlan(name, folder, tuple(kinds), sizes, tuple(buckets), fps)


def survey(
    config: Config, model: ModelPlan, *, progress: Callable[[int, int], None] | None = None, workers: int = 1
) -> Plan:
    """Find and probe the clips, and plan their samples. progress, workers, errors: see `samples.survey`."""
    data = config.data
    if not data.sources:
        raise InputError("There are no clips: give a folder, or set data.path.")

    def plan(folders: Sequence[Folder], buckets: Sequence[Bucket], auto: bool) -> Plan:
        return samples.survey(
            [Source(folder.path, folder.repeats, folder.prefix or "") for folder in folders],
            buckets,
            model.fps,
            model.sizes.geometry,
            data.cut,
            variants=data.captions == "variants",
            uncaptioned=data.uncaptioned,
            choose=with_other_shapes if auto else None,
            progress=progress,
            workers=workers,
        )

    training = plan(data.sources, model.buckets, AUTO in (data.buckets or ()))
    if data.validation is None:
        return training
    return _with_validation(training, plan([Folder(path=data.validation, prefix=data.prefix)], training.choices, False))


def _with_validation(training: Plan, validation: Plan) -> Plan:
    """Return both plans as one. Raises InputError if a clip is in both, or if there is no clip for validation."""
    learnt = {cut.file.sha256: cut.file.path for cut in training.cuts}
    for cut in validation.cuts:
        if cut.file.sha256 in learnt:
            other = learnt[cut.file.sha256]
            same = "" if other == cut.file.path else f", as {other},"
            raise InputError(
                f"{cut.file.path} is in data.validation and{same} among the clips to train on; remove it from one of "
                "them."
            )
    if not validation.cuts:
        first = f" ({validation.problems[0].path} {validation.problems[0].reason})" if validation.problems else ""
        raise InputError(f"No clip in data.validation {validation.source} can be used{first}; run `pusa check` on it.")
    return replace(
        training,
        cuts=training.cuts + validation.cuts,
        problems=training.problems + validation.problems,
        files=training.files + validation.files,
        validation=frozenset(cut.file.sha256 for cut in validation.cuts),
        found=training.found + validation.found,
    )
