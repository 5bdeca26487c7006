"""Encode prompts for Wan's transformer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

# prompt_clean is private to diffusers' pipeline. test_text_is_encoded_as_stock_does
# (tests/models/wan/test_autoencoder.py) fails when it moves or changes.
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

TOKENS = 512
"""L, the length to which every prompt is padded."""


@torch.no_grad()
def encode(text_encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Encode prompts to [B, 512, D] in the encoder's dtype, zero after each prompt's end, as WanPipeline does.

    Prompts are encoded one at a time, so that the result of a prompt does not depend on the others. A prompt of more
    than 512 tokens is cut to 512, and a UserWarning shows where.
    """
    return torch.cat([_encode_prompt(text_encoder, tokenizer, clean(prompt)) for prompt in prompts])


def clean(prompt: str) -> str:
    """Return the prompt as the tokenizer receives it: without HTML entities, broken Unicode and repeated spaces."""
    return str(prompt_clean(prompt))


def _encode_prompt(text_encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tensor:
    inputs = tokenizer(prompt, return_attention_mask=True, return_tensors="pt", truncation=True, max_length=TOKENS,
                       padding="max_length")  # fmt: skip
    ids, mask = inputs.input_ids, inputs.attention_mask
    length = int(mask.sum())
    if length == TOKENS:
        _warn_if_cut(tokenizer, prompt)
    hidden = text_encoder(ids.to(text_encoder.device), mask.to(text_encoder.device)).last_hidden_state
    return torch.cat([hidden[:, :length], hidden.new_zeros(1, TOKENS - length, hidden.shape[2])], dim=1)


def _warn_if_cut(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) > TOKENS:
        lost = tokenizer.decode(ids[TOKENS - 1 :][:12], skip_special_tokens=True).strip()
        warnings.warn(
            f"The prompt has {len(ids)} tokens and the model reads {TOKENS}: the text from {lost!r} on has no effect; "
            "shorten it.",
            stacklevel=4,
        )
