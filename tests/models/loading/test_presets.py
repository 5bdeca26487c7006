"""Presets name real options, and each says what the others do not."""

from __future__ import annotations

import hashlib

import pytest

from pusa.cli.shared.arguments import lora
from pusa.cli.shared.options import Model, Sampling, with_preset
from pusa.errors import InputError
from pusa.models import hub
from pusa.models.loading.presets import PRESETS, named


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_one_could_type(name: str) -> None:
    options = named(name).options()
    known = {*vars(Model()), *vars(Sampling()), "noise"}
    assert set(options) <= known
    for flag in ("lora", "lora_high", "lora_low"):
        for text in options.get(flag, ()):
            path, scale = lora(text, 9.0)
            assert hub.names_a_file(str(path))
            assert scale in (1.0, 1.4, 1.5)
    model, sampling, noise = with_preset(Model(preset=name), Sampling(), None)
    assert (model.source, sampling.steps, noise) == (options["model"], options["steps"], options["noise"])
    assert sampling.negative_prompt == options["negative_prompt"]
    assert [expert for _, _, expert in model.loras()] == (
        [None] * len(model.lora) + ["high"] * len(model.lora_high) + ["low"] * len(model.lora_low)
    )


def test_the_recommended_settings() -> None:
    """Strengths, guidance, steps and noise of the official pages; two steps for each expert when there are four."""
    wan21, wan22, fast = named("pusa-wan21"), named("pusa-wan22"), named("pusa-wan22-4step")
    assert (wan21.lora[0][-4:], wan21.guidance, wan21.shift, wan21.steps) == (":1.4", 3.0, 5.0, 10)
    assert (wan22.lora_high[0][-4:], wan22.lora_low[0][-4:], wan22.noise) == (":1.5", ":1.4", 0.2)
    assert (fast.guidance, fast.steps, fast.boundary) == (1.0, 4, 0.875)


def test_what_is_typed_wins() -> None:
    typed = Model(preset="pusa-wan22", model="mine", lora_high=("a.safetensors:1.2",))
    model, sampling, noise = with_preset(typed, Sampling(steps=8, guidance=1.0), 0.0)
    assert (model.source, model.lora_high, model.lora_low) == ("mine", ("a.safetensors:1.2",), ())
    assert (sampling.steps, sampling.guidance, sampling.shift, noise) == (8, 1.0, 5.0, 0.0)
    model, sampling, noise = with_preset(Model(), Sampling(), None)
    assert (model, sampling, noise, model.source) == (Model(), Sampling(negative_prompt=""), 0.0, "tiny")
    for typed in ("", "blue"):
        _, sampling, _ = with_preset(Model(preset="paper"), Sampling(negative_prompt=typed), None)
        assert sampling.negative_prompt == typed


def test_every_official_preset_has_the_negative_prompt_of_the_official_scripts() -> None:
    """By its length and hash: the scripts and the demo of the reference give the same 392 characters."""
    text = {preset.negative_prompt or "" for preset in PRESETS.values()}
    assert [hashlib.sha256(one.encode()).hexdigest()[:16] for one in text] == ["e488b06083693241"]


def test_an_unknown_preset() -> None:
    with pytest.raises(InputError, match=r"no preset 'pusa-wan23': did you mean 'pusa-wan2[12]'\?"):
        named("pusa-wan23")
    with pytest.raises(InputError, match="there are pusa-wan21, "):
        named("best")
