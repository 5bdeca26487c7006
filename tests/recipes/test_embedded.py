"""The recipes of the embedded base: an interrupted run ends as an uninterrupted one; the training shortcut is exact."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

RECIPES = Path(__file__).parents[2] / "recipes" / "embedded"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("base", "encode", "loop", "muon"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def _run(out: Path, steps: int, stop_at: int | None = None) -> dict[str, Tensor]:
    from loop import train

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))

    def loss(step: int, rng: torch.Generator) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 6, generator=rng)
        return (model(x) - x.flip(1)).square().mean()

    return train(out, model, loss, steps=steps, lr=1e-2, seed=7, muon=lambda n: n == "0.weight", save_every=4)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", 12, stop_at=6)
    resumed = _run(tmp_path / "cut", 12)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    fresh = _run(tmp_path / "other", 11)
    assert not all(torch.equal(whole[name], fresh[name]) for name in whole)


def test_muon_makes_updates_orthogonal() -> None:
    from muon import orthogonal

    update = orthogonal(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(update.flatten(1))
    assert update.shape == (8, 3, 3, 3)
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3


def test_one_pad_token_with_a_bias_equals_all_of_the_padding() -> None:
    """Training looks at 16 text positions; stock pipelines at 512."""
    from base import TextToVideo, build_tokenizer, tokenize

    torch.manual_seed(0)
    model, tokenizer = TextToVideo().eval(), build_tokenizer()
    texts = ["a red circle moves left on a black background", ""]
    x, t = torch.randn(2, 32, 2, 4, 4), torch.tensor([300.0, 700.0])
    with torch.no_grad():
        context = model.context(*tokenize(tokenizer, texts))
        short = model.transformer(x, t, context, return_dict=False)[0]
        whole = tokenizer(texts, padding="max_length", max_length=512, return_tensors="pt")
        hidden = model.text_encoder(whole.input_ids, whole.attention_mask).last_hidden_state
        model.padding.bias = None
        long = model.transformer(x, t, hidden * whole.attention_mask[..., None], return_dict=False)[0]
        cut = model.transformer(x, t, context, return_dict=False)[0]
    assert (short - long).abs().max() < 1e-5 < (cut - long).abs().max()


def test_the_tokenizer_knows_the_world_and_loses_no_other_text() -> None:
    from base import build_tokenizer, captions

    tokenizer = build_tokenizer()
    assert len(captions()) == 4 * 6 * 4 * 8 + 2 * 6
    assert max(len(ids) for ids in tokenizer(captions()).input_ids) < 16
    assert tokenizer.unk_token_id not in tokenizer("Ünïcode, 猫 and Emoji 🎬!").input_ids
    assert tokenizer("A RED circle").input_ids == tokenizer("a red circle").input_ids


def test_stratified_draws_fill_the_interval() -> None:
    from base import stratified

    draws = stratified(32, torch.Generator().manual_seed(1))
    assert np.array_equal(np.sort((draws * 32).long().numpy()), np.arange(32))
