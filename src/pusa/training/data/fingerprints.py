"""What decides the entries of a cache: the model's encoders and the frame rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pusa.models.backbone import Encoders


@dataclass(frozen=True)
class Fingerprint:
    """What determines the latents of a clip and the context of a caption.

    vae: a hash of the autoencoder. text: a hash of the tokenizer and the text encoder. fps: the frame rate to which
    clips are resampled. tokens: L, the number of tokens to which contexts are padded. clean: what the encoders do to a
    caption first.
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
