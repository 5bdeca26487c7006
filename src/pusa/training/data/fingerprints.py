"""What decides the entries of a cache: the model's encoders and the frame rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pusa.models.backbone import Encoders


@dataclass(frozen=True)
class Fingerprint:
    """What decides a clip's latents and a caption's context.

    vae: a hash of the autoencoder. text: a hash of the tokenizer and the text encoder. fps: the rate that clips are
    resampled to. tokens: L, to which contexts are padded. clean: what the encoders do to a caption first.
    """

    vae: str
    text: str
    fps: float
    tokens: int
    clean: Callable[[str], str] = field(default=str, compare=False)


def fingerprint(encoders: Encoders, fps: float) -> Fingerprint:
    """Return the fingerprint for clips at `fps` frames per second. It reads every weight of the encoders."""
    return Fingerprint(
        encoders.latents_fingerprint(),
        encoders.text_fingerprint(),
        float(fps),
        encoders.text_tokens,
        encoders.clean,
    )
