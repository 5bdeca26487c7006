"""Validation: the same sigma_rows to every model at every time, and a table that tells better from worse."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as some
from hypothesis import settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from pusa.adapters.lora import without_lora
from pusa.core.objectives import Predictor
from pusa.errors import InputError
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.training import validation
from pusa.training.random_draws import LEAST_FRAMES, generator
from pusa.training.validation import given, sigma_rows, undisturbed, validate
from tests.models.wan_small import build


@dataclass(frozen=True)
class Held:
    key: str
    latents: Tensor
    context: Tensor


def clips(count: int, frames: int = 5, channels: int = 4) -> list[Held]:
    made = []
    for i in range(count):
        rng = torch.Generator().manual_seed(100 + i)
        latents = torch.randn(channels, frames, 8, 8, generator=rng)
        made.append(Held(f"clip{i}", latents, torch.randn(7, 16, generator=rng)))
    return made


def velocity_of(model: Any) -> Predictor:
    return lambda x, sigma, context: model(x, 1000 * sigma, context, return_dict=False)[0]


@pytest.fixture(scope="module")
def adapted() -> VectorWanTransformer3DModel:
    """A small random Wan with an adapter whose second factor is zero."""
    model = VectorWanTransformer3DModel.upgrade(build(num_layers=1)).requires_grad_(False)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "ffn.net.2"]), "pusa")
    return model.eval()


def both(model: Any, samples: list[Held], **options: Any) -> validation.Validation:
    def base(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        with without_lora(model, "pusa"):
            return velocity_of(model)(x, sigma, context)

    return validate(velocity_of(model), samples, base=base, **options)


def damaged(model: Any, amount: float) -> Any:
    model = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(5)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for factor in layer.lora_B.values():
                factor.weight.data.add_(amount * torch.randn(factor.weight.shape, generator=rng))
    return model


def test_a_zero_adapter_is_the_base_exactly(adapted: Any) -> None:
    result = both(adapted, clips(2))
    assert result.base is not None
    assert result.losses.total.equal(result.base.total)
    assert result.losses.count.sum() > 0
    assert "+0.0%" in str(result)


def test_a_changed_adapter_is_not_the_base(adapted: Any) -> None:
    result = both(damaged(adapted, 0.3), clips(1), sigmas=[0.5])
    untouched = both(adapted, clips(1), sigmas=[0.5])
    assert result.base is not None
    assert not result.losses.total.equal(result.base.total)
    assert result.base.total.equal(untouched.losses.total)


@pytest.fixture(scope="module")
def world() -> tuple[Any, list[Held]]:
    """The embedded model with its trained adapter, and held-out clips of its world."""
    from pusa.embedded import world
    from pusa.models.loading import checkpoints

    parts = checkpoints.load("tiny", device="cpu")
    samples = []
    for seed in range(3):
        scene = world.sample(900 + seed, "heldout", "shape")
        context = parts.encode_text([scene.caption]).tokens[0]
        samples.append(Held(str(seed), parts.encode(world.render(scene))[0], context))
    return parts.transformer, samples


def test_a_trained_adapter_is_better_than_its_base_and_a_damaged_one_worse(world: tuple[Any, list[Held]]) -> None:
    """The adapter that ships with the package, asked as it was trained; negative control: noise on it."""
    model, samples = world
    options: dict[str, Any] = {"tasks": ["independent"], "sigmas": [0.25, 0.5, 0.75], "batch": 3}
    good, bad = both(model, samples, **options), both(damaged(model, 0.3), samples, **options)
    assert good.base is not None
    assert bad.base is not None
    assert bad.base.total.equal(good.base.total)
    assert (good.losses.mean("task") < good.base.mean("task")).all()
    assert (bad.losses.mean("task") > good.base.mean("task")).all()


def test_sigma_rows_do_not_depend_on_batch_order_or_company(adapted: Any) -> None:
    model, samples = velocity_of(damaged(adapted, 0.3)), clips(3)

    def total(samples: list[Held], **options: Any) -> Tensor:
        return validate(model, samples, sigmas=[0.2, 0.5, 0.9], **options).losses.total

    one = total(samples)
    assert one.equal(total(samples))
    torch.testing.assert_close(total(samples, batch=2), one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total(samples[::-1]), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(total([sample]) for sample in samples), one, rtol=1e-12, atol=0)
    assert not one.equal(total(samples, seed=1))


def test_cells_hold_the_loss_of_their_frame_at_their_level() -> None:
    """A model that is wrong by a known amount: the velocity plus (frame number + 1) times σ of that frame."""
    samples = clips(2)
    truth: list[Tensor] = []

    def wrong(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        sample = next(s for s in samples if context[0].equal(s.context))
        x0 = sample.latents[None]
        wide = sigma[:, None, :, None, None]
        truth.append(sigma)
        velocity = torch.where(wide > 0, (x - x0) / wide.clamp(min=1e-6), torch.nan)
        return velocity + wide * (torch.arange(5) + 1)[None, None, :, None, None]

    result = validate(wrong, samples, sigmas=[0.5, 0.25])
    frame = torch.arange(5, dtype=torch.float64) + 1
    expected = torch.stack([(level * frame) ** 2 for level in (0.5, 0.25)])
    cells = result.losses.mean("task", "sigma", "frame")
    learnt = ~cells.isnan()
    for i, task in enumerate(result.losses.tasks):
        assert (~learnt[i, 0]).nonzero()[:, 0].tolist() == sorted(given(task, 5))
    torch.testing.assert_close(cells[learnt], expected.expand_as(cells)[learnt], rtol=1e-3, atol=1e-6)
    assert result.losses.count[-1].eq(2).all()  # independent: each frame meets each level once per clip


@settings(deadline=None, max_examples=50)
@some(
    task=st.sampled_from([task for task in LEAST_FRAMES if task != "staircase"]),
    extra=st.integers(0, 18),
    levels=st.lists(st.floats(0.01, 1), min_size=1, max_size=12, unique=True),
)
def test_sigma_rows_of_a_task(task: str, extra: int, levels: list[float]) -> None:
    frames = LEAST_FRAMES[task] + extra
    rows = sigma_rows(task, frames, levels, generator(0, 0, 0, "test"))
    assert rows.shape == (len(levels), frames)
    held = given(task, frames)
    assert len(held) < frames
    assert rows[:, held].eq(0).all()
    free = [f for f in range(frames) if f not in held]
    assert rows[:, free].sort(dim=0).values.eq(torch.tensor(sorted(levels), dtype=torch.float64)[:, None]).all()
    if task != "independent":
        assert rows[:, free[0]].tolist() == pytest.approx(levels)
        assert rows[:, free].eq(rows[:, free[:1]]).all()


def test_clips_of_other_lengths_and_stills_count_where_they_can(adapted: Any) -> None:
    samples = [*clips(1, frames=5), Held("still", torch.randn(4, 1, 8, 8), torch.randn(7, 16))]
    count = validate(velocity_of(adapted), samples, sigmas=[0.5]).losses.count
    tasks = dict(zip(validation.TASKS, count[:, 0].tolist(), strict=True))
    assert tasks["text-to-video"] == [2, 1, 1, 1, 1]
    assert tasks["image-to-video"] == [0, 1, 1, 1, 1]


def test_a_table_a_file_and_a_picture(adapted: Any, tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    samples = clips(1)
    tasks: dict[str, Any] = {"tasks": ["image-to-video", "independent"]}
    first = both(adapted, samples, **tasks)
    first.write(path)
    later = both(damaged(adapted, 0.3), samples, step=100, **tasks)
    later.write(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 100]
    assert lines[1]["tasks"]["image-to-video"]["by_frame"][0] is None
    assert len(lines[1]["tasks"]["image-to-video"]["by_sigma"]) == 10
    history = validation.read(path)
    assert history[1].losses.total.equal(later.losses.total)
    assert validate(velocity_of(adapted), samples, base=history[0].base, **tasks).base is history[0].base
    text = str(later)
    assert all(part in text for part in ("image-to-video", "–", ".95", "f4", "after step 100 on 1 clip;"))
    assert max(map(len, text.splitlines())) < 160
    assert "nan" not in str(validate(velocity_of(adapted), samples, **tasks))
    both(damaged(adapted, 0.2), samples, step=50, **tasks).write(path)  # the run was resumed before step 100
    assert [v.step for v in validation.read(path)] == [0, 50]
    pytest.importorskip("matplotlib")
    assert validation.plot(history, tmp_path / "validation.png")
    assert (tmp_path / "validation.png").read_bytes()[1:4] == b"PNG"


def test_the_table_stays_in_columns_where_frames_are_given(adapted: Any) -> None:
    _, head, *rows = str(both(adapted, clips(1), tasks=["text-to-video", "start-end"])).splitlines()
    assert {len(row) for row in rows} == {len(head)}
    assert rows[1].endswith(" –")


def test_one_validation_is_drawn_on_an_axis_from_step_0(
    adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    one = both(damaged(adapted, 0.2), clips(1), step=7, tasks=["text-to-video"])
    assert validation.plot([one], tmp_path / "one.png")
    curve = drawn[0].axes[0].lines[0].get_xydata()
    assert one.base is not None
    assert curve.tolist() == [[0, float(one.base.mean("task")[0])], [7, float(one.losses.mean("task")[0])]]
    least, most = drawn[0].axes[0].get_xlim()
    assert -1 < least < 0
    assert 7 < most < 8


def test_bad_arguments_are_refused(adapted: Any) -> None:
    model = velocity_of(adapted)
    with pytest.raises(InputError, match="task 'inpainting' does not exist"):
        validate(model, clips(1), tasks=["inpainting"])
    with pytest.raises(InputError, match="above 0 and at most 1"):
        validate(model, clips(1), sigmas=[0.5, 0.0])
    with pytest.raises(InputError, match="no held-out clip"):
        validate(model, [])
    with pytest.raises(InputError, match="no LoRA to disable"), without_lora(build(num_layers=1)):
        pass


def test_what_is_undisturbed() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2)).train()
    model[0].eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    with undisturbed(model):
        assert not model.training
        assert not model[1].training
        assert not model(torch.ones(1, 2)).requires_grad
        torch.manual_seed(3), random.random(), np.random.rand()
    assert model[1].training
    assert not model[0].training
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index, union-attr]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_leaving_an_adapter_out_does_not_change_what_is_trained(adapted: Any) -> None:
    model = damaged(adapted, 0.3)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), "other")
    model.set_adapter(["pusa", "other"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    x, sigma, context = torch.randn(1, 4, 5, 8, 8), torch.rand(1, 5), torch.randn(1, 7, 16)
    with torch.no_grad():
        full = velocity_of(model)(x, sigma, context)
        with without_lora(model, "pusa"):
            some = velocity_of(model)(x, sigma, context)
        with without_lora(model):
            none = velocity_of(model)(x, sigma, context)
        assert velocity_of(model)(x, sigma, context).equal(full)
    assert not full.equal(some)
    assert not some.equal(none)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
