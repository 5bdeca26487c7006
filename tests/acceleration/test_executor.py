"""Clips with an acceleration: what is computed, what stays exact, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pusa.acceleration.names import Acceleration
from pusa.acceleration.running import running
from pusa.core import Call, schedules, sigmas
from pusa.errors import Cancelled, InputError
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load
from pusa.generation.provenance import regenerate
from pusa.processes import ProcessGroup
from tests.models.lora_files import truth, written

Plain = dict[str, tuple[Tensor, int]]
PROMPT = "a red circle moves left on a black background"
pytestmark = pytest.mark.filterwarnings("ignore:Some frames are given, and the model has no LoRA")
PICTURE = np.full((32, 32, 3), 90, np.uint8)
STEPS = 6
NEUTRAL = ("steps,threshold=0", "frames,threshold=0", "held,every=1", "tokens,share=1", "uniform,every=1")
ACTIVE = (
    *("steps,threshold=0.5,first=0.2", "frames,threshold=0.5,first=0.2", "held,every=3", "tokens,share=0.4"),
    *("uniform,every=2", "steps,threshold=0.5+held,every=3", "frames,threshold=0.5+held,every=3"),
)
NOTHING_TO_LEAVE_OUT = {("held,every=3", task) for task in ("text", "noisy image", "window")}
TASKS: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"conditions": [Image(PICTURE)]},
    "noisy image": {"conditions": [Image(PICTURE, noise=0.3)]},
    "staircase": {"schedule": "staircase,block=2,delay=2"},
    "window": {"schedule": "sliding-window,window=4,block=1"},
}


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def plain(pipe: Pipeline) -> Plain:
    """The latents of every task without acceleration, and the tokens that its feed-forward layers computed."""
    made = {}
    for task in TASKS:
        with counted(pipe) as rows:
            made[task] = latents(pipe, task), sum(rows)
    return made


def latents(pipe: Pipeline, task: str = "text", **options: Any) -> Tensor:
    return pipe.generate(PROMPT, steps=STEPS, guidance=2.0, seed=1, **TASKS[task], **options).latents


@contextmanager
def counted(pipe: Pipeline) -> Iterator[list[int]]:
    """The tokens that the feed-forward layers compute, in every call of one of them."""
    rows: list[int] = []
    handles = [
        block.ffn.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].shape[1]))
        for block in pipe.transformer.blocks
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_value_changes_no_bit(pipe: Pipeline, plain: Plain, name: str, task: str) -> None:
    assert torch.equal(latents(pipe, task, accelerate=name), plain[task][0])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ACTIVE)
def test_less_is_computed_and_the_sidecar_says_how_much(pipe: Pipeline, plain: Plain, name: str, task: str) -> None:
    exact, all_rows = plain[task]
    with counted(pipe) as rows:
        clip = pipe.generate(PROMPT, steps=STEPS, guidance=2.0, seed=1, **TASKS[task], accelerate=name)
    record = clip.recipe["acceleration"]
    assert record["computed"] == pytest.approx(sum(rows) / all_rows, abs=1e-4)
    assert torch.equal(clip.latents, exact) == (record["computed"] == 1)
    assert (record["computed"] == 1) == ((name, task) in NOTHING_TO_LEAVE_OUT)
    assert record["operations"] == pytest.approx(record["computed"], abs=0.1)
    if task == "image":
        assert torch.equal(clip.latents[:, :, 0], exact[:, :, 0])


def test_what_is_left_out_is_what_the_blocks_added_last(pipe: Pipeline) -> None:
    """If nothing changes between two steps but the noise level told, reuse gives the former prediction again."""
    matrix = schedules.synchronous(sigmas.grid(2), 5)
    text = pipe.encode_text([PROMPT])
    x = torch.randn(1, pipe.backbone.channels, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    held = torch.zeros(1, 5, dtype=torch.bool)
    sigma = torch.full((1, 5), 0.5)
    for name in ("steps,threshold=100,first=0", "frames,threshold=100,first=0", "uniform,every=2,first=0.5"):
        with pipe.accelerated(name, matrix) as accelerated:
            velocity = pipe.guided(1.0, accelerated=accelerated)
            context = (("cond", text), ("cond", text))
            first = velocity(x, sigma, context, Call(0, 2, torch.arange(5), held))
            again = velocity(x, sigma, context, Call(1, 2, torch.arange(5), held))
            assert accelerated is not None
            assert accelerated.accounting.fraction < 1
        torch.testing.assert_close(again, first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVE)
def test_a_clip_does_not_depend_on_those_before(pipe: Pipeline, plain: Plain, name: str) -> None:
    alone = latents(pipe, "image", accelerate=name)
    latents(pipe, "staircase", accelerate=name)
    pipe.generate(PROMPT, steps=3, frames=9, size=(48, 32), accelerate=name)
    assert torch.equal(latents(pipe, "image", accelerate=name), alone)
    assert torch.equal(latents(pipe), plain["text"][0])


@pytest.mark.parametrize("name", [*ACTIVE, "first-block,threshold=0.5", "taylorseer,every=2"])
def test_a_clip_that_is_stopped_leaves_nothing_behind(pipe: Pipeline, plain: Plain, name: str) -> None:
    alone = latents(pipe, accelerate=name)
    with pytest.raises(Cancelled):
        latents(pipe, accelerate=name, callback=lambda step: step.index < 3)

    def fails(step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(pipe, accelerate=name, callback=fails)
    assert torch.equal(latents(pipe), plain["text"][0])
    assert torch.equal(latents(pipe, accelerate=name), alone)


def test_without_guidance_and_with_loras(tiny_folder: Path, tmp_path: Path) -> None:
    pipe = load(tiny_folder, device="cpu")
    stock = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    pipe.load_lora(written(tmp_path, "diffusers", *truth(stock, outer=False, whole=False, seed=0, size=0.05)))
    exact = pipe.generate(PROMPT, steps=STEPS, guidance=1.0).latents
    for name in NEUTRAL:
        assert torch.equal(pipe.generate(PROMPT, steps=STEPS, guidance=1.0, accelerate=name).latents, exact)
    kept = pipe.generate(PROMPT, [Image(PICTURE)], steps=STEPS, accelerate="held,every=2")
    assert kept.recipe["acceleration"]["computed"] < 1


def test_two_experts_have_a_memory_each(experts_folder: Path) -> None:
    pipe = load(experts_folder, device="cpu")
    options: dict[str, Any] = {"steps": 8, "guidance": 2.0, "boundary": 0.9, "guidance_batch": "off"}
    plain = pipe.generate(PROMPT, **options)
    for name in ("steps,threshold=100,first=0", "frames,threshold=100,first=0"):
        calls: list[Any] = []
        handles = [
            network.blocks[1].register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
            for network in (pipe.transformer, pipe.transformer_2)
        ]
        clip = pipe.generate(PROMPT, **options, accelerate=name)
        for handle in handles:
            handle.remove()
        # Each expert computes its own first step, in both branches, and nothing else.
        assert [calls.count(network.blocks[1]) for network in (pipe.transformer, pipe.transformer_2)] == [2, 2]
        assert not torch.equal(clip.latents, plain.latents)
    for name in NEUTRAL:
        assert torch.equal(pipe.generate(PROMPT, **options, accelerate=name).latents, plain.latents)


def test_windows_keep_the_frames_that_stay_visible(pipe: Pipeline) -> None:
    """A frame that enters the window is computed; those that were there can be left out."""
    with counted(pipe) as rows:
        latents(pipe, "window", accelerate="frames,threshold=100,first=0")
    partly = {count for count in rows if 0 < count < 4 * 4}
    assert partly


def test_processes_that_share_a_clip_cannot_leave_out_parts_of_a_step(pipe: Pipeline) -> None:
    matrix, two = schedules.synchronous(sigmas.grid(STEPS), 5), ProcessGroup(0, 2)
    for name in ("frames", "held", "tokens", "steps+held"):
        with pytest.raises(InputError, match="computes parts of a step, and 2 processes share the clip: use steps or"):
            running(Acceleration.parse(name), matrix, pipe.backbone, [pipe.transformer], two)


def test_shares_for_each_step_must_fit(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"3 shares of tokens, and the matrix has 6 steps"):
        latents(pipe, accelerate="tokens,share=1/0.5/0.5")
    assert not torch.equal(latents(pipe, accelerate="tokens,share=1/1/0.5/0.5/0.5/0.5"), latents(pipe))


def test_an_accelerated_clip_is_made_again_and_varied(pipe: Pipeline, tmp_path: Path) -> None:
    clip = pipe.generate(PROMPT, steps=STEPS, guidance=2.0, accelerate="frames,threshold=0.5")
    clip.save(tmp_path / "clip.mp4")
    again = regenerate(tmp_path / "clip.json", pipe)
    assert torch.equal(again.latents, clip.latents)
    assert again.recipe["acceleration"] == clip.recipe["acceleration"]
    plain = regenerate(tmp_path / "clip.json", pipe, changes={"accelerate": "none"})
    assert torch.equal(plain.latents, pipe.generate(PROMPT, steps=STEPS, guidance=2.0).latents)
    other = regenerate(tmp_path / "clip.json", pipe, changes={"accelerate": "held,every=2", "seed": 3})
    assert other.recipe["accelerate"] == "held,every=2"


def test_memory_is_counted(pipe: Pipeline) -> None:
    matrix = schedules.synchronous(sigmas.grid(STEPS), 5)
    found = {}
    for name in ("steps,threshold=0", "steps,threshold=0.5", "frames,threshold=0.5"):
        settings = pipe.limits.settings(frames=17, size=(32, 32), steps=STEPS, guidance=2.0, accelerate=name)
        text = pipe.encode_text([PROMPT, ""])
        with pipe.accelerated(name, matrix) as accelerated:
            assert accelerated is not None
            pipe.sample(matrix, (text[:1], text[1:]), settings, known={}, accelerated=accelerated)
            found[name] = accelerated.accounting.kept_bytes
    blocks, width, tokens, branches = len(pipe.transformer.blocks), 32, 5 * 4, 2
    one = tokens * width * 4 * branches
    assert list(found.values()) == [0, one, one * blocks]
