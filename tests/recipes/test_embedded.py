"""The recipes of the embedded base: an interrupted run ends as an uninterrupted one; the training shortcut is exact."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from pusa.embedded import world
from pusa.media.videos import read_video

RECIPES = Path(__file__).parents[2] / "recipes" / "embedded"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("base", "clips", "encode", "loop", "muon", "reduce"):
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


def test_stratified_draws_fill_the_interval() -> None:
    from base import stratified

    draws = stratified(32, torch.Generator().manual_seed(1))
    assert np.array_equal(np.sort((draws * 32).long().numpy()), np.arange(32))


def _low_rank_vae(z_dim: int, rank: int) -> AutoencoderKLWan:
    """A random autoencoder whose latents vary in `rank` directions only, without constants that padding would cut."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=z_dim, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True])
    mixing = torch.randn(z_dim, rank) @ torch.randn(rank, z_dim) / rank
    with torch.no_grad():
        vae.quant_conv.weight[:z_dim, :z_dim, 0, 0, 0] = mixing
        vae.quant_conv.weight[:z_dim, z_dim:] = 0
        vae.quant_conv.bias.zero_()
        vae.post_quant_conv.bias.zero_()
    vae.register_to_config(latents_mean=[0.0] * z_dim, latents_std=(0.5 + torch.rand(z_dim)).tolist())
    return vae.eval()


def test_leaving_out_empty_channels_changes_neither_pictures_nor_velocities() -> None:
    from reduce import principal, reduce_transformer, reduce_vae

    vae = _low_rank_vae(z_dim=8, rank=3)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    clip = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z = (vae.encode(clip).latent_dist.mode() - mean) / std
        directions = principal(z, 3)
        small = reduce_vae(vae, directions)
        latents = small.encode(clip).latent_dist.mode()
        assert latents.shape[1] == small.config.z_dim == 3
        torch.testing.assert_close(latents, torch.einsum("bcfhw,ck->bkfhw", z, directions), atol=1e-4, rtol=1e-4)

        before, after = vae.decode(z * std + mean).sample, small.decode(latents).sample
        torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
        fewer = reduce_vae(vae, directions[:, :2])
        assert (fewer.decode(latents[:, :2]).sample - before).abs().max() > 0.1

        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=12,
            ffn_dim=16,
            text_dim=8,
            in_channels=8,
            out_channels=8,
        ).eval()
        x, t, text = torch.randn(2, 3, 2, 4, 4), torch.tensor([300.0, 700.0]), torch.randn(2, 4, 8)
        whole = torch.einsum("bkfhw,ck->bcfhw", x, directions)
        wanted = torch.einsum("bcfhw,ck->bkfhw", transformer(whole, t, text).sample, directions)
        assert torch.equal(
            reduce_transformer(transformer, torch.eye(8))(whole, t, text).sample, transformer(whole, t, text).sample
        )
        torch.testing.assert_close(reduce_transformer(transformer, directions)(x, t, text).sample, wanted)


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
