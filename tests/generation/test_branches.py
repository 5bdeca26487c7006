"""Guidance in one call of the network, and only at some noise levels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor, nn

from pusa.core import schedules, sigmas
from pusa.errors import InputError
from pusa.generation import branches
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load
from pusa.generation.provenance import regenerate
from pusa.generation.request import Generate

PROMPT = "a red circle moves left on a black background"


@contextmanager
def batches(network: nn.Module) -> Iterator[list[int]]:
    """The number of clips of each call of the network."""
    seen: list[int] = []
    handle = network.register_forward_pre_hook(
        lambda _, args, options: seen.append(len(options["hidden_states"])), with_kwargs=True
    )
    yield seen
    handle.remove()


def latents(pipe: Pipeline, **options: Any) -> Tensor:
    return pipe.generate(PROMPT, steps=3, guidance=2.0, negative_prompt="grey", **options).latents


@pytest.mark.parametrize("schedule", ["synchronous", "sliding-window,window=3,block=1"])
def test_one_call_gives_the_clip_of_two(tiny_pipe: Pipeline, schedule: str) -> None:
    with batches(tiny_pipe.transformer) as seen:
        two = latents(tiny_pipe, guidance_batch="off", schedule=schedule)
        assert set(seen) == {1}
        calls = len(seen)
        one = latents(tiny_pipe, guidance_batch="on", schedule=schedule)
    assert seen[calls:] == [2] * (calls // 2)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_auto_puts_small_calls_together(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with batches(tiny_pipe.transformer) as seen:
        latents(tiny_pipe)  # 20 tokens
        assert seen == [2, 2, 2]
        monkeypatch.setitem(branches.MOST_TOKENS, "cpu", 19)
        latents(tiny_pipe)
    assert seen[3:] == [1] * 6


def test_each_expert_puts_its_branches_together(experts_folder: Path) -> None:
    pipe = load(experts_folder, device="cpu")
    two = latents(pipe, guidance_batch="off", guidance_2=3.0)
    with batches(pipe.transformer) as high, batches(pipe.transformer_2) as low:
        one = latents(pipe, guidance_batch="on", guidance_2=3.0)
    assert len(high) + len(low) == 3
    assert set(high + low) == {2}
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_a_cache_gets_one_call_per_branch(tiny_folder: Path) -> None:
    pipe = load(tiny_folder, device="cpu")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with batches(pipe.transformer) as seen:
        latents(pipe)
    assert set(seen) == {1}
    with pytest.raises(InputError, match="guidance_batch is on, and the transformer has a cache"):
        latents(pipe, guidance_batch="on")


def test_guidance_in_an_interval_skips_calls(tiny_pipe: Pipeline) -> None:
    levels = sigmas.grid(3, tiny_pipe.defaults.shift)[:3].tolist()
    middle = f"{levels[1] - 0.01},{levels[1] + 0.01}"
    with batches(tiny_pipe.transformer) as seen:
        clip = latents(tiny_pipe, guidance_batch="off", guidance_interval=middle)
    assert len(seen) == 4
    everywhere = latents(tiny_pipe, guidance_batch="off")
    assert torch.equal(latents(tiny_pipe, guidance_batch="off", guidance_interval=(0, 1)), everywhere)
    assert not torch.equal(clip, everywhere)


def test_the_noisiest_frame_that_changes_decides(tiny_pipe: Pipeline) -> None:
    matrix = schedules.conditioned(schedules.synchronous(sigmas.grid(2, 1.0), 5), {0: 0.0})
    held = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    matrix.sigma[:, 4] = 0.8  # noisier than the others in the last step, and held
    with batches(tiny_pipe.transformer) as seen, pytest.warns(UserWarning, match="given"):
        tiny_pipe.generate(
            PROMPT,
            [Image(held), Image(held, frame=16, noise=0.8)],
            matrix=matrix,
            guidance=2.0,
            guidance_batch="off",
            guidance_interval="0,0.5",
        )
    assert len(seen) == 3


def test_the_sidecar_makes_the_clip_again(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    clip = tiny_pipe.generate(PROMPT, steps=3, guidance=2.0, guidance_batch="on", guidance_interval="0.2,0.9")
    clip.save(tmp_path / "clip.mp4")
    recipe = json.loads((tmp_path / "clip.json").read_text())
    assert (recipe["guidance_batch"], recipe["guidance_interval"]) == ("on", "0.2,0.9")
    assert torch.equal(regenerate(tmp_path / "clip.json", tiny_pipe).latents, clip.latents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_interval": "0.9,0.2"}, "guidance_interval is 0.9,0.2: give two noise levels"),
        ({"guidance_interval": "0.5"}, "guidance_interval is 0.5: give two noise levels"),
        ({"guidance_interval": (0, 2)}, "guidance_interval is 0,2: give two noise levels"),
        ({"guidance_interval": 0.5}, "guidance_interval is 0.5: give two noise levels"),
        ({"guidance_batch": "yes"}, "guidance_batch 'yes' is unknown"),
        ({"guidance": 1.0, "guidance_interval": "0,1"}, "guidance_interval has no effect"),
        ({"guidance": 1.0, "guidance_batch": "on"}, "guidance_batch has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Generate(PROMPT, **options)
