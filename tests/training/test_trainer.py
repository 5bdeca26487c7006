"""The training loop: what is learnt, what comes out, and that a run may be ended at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pusa.core.objectives import bell, flow_matching_loss
from pusa.errors import Cancelled, InputError, PusaError
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.training import random_draws
from pusa.training.data.batches import indices
from pusa.training.run_folder import Run, read
from pusa.training.trainer import Hook, Result, train
from tests.training import small

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(out: Path, *, components: Any = None, samples: Any = None, options: Any = None, **changes: Any) -> Result:
    return train(
        small.config(**changes),
        out,
        components=components or small.components(),
        samples=small.Samples() if samples is None else samples,
        **(options or {}),
    )


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock said."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in log(out)]


def player(checkpoint: Path) -> dict[str, Any]:
    """The state of the only player in a checkpoint."""
    (state,) = read(checkpoint).state()["players"].values()
    return state


def weights(out: Path) -> dict[str, Tensor]:
    """The trained numbers in the newest checkpoint."""
    return player(max((out / "checkpoints").iterdir()))["weights"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def says(transformer: Any) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    x, text = torch.randn(1, 4, 3, 4, 4, generator=rng), torch.randn(1, 4, 16, generator=rng)
    with torch.no_grad():
        return transformer(x, torch.tensor([[0.0, 400.0, 900.0]]), text, return_dict=False)[0]


# ---------------------------------------------------------------------------------------------------- what is learnt


def test_the_first_loss_is_the_methods_mean_over_passes(tmp_path: Path) -> None:
    settings = {"accumulate": 3, "seed": 7, "caption_dropout": 0.5}
    run(tmp_path, train={**settings, "steps": 1}, sigma={"weighting": "bell"})
    config, samples, base = small.config(sigma={"weighting": "bell"}), small.Samples(), small.components().transformer
    losses = []
    for lane in range(3):
        clips = [samples[i] for i in indices(0, lane, 3, 2, samples.buckets, 7)]
        x0 = torch.stack([clip.latents for clip in clips])
        silent = random_draws.dropped(0, lane, 2, 0.5, 7)
        context = torch.stack([torch.zeros(4, 16) if s else c.context for s, c in zip(silent, clips, strict=True)])
        sigma = random_draws.sigmas_of(0, lane, 2, 3, config.sigma, 7).sigma
        with torch.no_grad():
            losses.append(
                flow_matching_loss(
                    lambda x, s, c: base(x, 1000 * s, c, return_dict=False)[0],
                    x0,
                    random_draws.noise_of(0, lane, x0.shape, 7),
                    sigma,
                    context,
                    weight=bell(sigma),
                )
            )
    (record,) = log(tmp_path)
    assert record["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)
    assert (record["step"], record["clips"], record["tokens"]) == (1, 6, 6 * 3 * 4)
    assert sum(record["frames_by_sigma"]) == 6 * 3


def test_it_learns(tmp_path: Path) -> None:
    still = small.Samples(2, change=lambda i, x: torch.full_like(x, 3.0 * (-1) ** i))
    run(tmp_path, samples=still, train={"steps": 40, "lr": 2e-2, "ema": None}, lora={"targets": ["proj_out"]})
    losses = [record["loss"] for record in log(tmp_path)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_schedule_and_the_clipping(tmp_path: Path) -> None:
    run(tmp_path / "a", train={"clip": None})
    run(tmp_path / "b", train={"clip": 1e-3})
    a, b = log(tmp_path / "a"), log(tmp_path / "b")
    assert [r["lr"] for r in a[:4]] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert a[-1]["lr"] < 1e-3
    assert a[0]["grad_norm"] == b[0]["grad_norm"] > 1e-3
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_less_memory_gives_the_same_weights(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", train={"gradient_checkpointing": True, "workers": 3})
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_another_seed_is_another_training(tmp_path: Path) -> None:
    run(tmp_path / "a", train={"seed": 1})
    run(tmp_path / "b", train={"seed": 2})
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_without_captions_they_have_no_say(tmp_path: Path) -> None:
    class Renamed(small.Samples):
        def __getitem__(self, i: Any) -> Any:
            sample = super().__getitem__(i)
            sample.context = sample.context + 1
            return sample

    for dropout, equal in ((1.0, True), (0.0, False)):
        for name, samples in (("a", small.Samples()), ("b", Renamed())):
            run(tmp_path / f"{name}{dropout}", samples=samples, train={"caption_dropout": dropout, "steps": 3})
        assert same(weights(tmp_path / f"a{dropout}"), weights(tmp_path / f"b{dropout}")) is equal


def test_bf16_computes_in_bf16_and_keeps_adapters_in_fp32(tmp_path: Path) -> None:
    exact = run(tmp_path / "fp32")
    half = small.components()
    half.transformer.to(torch.bfloat16)
    rounded = run(tmp_path / "bf16", components=half, train={"precision": "bf16"})
    assert all(w.dtype == torch.float32 for w in weights(tmp_path / "bf16").values())
    assert half.transformer.blocks[0].attn1.to_k.weight.dtype == torch.bfloat16
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)


# ----------------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("rslora", [False, True])
def test_the_lora_file_says_what_the_trained_model_says(rslora: bool, tmp_path: Path) -> None:
    trained, fresh = small.components(), small.components().transformer
    settings = {"rank": 4, "alpha": 6.0, "rslora": rslora, "targets": ["attn1.to_q", "ffn.net.0.proj"]}
    tasks = {"pattern": "tasks", "tasks": {"text-to-video": 0.5, "image-to-video": 0.5}}
    result = run(tmp_path, components=trained, lora=settings, train={"ema": None}, sigma=tasks)
    assert result.output == tmp_path / "lora.safetensors"
    before = says(fresh)
    loaded = runtime.load(fresh, result.output)
    assert (loaded.ranks, loaded.modules) == ((4,), 4)
    torch.testing.assert_close(says(fresh), says(trained.transformer), atol=1e-6, rtol=1e-5)
    assert (says(fresh) - before).abs().max() > 1e-4
    with safe_open(result.output, "pt") as file:
        facts = file.metadata()
    assert facts["pusa.base"] == "small"
    assert facts["pusa.pattern"] == "tasks"
    assert json.loads(facts["pusa.tasks"]) == tasks["tasks"]
    assert json.loads(facts["pusa.step"]) == 12
    assert len(facts["pusa.config"]) == 64
    assert not any(p.requires_grad for p in trained.transformer.parameters())


def test_full_fine_tuning_writes_what_stock_diffusers_loads(tmp_path: Path) -> None:
    trained = small.components()
    half = trained.transformer.blocks[0].ffn.to(torch.bfloat16)
    result = run(tmp_path, components=trained, lora=None, train={"ema": None})
    stock, report = WanTransformer3DModel.from_pretrained(result.output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    written = load_file(result.output / "diffusion_pytorch_model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in written.items()}
    assert {name for name, kind in kinds.items() if kind != torch.float32} == {
        f"blocks.0.ffn.{name}" for name, _ in half.named_parameters()
    }, "as the weights came"
    half.to(torch.bfloat16).float()
    upgraded = VectorWanTransformer3DModel.upgrade(stock.eval())
    assert torch.equal(says(upgraded), says(trained.transformer))
    assert (says(upgraded) - says(small.components().transformer)).abs().max() > 1e-3


def test_with_an_average_the_average_is_handed_out(tmp_path: Path) -> None:
    result = run(tmp_path, train={"ema": 0.9})
    average = player(tmp_path / "checkpoints" / "step_000012")["averages"]["ema"]
    written = load_file(result.output)["diffusion_model.blocks.1.self_attn.q.lora_A.weight"]
    assert torch.equal(written, average["blocks.1.attn1.to_q.lora_A.pusa.weight"])
    assert not torch.equal(written, weights(tmp_path)["blocks.1.attn1.to_q.lora_A.pusa.weight"])


def test_post_hoc_snapshots_outlive_their_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, train={"ema": "post-hoc"}, save={"every": 3, "keep": 1})
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert len(list((tmp_path / "snapshots").iterdir())) == 4


def test_hooks_see_what_would_be_handed_out_and_the_log_what_was_measured(tmp_path: Path) -> None:
    seen = []

    class Measure:
        def step(self, record: dict[str, Any]) -> None:
            record["clips/s"] = 1.5

    def look(step: int, transformer: Any, folder: Path) -> None:
        torch.manual_seed(step)  # what a hook draws changes nothing
        seen.append((step, folder, says(transformer)))

    components = small.components()
    options = {"hooks": [Hook(5, look)], "tracker": Measure()}
    result = run(tmp_path / "a", components=components, options=options)
    run(tmp_path / "b")
    assert [(step, folder) for step, folder, _ in seen] == [
        (5, tmp_path / "a"),
        (10, tmp_path / "a"),
        (12, tmp_path / "a"),
    ]
    fresh = small.components().transformer
    runtime.load(fresh, result.output)
    torch.testing.assert_close(seen[-1][2], says(fresh), atol=1e-6, rtol=1e-5)
    assert {record["clips/s"] for record in log(tmp_path / "a")} == {1.5}
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


# ---------------------------------------------------------------------------------------------------------- bad input


def refused(match: str, out: Path, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        run(out, **options)
    assert "\n" not in str(caught.value)


def test_a_lora_that_would_train_nothing(tmp_path: Path) -> None:
    for targets, hint in (
        (["to_q", "to_w"], "did you mean 'to_"),
        (["qkv"], "choose from .*ffn.net.2"),
        (["attn1"], ""),
    ):
        refused(f"would train nothing at '{targets[-1]}'.*{hint}", tmp_path, lora={"targets": targets})
    loaded = small.components()
    run(tmp_path / "a", components=loaded)
    refused("has the LoRA pusa already", tmp_path / "b", components=loaded)
    refused("no clips", tmp_path / "c", samples=small.Samples(0))
    refused("clip0 is both held out", tmp_path / "d", options={"held_out": small.Samples(1)})


def bad(*clips: int) -> small.Samples:
    return small.Samples(change=lambda i, x: x * float("nan") if i in clips else x)


def test_a_clip_of_nans_is_named_and_stops_the_run(tmp_path: Path) -> None:
    refused(r"Step \d gave no finite loss or gradient on .*clip5\.mp4", tmp_path, samples=bad(5))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_clip_of_nans_is_skipped_on_request_and_named_in_the_log(tmp_path: Path) -> None:
    result = run(tmp_path, samples=bad(5), train={"on_nan": "skip", "accumulate": 2, "batch": 1})
    skipped = {record["step"]: record["skipped"] for record in log(tmp_path) if "skipped" in record}
    assert result.skipped == tuple(skipped)
    assert len(skipped) == 3  # 12 steps of 2 clips are 3 epochs of 8
    assert all(names == ["clip5.mp4 (caption 5)"] for names in skipped.values())
    assert all(record["loss"] is None for record in log(tmp_path) if "skipped" in record)
    assert all(w.isfinite().all() for w in weights(tmp_path).values())


def test_a_diverged_run_ends_though_it_may_skip(tmp_path: Path) -> None:
    with pytest.raises(PusaError, match="19 steps before"):
        run(tmp_path, samples=bad(*range(8)), train={"on_nan": "skip", "steps": 50})


def test_changed_settings_are_refused_by_name_unless_forced(tmp_path: Path) -> None:
    run(tmp_path, train={"steps": 4})
    refused(r"step 4 .*train\.steps was 4 and is 12", tmp_path)
    refused(r"\(train\.lr was 0\.01 and is 0\.02\)", tmp_path, train={"steps": 4, "lr": 2e-2})
    refused("train.accumulate x processes was 1 and is 2", tmp_path, train={"steps": 4, "accumulate": 2})
    refused('clips was "8 samples .* and is "9 samples ', tmp_path, train={"steps": 4}, samples=small.Samples(9))
    assert run(tmp_path, train={"steps": 4}, data={"path": "moved"}).first == 4, "the same clips in another place"
    other = small.components()
    other.fingerprint = "another"
    refused('model was "small" and is "another"', tmp_path, train={"steps": 4}, components=other)
    result = run(tmp_path, train={"lr": 2e-2}, options={"force": True})
    assert result.first == 4
    assert [record["step"] for record in log(tmp_path)] == list(range(1, 13))
    run(tmp_path, train={"lr": 2e-2}, save={"every": 2})  # what decides no weight may change


def test_other_weights_cannot_be_forced(tmp_path: Path) -> None:
    run(tmp_path, train={"steps": 4})
    refused("has other trained weights", tmp_path, lora={"targets": ["to_k"]}, options={"force": True})
    refused("averages", tmp_path, train={"ema": None}, options={"force": True})


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path, {}):
        refused(f"in use by process {os.getpid()}", tmp_path)


def test_other_players_cannot_be_forced(tmp_path: Path) -> None:
    run(tmp_path, train={"steps": 4})
    state = state_of(tmp_path / "checkpoints" / "step_000004")
    state["players"]["critic"] = state["players"]["model"]
    write_state(tmp_path, state)
    refused("has the players model, critic, and this training has model", tmp_path, options={"force": True})


# ------------------------------------------------------------------------------------------------------------- ending


def state_of(checkpoint: Path) -> dict[str, Any]:
    return read(checkpoint).state()


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Replace the newest checkpoint by one of the same step and facts with this state."""
    checkpoint = read(max((out / "checkpoints").iterdir()))
    with Run.open(out, checkpoint.facts) as opened:
        opened.save(checkpoint.step, state, lambda folder: None, keep=None)


def test_a_checkpoint_from_before_there_were_players_is_resumed(tmp_path: Path) -> None:
    for name in "ab":
        run(tmp_path / name, train={"steps": 5, "schedule": "constant"})
    state = state_of(tmp_path / "a" / "checkpoints" / "step_000005")
    write_state(tmp_path / "a", {**state["players"]["model"], "skipped_in_a_row": state["skipped_in_a_row"]})
    for name in "ab":
        assert run(tmp_path / name, train={"steps": 9, "schedule": "constant"}).first == 5
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    written, steps = load_file(first.output), curve(tmp_path)
    first.output.unlink()
    again = run(tmp_path)
    assert (again.first, again.steps, again.loss) == (12, 12, None)
    assert same(load_file(again.output), written)
    assert curve(tmp_path) == steps


def test_a_run_of_constant_rate_may_be_made_longer_but_not_shorter(tmp_path: Path) -> None:
    constant = {"schedule": "constant", "workers": 2}
    run(tmp_path / "a", train={**constant, "steps": 5})
    assert run(tmp_path / "a", train={**constant, "steps": 9}).first == 5
    run(tmp_path / "b", train={**constant, "steps": 9})
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    refused("already trained to step 9, beyond train.steps = 7", tmp_path / "a", train={**constant, "steps": 7})


class Signals:
    """A tracker that sends this process signals during a step."""

    def __init__(self, at: int, *numbers: int) -> None:
        self.at, self.numbers = at, numbers

    def step(self, record: dict[str, Any]) -> None:
        for number in self.numbers if record["step"] == self.at else ():
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_the_step_and_goes_on_to_the_same_weights(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"train": {"ema": "post-hoc", "workers": 2}, "save": {"every": 4}}
    seen: list[int] = []
    before = signal.getsignal(number)
    options = {"tracker": Signals(6, number), "hooks": [Hook(3, lambda step, *_: seen.append(step))]}
    with pytest.raises(Cancelled, match="after step 6 of 12, and a checkpoint is written; rerun the command to resume"):
        run(tmp_path / "a", options=options, **settings)
    assert "will stop after this step" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    assert seen == [3], "nothing more is begun"
    assert [p.name for p in Run.open(tmp_path / "a", {}, force=True).checkpoints] == ["step_000004", "step_000006"]
    assert len(log(tmp_path / "a")) == 6
    assert run(tmp_path / "a", options={"tracker": Signals(12, number)}, **settings).first == 6, "the last step counts"
    run(tmp_path / "b", **settings)
    a, b = (player(tmp_path / name / "checkpoints" / "step_000012") for name in "ab")
    assert same(a["weights"], b["weights"])
    assert [str(a[kind]) for kind in ("averages", "optimiser")] == [str(b[kind]) for kind in ("averages", "optimiser")]
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert len({*os.listdir(tmp_path / "a/snapshots")} ^ {*os.listdir(tmp_path / "b/snapshots")}) == 0


def test_a_second_interruption_ends_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, options={"tracker": Signals(6, signal.SIGINT, signal.SIGINT)})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000004"]
    assert run(tmp_path).first == 4


def test_in_a_thread_it_trains_without_signal_handlers(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, tmp_path, train={"steps": 2}).result().steps == 2


def killed(folder: Path, settings: dict[str, Any], kills: list[float | str]) -> list[Any]:
    command = [sys.executable, "-m", "tests.training.killing", str(folder), json.dumps(settings), json.dumps(kills)]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=root, env=environment, timeout=3000)
    deaths: list[Any] = json.loads((folder / "deaths.json").read_text())
    assert [signal for signal, _ in deaths] == [9] * len(kills) + [0]
    return deaths


def check_killed(tmp_path: Path, settings: dict[str, Any], kills: list[float | str]) -> None:
    deaths = killed(tmp_path, settings, kills)
    assert len({str(reached) for _, reached in deaths}) > 2, "the kills hit different stages"
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for kind in ("weights", "averages", "optimiser"):
        a, b = (player(max((tmp_path / n / "checkpoints").iterdir()))[kind] for n in ("killed", "whole"))
        assert str(a) == str(b)
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert same(*(load_file(tmp_path / name / "lora.safetensors") for name in ("killed", "whole")))


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    check_killed(
        tmp_path,
        {"train": {"steps": 24, "ema": "post-hoc", "workers": 2}, "save": {"every": 3}},
        [4.5, "state", "flush", "rename"],
    )


@pytest.mark.slow
def test_killed_twenty_times_at_random(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    kills = [6 + 9 * float(torch.rand((), generator=rng)) for _ in range(20)]
    check_killed(tmp_path, {"train": {"steps": 400, "workers": 2}, "save": {"every": 5}}, [*kills])


def test_a_full_disk_leaves_a_run_that_goes_on(tmp_path: Path, small_disk: Path) -> None:
    filler, out = small_disk / "filler", small_disk / "run"

    def fill(step: int, *_: Any) -> None:
        if step == 8:
            filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 8192))

    with pytest.raises(InputError, match=r"step_000008 \(the last good checkpoint is step_000004\): the disk is full"):
        run(out, options={"hooks": [Hook(1, fill)]})
    filler.unlink()
    assert run(out).first == 4
    run(tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole"))
    assert curve(out) == curve(tmp_path / "whole")
