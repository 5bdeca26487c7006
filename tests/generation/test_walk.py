"""Work on the text is done once per clip, and nothing of it outlives the clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from pusa.core.sampler import Step
from pusa.errors import Cancelled
from pusa.generation.pipeline import Pipeline, load
from tests.models.lora_files import truth, written

PROMPT = "a red circle moves left on a black background"


@contextmanager
def counted(network: nn.Module) -> Iterator[Counter[str]]:
    """Counts the calls of the first block's layers for text keys and for queries."""
    calls: Counter[str] = Counter()
    attention = network.blocks[0].attn2
    handles = [
        layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, layer in (("key", attention.to_k), ("query", attention.to_q))
    ]
    yield calls
    for handle in handles:
        handle.remove()


def test_a_clip_computes_the_keys_of_both_texts_once(tiny_pipe: Pipeline) -> None:
    with counted(tiny_pipe.transformer) as calls:
        tiny_pipe.generate([PROMPT, "a blue square"], steps=3, guidance=2.0, guidance_batch="off")
    assert calls == {"key": 4, "query": 12}
    assert tiny_pipe.transformer.text_memory is None


def test_each_expert_keeps_its_own(experts_folder: Path) -> None:
    pipe = load(experts_folder, device="cpu")
    with counted(pipe.transformer) as high, counted(pipe.transformer_2) as low:
        pipe.generate(PROMPT, steps=4, guidance=2.0, guidance_batch="off")
    assert high == {"key": 2, "query": 4}
    assert low == {"key": 2, "query": 4}


def test_a_stopped_clip_leaves_nothing(tiny_pipe: Pipeline) -> None:
    with pytest.raises(Cancelled):
        tiny_pipe.generate(PROMPT, steps=3, callback=lambda step: False)
    assert tiny_pipe.transformer.text_memory is None
    assert tiny_pipe.transformer.rope.kept is None


def test_a_strength_that_changes_during_a_clip_reaches_the_text(tiny_folder: Path, tmp_path: Path) -> None:
    pipe = load(tiny_folder, device="cpu")
    file = written(tmp_path, "diffusers", *truth(pipe.transformer, outer=False, whole=False, seed=1, size=0.05))
    pipe.load_lora(file, 0.0, name="style")
    seen: list[torch.Tensor] = []

    def change(step: Step) -> None:
        seen.append(step.latents)
        pipe.set_lora("style", 1.0)

    with counted(pipe.transformer) as calls:
        pipe.generate(PROMPT, steps=3, guidance=1.0, callback=change)
    assert calls["key"] == 3
    pipe.set_lora("style", 0.0)
    plain: list[torch.Tensor] = []
    pipe.generate(PROMPT, steps=3, guidance=1.0, callback=lambda step: plain.append(step.latents))
    assert torch.equal(seen[0], plain[0])
    assert not torch.equal(seen[1], plain[1])
