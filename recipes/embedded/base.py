"""Step 4 of the embedded base: train text-to-video as Wan was, with one shared timestep per clip.

    python recipes/embedded/base.py --latents runs/embedded/latents --out runs/embedded/base

A stock `WanTransformer3DModel` (6.5 M parameters, 80 tokens a clip) and a small UMT5 encoder, trained together by flow
matching: v(z_t, t, caption) = noise - data, with z_t = (1 - t) data + t noise (paper eq. 1-4). t is drawn stratified
over the batch from the shifted law, one value per clip.

Why the stream is wider than a token: a token is 4 x 4 latent pixels of 12 channels, and a velocity has the noise of all
192 numbers in it. The noise must pass every layer beside what the layers compute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from encode import load_shards, sampling_weights
from loop import bfloat16, train
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from pusa.embedded import world

SEED = 2
CONTEXT = 512
"""Text positions that stock Wan pipelines attend to; those past the caption are zeros."""
TOKENS = 16
"""Positions really computed in training: the longest caption, and one that stands for all the padding."""
TEXT_DIM = 64
CAPTION_DROPOUT = 0.1
SHIFT = 3.0

TRANSFORMER: dict[str, Any] = dict(
    patch_size=(1, 4, 4),
    num_attention_heads=8,
    attention_head_dim=32,
    text_dim=TEXT_DIM,
    freq_dim=256,
    ffn_dim=576,
    num_layers=7,
    rope_max_seq_len=128,
)
TEXT_ENCODER = dict(
    vocab_size=384,
    d_model=TEXT_DIM,
    d_kv=16,
    d_ff=128,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",
)


def captions() -> list[str]:
    """Every caption of the world."""
    shapes = [
        world.ShapeScene(shape, colour, background, motion, 0, 0, 0).caption
        for shape in world.SHAPES
        for colour in world.COLOURS
        for background in world.BACKGROUNDS
        for motion in world.MOTIONS
    ]
    pictures = ("texture0", "photograph")
    return shapes + [world.CameraScene(p, m, 0, 0, 0).caption for p in pictures for m in world.CAMERA_MOTIONS]


def build_tokenizer() -> T5TokenizerFast:
    """A Unigram tokenizer: a piece for each word of the world, letters for other words, bytes for all the rest."""
    words = sorted({word for caption in captions() for word in caption.split()})
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁" + word, -3.0) for word in words if len(word) > 1]
    pieces += [(piece, -10.0) for piece in ["▁", "▁a", *letters]] + [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0
    )


class PaddedContext(WanAttnProcessor):
    """Cross-attention over a caption's tokens and one pad token that counts for all of them.

    Stock pipelines pad the text with zeros to 512 positions and attend to all. n equal keys with the logit s weigh as
    one key with the logit s + log n, so 20 positions and this bias give the very same output.
    """

    bias: Tensor | None = None
    """[B, 1, 1, TOKENS]"""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        mask = self.bias if encoder_hidden_states is not None else None
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


class TextToVideo(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, channels: int, **changes: Any) -> None:
        """channels: of a latent. changes: of `TRANSFORMER`, such as patch_size."""
        super().__init__()
        config = TRANSFORMER | changes | {"in_channels": channels, "out_channels": channels}
        self.transformer = WanTransformer3DModel(**config)
        self.text_encoder = UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))
        self.padding = PaddedContext()
        for block in self.transformer.blocks:
            block.attn2.processor = self.padding

    def context(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encoder output with padding zeroed, [B, TOKENS, D]; sets the cross-attention's bias."""
        length = mask.sum(1, keepdim=True)
        text = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        positions = torch.arange(ids.shape[1], device=ids.device)
        bias = torch.zeros(ids.shape, device=ids.device).masked_fill(positions > length, -torch.inf)
        bias = torch.where(positions == length, torch.log(CONTEXT - length.float()), bias)
        self.padding.bias = bias[:, None, None]
        return text


def load(folder: Path) -> TextToVideo:
    """The two networks of a diffusers folder."""
    known = WanTransformer3DModel.from_pretrained(folder / "transformer")
    model = TextToVideo(known.config.in_channels, **{key: known.config[key] for key in TRANSFORMER})
    model.transformer.load_state_dict(known.state_dict())
    model.text_encoder.load_state_dict(UMT5EncoderModel.from_pretrained(folder / "text_encoder").state_dict())
    return model


def tokenize(tokenizer: T5TokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, TOKENS]; the last position is always padding."""
    encoded = tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")
    if int(encoded.attention_mask.sum(1).max()) >= TOKENS:
        raise ValueError(f"a caption has {int(encoded.attention_mask.sum(1).max())} tokens; raise TOKENS")
    return encoded.input_ids, encoded.attention_mask


def stratified(count: int, rng: torch.Generator) -> Tensor:
    """`count` uniform draws, one from each of `count` equal parts of [0, 1], in random order."""
    return (torch.randperm(count, generator=rng) + torch.rand(count, generator=rng)) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, default=Path("runs/embedded/latents"))
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/base"))
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW, for embeddings, gains and biases")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--camera-share", type=float, default=0.5, help="share of camera clips in the samples")
    parser.add_argument("--heads", type=int, default=TRANSFORMER["num_attention_heads"], help="of 32 channels each")
    parser.add_argument("--ffn", type=int, default=TRANSFORMER["ffn_dim"], help="width of the feed-forward layers")
    parser.add_argument("--layers", type=int, default=TRANSFORMER["num_layers"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--init", type=Path, help="begin with the weights and the shape of this folder")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    latents, texts = load_shards(args.latents)
    shape = dict(num_attention_heads=args.heads, ffn_dim=args.ffn, num_layers=args.layers)
    model = TextToVideo(latents.shape[1], **shape) if args.init is None else load(args.init)
    if not args.no_compile:
        # On CPUs the bfloat16 backward of fused attention costs more than all the rest; compiled maths does not.
        model.transformer.set_attention_backend("_native_math")
        model.transformer.compile_repeated_blocks(fullgraph=True)
    ids, mask = tokenize(tokenizer, texts)
    empty_ids, empty_mask = tokenize(tokenizer, [""])
    weights = sampling_weights(texts, args.camera_share)
    print(f"{len(latents)} clips, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        pick = torch.multinomial(weights, args.batch, generator=rng)
        x0 = latents[pick].float()
        noise = torch.randn(x0.shape, generator=rng)
        u = stratified(args.batch, rng)
        t = SHIFT * u / (1 + (SHIFT - 1) * u)
        drop = (torch.rand(args.batch, generator=rng) < CAPTION_DROPOUT)[:, None]
        context = model.context(torch.where(drop, empty_ids, ids[pick]), torch.where(drop, empty_mask, mask[pick]))
        x = torch.lerp(x0, noise, t.view(-1, 1, 1, 1, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16()):
            v = model.transformer(x, 1000 * t, context, return_dict=False)[0]
        return (v.float() - (noise - x0)).square().mean()

    def snapshot(step: int, average: dict[str, Tensor]) -> None:
        if step % 500 == 0 or step == args.steps:
            folder = args.out / f"step_{step:06d}"
            trained = {n: p.detach().clone() for n, p in model.named_parameters()}
            model.load_state_dict(average, strict=False)
            model.transformer.save_pretrained(folder / "transformer")
            model.text_encoder.save_pretrained(folder / "text_encoder")
            tokenizer.save_pretrained(folder / "tokenizer")
            model.load_state_dict(trained, strict=False)

    train(
        args.out,
        model,
        loss,
        steps=args.steps,
        lr=args.lr,
        seed=SEED,
        muon=lambda name: "transformer.blocks." in name and name.endswith("weight") and "norm" not in name,
        muon_lr=args.muon_lr,
        warmup=100,
        ema_decay=0.998,
        save_every=100,
        after_save=snapshot,
    )


if __name__ == "__main__":
    main()
