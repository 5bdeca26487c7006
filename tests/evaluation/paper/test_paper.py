"""The paper's methods in miniature: each trains what it says, runs go on exactly, orderings are judged fairly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pusa
from pusa.evaluation.inspect import weight_drift
from pusa.evaluation.paper import experiments, study, tables, training, verdicts
from pusa.evaluation.paper.experiments import Experiment
from pusa.evaluation.paper.networks import Network, with_image_channels
from pusa.evaluation.paper.scoring import ClipMaker
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.paper.tables import Ordering
from pusa.evaluation.paper.training_methods import METHODS
from pusa.evaluation.synthetic.tasks import TASKS, SceneTask
from pusa.models.loading import checkpoints

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def clips() -> training.Clips:
    parts = checkpoints.load("tiny-base")
    captions = ["", "a red circle moves left on a black background"]
    texts = parts.encode_text(captions).tokens
    return training.Clips(torch.randn(16, 12, 5, 16, 16, generator=GENERATOR), texts, captions, [1] * 16)


def test_padding_counted_once_is_padding_attended_to() -> None:
    parts = checkpoints.load("tiny-base")
    x, sigma = torch.randn(2, 12, 5, 16, 16, generator=GENERATOR), torch.rand(2, 5, generator=GENERATOR)
    text = parts.encode_text(["a red circle", ""]).tokens
    with torch.no_grad():
        stock = parts.transformer(x, 1000 * sigma, text, return_dict=False)[0]
        short = Network(parts.transformer)(x, sigma, (text, x[:, :, :1]))
    torch.testing.assert_close(short, stock, rtol=1e-4, atol=1e-4)


def test_image_channels_begin_as_the_base_and_then_matter() -> None:
    parts = checkpoints.load("tiny-base")
    x, level = torch.randn(1, 12, 5, 16, 16, generator=GENERATOR), torch.full((1, 5), 0.6)
    text = parts.encode_text(["a red circle"]).tokens
    wider = Network(with_image_channels(parts.transformer))
    first = torch.randn(1, 12, 1, 16, 16, generator=GENERATOR)
    with torch.no_grad():
        base = Network(parts.transformer)(x, level, (text, first))
        assert torch.equal(wider(x, level, (text, first)), base)
        wider.transformer.patch_embedding.weight[:, 12:] += 0.1
        assert not torch.equal(wider(x, level, (text, first)), wider(x, level, (text, first + 1)))


@pytest.mark.parametrize("name", ["vta", "vta-full", "i2v"])
def test_each_method_trains_and_an_interrupted_run_ends_with_the_same_weights(
    name: str, clips: training.Clips, tmp_path: Path
) -> None:
    method = dataclasses.replace(METHODS[name], constant=True)
    training.train(method, 0, clips, tmp_path / "whole", checkpoints_at=(1, 2))
    training.train(method, 0, clips, tmp_path / "parts", checkpoints_at=(1,))
    training.train(method, 0, clips, tmp_path / "parts", checkpoints_at=(1, 2))
    file = "lora.safetensors" if method.rank else "transformer/diffusion_pytorch_model.safetensors"
    whole, parts = (load_file(tmp_path / run / "step_000002" / file) for run in ("whole", "parts"))
    before = load_file(tmp_path / "whole" / "step_000001" / file)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(whole[key], before[key]) for key in whole)
    assert json.loads((tmp_path / "parts" / "done.json").read_text())["steps"] == 2


@pytest.mark.parametrize("name", ["vta", "vta-full", "i2v"])
def test_what_a_method_trained_is_on_the_base_inside_the_block_only(
    name: str, clips: training.Clips, tmp_path: Path
) -> None:
    method = dataclasses.replace(METHODS[name], constant=True)
    training.train(method, 0, clips, tmp_path / f"{name}.0", checkpoints_at=(3,))
    maker, experiment = ClipMaker(tmp_path), Experiment(name, 0, 3)
    x, sigma = torch.randn(1, 12, 5, 16, 16, generator=GENERATOR), torch.full((1, 5), 0.6)
    context = clips.texts[1:], x[:, :, :1]
    with torch.no_grad():
        before = Network(maker.base)(x, sigma, context)
        with maker.network(experiment) as network:
            assert not torch.equal(network(x, sigma, context), before)
        assert torch.equal(Network(maker.base)(x, sigma, context), before)
    merged = method.adapter.merged(maker.base, maker.weights(experiment))
    drift = weight_drift.of_models(maker.base, merged).of()[0]
    assert drift["self-attention"] > 0
    if method.adapter.keeps_base:
        direct = weight_drift.of_lora(maker.base, maker.weights(experiment) / method.adapter.output, 1.0).of()[0]
        assert drift == pytest.approx(direct, rel=1e-3)


def test_clips_made_together_are_those_of_the_pipeline(tmp_path: Path) -> None:
    experiment = Experiment("base", 0, 0, sampling_steps=2, scenes=range(2))
    together = ClipMaker(tmp_path).make(experiment)
    pipe = pusa.load("tiny-base")
    for seed, clip in zip(experiment.scenes, together, strict=True):
        entry = SceneTask("image-to-video", seed)
        conditions = TASKS["image-to-video"].conditions(entry.truth())
        alone = pipe.generate(entry.scene.caption, conditions, steps=2, seed=seed).frames
        assert np.abs(alone.astype(int) - clip).max() <= 2


def test_every_table_needs_only_experiments_that_are_made(tmp_path: Path) -> None:
    for letter, build in tables.TABLES.items():
        table = build()
        needed = {experiment for row in table.rows for experiment in row.experiments}
        needed |= {experiment for o in table.orderings for experiment in (*o.better, *o.worse)}
        assert needed <= set(experiments.experiments_of(letter)), letter
        trained = [experiment for experiment in needed if experiment.method != "base"]
        assert all(one.training_steps in experiments.checkpoint_steps(one.method) for one in trained)
    names = [unit.name for unit in study.units(StudyFolder(tmp_path), list(experiments.TABLES))]
    assert len(names) == len(set(names))


def study_of(folder: Path, errors: dict[Experiment, np.ndarray]) -> StudyFolder:
    """A study whose scores are these squared errors."""
    (folder / "scores").mkdir()
    for experiment, values in errors.items():
        rows = [{"seed": i, "error": float(e), "baseline_error": 400.0, "held": 1.0} for i, e in enumerate(values)]
        (folder / "scores" / f"{experiment.name}.json").write_text(json.dumps({"rows": rows}))
    return StudyFolder(folder)


def test_an_ordering_holds_is_reversed_or_is_undecided(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = rng.uniform(50, 900, 32)
    good = [Experiment("vta", seed, 400) for seed in range(3)]
    bad = [Experiment("i2v", seed, 400) for seed in range(3)]
    like = [Experiment("ptss-0.8", seed, 400) for seed in range(3)]
    errors = {one: scenes * rng.uniform(0.9, 1.1, 32) for one in (*good, *like)}
    errors |= {one: 1.4 * scenes * rng.uniform(0.9, 1.1, 32) for one in bad}
    folder = study_of(tmp_path, errors)

    def judged(better: list[Experiment], worse: list[Experiment]) -> str:
        return verdicts.outcome(verdicts.difference(folder, Ordering("", tuple(better), tuple(worse))))

    assert judged(good, bad) == "holds"
    assert judged(bad, good) == "reversed"
    assert judged(good, like) == "undecided"


def test_what_reaches_the_adapter_is_read_off_the_curve(tmp_path: Path) -> None:
    target = {Experiment("vta", seed, 400, strength=1.7): np.full(32, 100.0) for seed in range(3)}
    errors = dict(zip(experiments.LONG_CHECKPOINTS, (400.0, 200.0, 50.0), strict=True))
    curve = {Experiment("i2v-long", seed, n): np.full(32, e) for n, e in errors.items() for seed in range(3)}
    steps, found = verdicts.reached_at(study_of(tmp_path, target | curve))
    assert steps == pytest.approx(800 * 2**0.5, rel=1e-3)
    assert [n for n, _ in found] == list(experiments.LONG_CHECKPOINTS)
