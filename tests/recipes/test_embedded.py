"""The recipes of the embedded base: an interrupted run ends as an uninterrupted one; the training shortcut is exact."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pusa.embedded import world
from pusa.media.videos import read_video

RECIPES = Path(__file__).parents[2] / "recipes" / "embedded"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("adopt", "base", "clips", "data", "decoder", "encode", "linear", "loop", "measure", "muon", "report"):
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


def test_processes_train_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    """Two processes with a batch each end as one process with both."""
    (tmp_path / "job.py").write_text(
        f"import sys; sys.path.insert(0, {str(RECIPES)!r})\n"
        "import pathlib, torch\n"
        "from loop import join, train\n"
        "rank, processes = join()\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Linear(3, 1)\n"
        "x = torch.tensor([[1.0, 2.0, 3.0], [3.0, -1.0, 0.5]])\n"
        "mine = x if processes == 1 else x[rank : rank + 1]\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "loss = lambda step, rng: model(mine).square().mean()\n"
        "weights = train(out, model, loss, steps=3, lr=0.1, seed=0, warmup=1)\n"
        "torch.save(weights, out / f'weights{rank}.pt')\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for count, name in ((1, "one"), (2, "two")):
        subprocess.run([*launcher, str(count), str(tmp_path / "job.py"), str(tmp_path / name)], check=True, timeout=600)
    files = [tmp_path / "one" / "weights0.pt", tmp_path / "two" / "weights0.pt", tmp_path / "two" / "weights1.pt"]
    alone, first, second = (torch.load(path) for path in files)
    for name in alone:
        torch.testing.assert_close(first[name], alone[name])
        assert torch.equal(first[name], second[name])


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
    model, tokenizer = TextToVideo(12).eval(), build_tokenizer()
    texts = ["a red circle moves left on a black background", ""]
    x, t = torch.randn(2, 12, 2, 4, 4), torch.tensor([300.0, 700.0])
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


def test_a_wider_transformer_begins_as_the_narrow_one() -> None:
    from adopt import rename, widen
    from base import TextToVideo, build_tokenizer, tokenize

    torch.manual_seed(0)
    narrow = TextToVideo(12, num_attention_heads=4, ffn_dim=64, num_layers=3).eval()
    small = narrow.transformer
    with torch.no_grad():
        for block in small.blocks:  # random blocks hardly change the stream
            for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
                layer.weight *= 3
    x, t = torch.randn(2, 12, 2, 8, 8), torch.tensor([300.0, 700.0])
    told = tokenize(build_tokenizer(), ["a red circle moves left on a black background", ""])

    def velocity(model: TextToVideo) -> Tensor:
        with torch.no_grad():
            return model.transformer(x, t, narrow.context(*told), return_dict=False)[0]

    def likeness(wide: TextToVideo) -> float:
        wide.padding.bias = narrow.padding.bias
        return float(torch.corrcoef(torch.stack([velocity(wide).flatten(), velocity(narrow).flatten()]))[0, 1])

    kept = {"blocks.0.": "blocks.0.", "blocks.2.": "blocks.1."}
    fewer = {new: value for name, value in small.state_dict().items() if (new := rename(name, kept)) is not None}
    wide = TextToVideo(12, num_attention_heads=6, ffn_dim=96, num_layers=3).eval()
    chance = likeness(wide)
    widen(wide, small.state_dict(), small.patch_embedding(x).flatten(2).movedim(1, 2).flatten(0, 1))
    shorter = TextToVideo(12, num_attention_heads=4, ffn_dim=64, num_layers=2)
    shorter.transformer.load_state_dict(fewer)
    assert abs(chance) < 0.3
    assert likeness(wide) > 0.9
    assert torch.equal(shorter.transformer.blocks[1].ffn.net[2].weight, small.blocks[2].ffn.net[2].weight)


def test_stratified_draws_fill_the_interval() -> None:
    from base import stratified

    draws = stratified(32, torch.Generator().manual_seed(1))
    assert np.array_equal(np.sort((draws * 32).long().numpy()), np.arange(32))


def test_clips_of_the_world_are_written_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clips

    monkeypatch.setattr(sys, "argv", ["clips.py", "--out", str(tmp_path), "--count", "2"])
    clips.main()
    for index, kind in enumerate(("shape", "camera")):
        scene = world.sample(clips.FIRST_SEED + index, kind=kind)  # type: ignore[arg-type]
        frames, fps = read_video(tmp_path / f"{index:05d}.mp4")
        assert fps == world.FPS
        assert np.array_equal(frames, world.render(scene))
    assert scene.caption in (tmp_path / "metadata.csv").read_text()
