"""Declarations of the inputs that several nodes have."""

from __future__ import annotations

from typing import Any

CATEGORY = "Pusa"


def widget(tooltip: str, **options: Any) -> dict[str, Any]:
    """Return the options of an input in ComfyUI's form."""
    return {**options, "tooltip": tooltip}


FIT = (
    ["crop", "stretch"],
    widget("How pictures of another shape are brought to the size of the clip: cut at two sides, or distorted."),
)
NOISE = (
    "STRING",
    widget(
        "The noise multiplier: 0 keeps the frames exactly, 1 ignores them. One number, or one for each latent frame "
        "with commas between them.",
        default="0",
    ),
)
