"""A run's LoRA at another averaging length is the one that tracking this length all along would have given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pusa.errors import InputError
from pusa.models.lora import runtime
from pusa.training import posthoc_average, weight_averages
from pusa.training.run_folder import read
from pusa.training.trainer import train
from tests.training.small import Samples, components, config

STEPS, EVERY = 24, 4
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept a checkpoint and a snapshot of every step, with an alpha that is not the rank."""
    settings = config(
        lora={"alpha": 6.0, "rslora": True},
        train={"steps": STEPS, "ema": "post-hoc", "schedule": "constant", "warmup": 0},
        save={"every": 1, "keep": None},
    )
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(settings, folder, components=components(), samples=Samples())
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The same with every fourth snapshot only, as an ordinary run has them."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for step, path in weight_averages.snapshots_of(folder).items():
        if step % EVERY:
            path.unlink()
    return folder


def tracked(whole: Path, sigma_rel: float | None, steps: int = STEPS) -> Factors:
    """The average of that length, tracked step by step over the weights themselves; None: the last weights."""
    exponent = None if sigma_rel is None else weight_averages.gamma(sigma_rel) + 1
    total: dict[str, torch.Tensor] = {}
    for step in range(1, steps + 1):
        weights = read(whole / "checkpoints" / f"step_{step:06d}").state()["players"]["model"]["weights"]
        decay = 0.0 if exponent is None else (1 - 1 / step) ** exponent
        total = {k: decay * total.get(k, 0.0) + (1 - decay) * v.double() for k, v in weights.items()}
    scale = 6 / 2**0.5
    modules = [name.removesuffix(".lora_A.pusa.weight") for name in total if ".lora_A." in name]
    return {m: (total[f"{m}.lora_A.pusa.weight"], total[f"{m}.lora_B.pusa.weight"] * scale) for m in modules}


def distance(a: Factors, b: Factors) -> float:
    """Over all factors."""
    assert a.keys() == b.keys()
    pairs = [(x.double(), y.double()) for m in a for x, y in zip(a[m], b[m], strict=True)]
    return float(sum((x - y).square().sum() for x, y in pairs) ** 0.5)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15, 0.2])
def test_it_is_the_average_that_was_not_tracked(sigma_rel: float, whole: Path, run: Path, tmp_path: Path) -> None:
    done = posthoc_average.write(run, tmp_path / "a.safetensors", sigma_rel)
    made, about = runtime.read(tmp_path / "a.safetensors")
    error = distance(made, tracked(whole, sigma_rel))
    others = [distance(made, tracked(whole, other)) for other in (0.05, 0.1, 0.25, None)]
    assert error < 0.1 * min(others)
    assert (done.step, done.snapshots) == (STEPS, STEPS // EVERY)
    assert (about["pusa.ema"], about["pusa.step"], about["pusa.base"]) == (f"{sigma_rel:g}", str(STEPS), "small")


def test_the_length_that_a_run_hands_out_is_the_file_that_it_wrote(run: Path, tmp_path: Path) -> None:
    posthoc_average.write(run, tmp_path / "a.safetensors", 0.1)
    made, own = runtime.read(tmp_path / "a.safetensors")[0], runtime.read(run / "lora.safetensors")[0]
    for module, pair in own.items():
        for one, other in zip(made[module], pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_an_earlier_end(whole: Path, run: Path, tmp_path: Path) -> None:
    posthoc_average.write(run, tmp_path / "a.safetensors", 0.15, 16)
    made, about = runtime.read(tmp_path / "a.safetensors")
    assert distance(made, tracked(whole, 0.15, 16)) < 0.2 * distance(made, tracked(whole, 0.15))
    assert about["pusa.step"] == "16"


def test_before_its_end_a_run_can_be_asked_too(run: Path, tmp_path: Path) -> None:
    (run / "lora.safetensors").unlink()
    posthoc_average.write(run, tmp_path / "a.safetensors", 0.15)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["pusa.base"] == "small"


def test_what_is_no_run_with_averages_is_one_sentence(run: Path, tmp_path: Path) -> None:
    def refused(match: str, folder: Path, sigma_rel: float = 0.1) -> None:
        with pytest.raises(InputError, match=match) as caught:
            posthoc_average.write(folder, tmp_path / "a.safetensors", sigma_rel)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "a.safetensors").exists()

    refused("is not the folder of a run", tmp_path)
    refused("is not the folder of a run", run / "config.yaml")
    for sigma_rel in (0, -1, 0.5, float("nan")):
        refused(r"between 0 and 0\.28", run, sigma_rel)
    shutil.rmtree(run / "snapshots")
    refused("it has no snapshots", run)
    plain = tmp_path / "plain"
    train(config(), plain, components=components(), samples=Samples())
    refused(r"its train\.ema is 0\.9\).*--train\.ema post-hoc", plain)
    everything = tmp_path / "everything"
    settings = config(lora=None, train={"steps": 2, "ema": "post-hoc"}, save={"every": 1})
    train(settings, everything, components=components(), samples=Samples())
    refused("trained all weights of the model", everything)
