"""Why the keys of a file are not those of a LoRA for this model, in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pusa.errors import InputError
from pusa.models.wan.weight_names import Shapes

_OTHER_KINDS = (
    (r"\.oft_(?:blocks|diag|r)|\.oft_R", "OFT or BOFT"),
    (r"\.boft_", "BOFT"),
    (r"\.(?:a1|a2|b1|b2|bm)\.weight$", "GLoRA"),
    (r"\.on_input$|\.ia3_l", "IA3"),
    (r"\.dyn_(?:up|down|diag)", "DyLoRA"),
    (r"\.(?:q_layer|p_layer|lambda_layer)\.", "T-LoRA"),
    (r"\.lora_E\b|\.ranknum", "AdaLoRA"),
    (r"\.vera_lambda|vblora_|\.randlora_", "VeRA, VB-LoRA or RandLoRA"),
    (
        r"\.hra_u|\.(?:bone|miss)_|\.road_|\.c3a_kernel|\.shira_weight|fourierft_|waveft_",
        "PEFT adapter of another kind",
    ),
    (r"\.reshape_weight$", "LoRA that changes the size of a layer, for a control model"),
    (r"\.set_weight$|\.modules_to_save\.", "LoRA with replaced weights"),
)
_OF_AN_ADAPTER = re.compile(r"lora|lycoris|\.diff|\.hada_|\.lokr_|dora_scale", re.IGNORECASE)
_IMAGE_KEYS = re.compile(r"img_emb|image_embedder|[kv]_img|add_[kv]_proj|norm_added_k")


def other_kinds(path: Path, unknown: Iterable[str]) -> None:
    """Raise InputError if a key is that of a kind of adapter that cannot be loaded."""
    for key in unknown:
        for pattern, kind in _OTHER_KINDS:
            if re.search(pattern, key):
                raise InputError(
                    f"The LoRA {path} is a {kind} ({key}), which is not supported: merge it into its model with the "
                    "program that made it."
                )


def unknown_keys(path: Path, unknown: list[str], count: int, shapes: Shapes, *, some_fit: bool) -> InputError:
    """Return the error for keys that match nothing in the model."""
    image = [key for key in unknown if _IMAGE_KEYS.search(key)]
    if image:
        return InputError(
            f"The LoRA {path} is for an image-to-video model: {len(image)} of its {count} keys change layers for the "
            f"image (such as {image[0]}), which a text-to-video model does not have: use the text-to-video version."
        )
    if not some_fit and not any(_OF_AN_ADAPTER.search(key) for key in unknown):
        return InputError(
            f"{path} is not a LoRA: its {len(unknown)} keys (such as {unknown[0]}) are those of a network; give a "
            "network with --model, --vae or --text-encoder."
        )
    if not some_fit:
        return InputError(
            f"Nothing in the LoRA {path} fits the model: none of its {len(unknown)} keys (such as {unknown[0]}) names "
            "a layer of the model; use a LoRA for Wan."
        )
    more = f"{len(unknown)} of its {count} keys"
    blocks = 1 + max((int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    numbers = [int(m[1]) if (m := re.search(r"(?:^|[._])blocks[._](\d{1,4})[._]", key)) else -1 for key in unknown]
    if min(numbers) >= blocks:
        return InputError(
            f"The LoRA {path} was made for a larger model: {more} change blocks up to {max(numbers)} (such as "
            f"{unknown[0]}), and this one has {blocks}, 0 to {blocks - 1}."
        )
    return InputError(
        f"The LoRA {path} does not fit the model: {more} match no layer (such as {', '.join(unknown[:3])}); use a LoRA "
        "for this model."
    )
