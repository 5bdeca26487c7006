"""The model card is one that the hub reads, and says what the run was."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from pusa.adapters.base import Adapter
from pusa.adapters.full import AllWeights
from pusa.adapters.lora import Lora
from pusa.models.wan.backbone import WanBackbone
from pusa.training import model_card
from pusa.training.costs import Costs
from pusa.training.model_card import Facts
from pusa.training.validation import Losses, Validation

FACTS = Facts(
    name="my_run",
    base="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    output="lora.safetensors",
    card=Lora(32, ("to_q",)).card,
    names=WanBackbone.hub_names,
    samples=3860,
    held_out=16,
    settings={"tasks": {"text-to-video": 0.5, "image-to-video": 0.5}, "learning rate": 1e-4, "average": None},
    previews=[('a "red" circle: moves', "previews/step_000900/image-to-video_0.mp4"), ("", "previews/b.mp4")],
)
LORA = Lora(32, ("to_q",)).card
COSTS = Costs(900, 7200, 10**6, 10**15, 10**15, 3600.0, 0.0, 1, "H100", clips=3860, price=2.0)


def result(base: bool = True) -> Validation:
    cells = torch.full((2, 3, 5), 0.5, dtype=torch.float64)
    tasks, levels = ("text-to-video", "image-to-video"), (0.1, 0.5, 0.9)
    mine, others = (Losses(tasks, levels, factor * cells, torch.ones_like(cells)) for factor in (1, 2))
    return Validation(900, 16, mine, others if base else None)


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)


def test_the_hub_reads_it(tmp_path: Path) -> None:
    path = model_card.write(tmp_path, FACTS, COSTS, result())
    assert path == tmp_path / "README.md"
    read = ModelCard.load(path)
    data = read.data.to_dict()
    assert data["base_model"] == FACTS.base
    assert data["base_model_relation"] == "adapter"
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "diffusers",
        "image-to-video",
    )
    assert {"lora", "wan", "pusa", "template:diffusion-lora", "text-to-video"} <= set(data["tags"])
    assert data["widget"][0] == {"text": 'a "red" circle: moves', "output": {"url": FACTS.previews[0][1]}}
    for part in ("| rank | 32 |", "| training samples | 3860 |", "text-to-video 0.5", "3,860", "$2.00", "about $500",
                 "| image-to-video | 0.5000 | 1.0000 | -50.0% |"):  # fmt: skip
        assert part in read.text
    assert "None" not in read.text


@pytest.mark.parametrize("base", [FACTS.base, "tiny-base", "/some/folder"])
@pytest.mark.parametrize("adapter", [Lora(8, ("to_q",)), AllWeights()], ids=["lora", "full"])
def test_its_snippets_are_whole(base: str, adapter: Adapter) -> None:
    output, is_lora = adapter.output, isinstance(adapter, Lora)
    text = model_card.text(Facts("my_run", base, output, adapter.card, WanBackbone.hub_names))
    snippets = blocks(text, "python")
    assert len(snippets) == 1
    ast.parse(snippets[0])
    assert json.dumps(output) in snippets[0]
    nodes = [json.loads(block) for block in blocks(text, "json")]
    assert [node["2"]["class_type"] for node in nodes] == ["LoraLoaderModelOnly"] * is_lora
    assert ("base_model" in ModelCard(text).data.to_dict()) == (base == FACTS.base)
    assert ("lora" in ModelCard(text).data.tags) == is_lora


def test_the_snippet_for_the_embedded_model_names_a_folder_that_exists() -> None:
    facts = Facts("x", "tiny-base", "lora.safetensors", LORA, WanBackbone.hub_names)
    snippet = blocks(model_card.text(facts), "python")[0]
    from pusa import embedded

    assert "WanPipeline.from_pretrained(embedded.folder()" in snippet
    assert embedded.folder().is_dir()


def test_what_is_not_known_is_left_out() -> None:
    text = model_card.text(Facts("x", "tiny-base", "lora.safetensors", LORA))
    assert "## Validation" not in text
    assert "## Cost" not in text
    assert "## Samples" not in text
    assert "diffusers import" not in text
    assert "| text-to-video | 0.5000 | – | – |" in model_card.text(FACTS, validation=result(base=False))
