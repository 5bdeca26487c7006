"""A tiny trained Wan pipeline in the diffusers layout, its adapter, and the synthetic world that it was trained on.

`folder()` is a text-to-video model that was trained with one timestep per clip; stock diffusers loads it. `adapter()`
is a LoRA for it, trained by vectorized timestep adaptation. `recipes/embedded/` makes both.
"""

from pathlib import Path

STRENGTH = 1.2
"""the strength of the adapter in the model `tiny`; `recipes/embedded/measure.py --tune` chose it, on separate scenes"""

NAMES = ("tiny", "tiny-base")
FORMER = {"20750eeb999da0b350b8bd9a5cf68e1e02e49a95570c10dbf7a0bb3267e090fd": "0.1.0 (commit 2a7efb8)"}
"""fingerprints of the models that earlier versions of the package had under these names, and the last such version"""

PROMPTS = (
    "a red circle moves left on a black background",
    "a green triangle moves up on a black background",
    "a blue square grows on a checkered background",
    "the camera pans right over a photograph",
)
"""examples of what the embedded model understands"""


def examples(source: str) -> tuple[str, ...]:
    """Prompts to begin with, for a model of this name. Only the embedded model has some."""
    return PROMPTS if source in NAMES else ()


def folder() -> Path:
    """The diffusers folder of the text-to-video base model."""
    return Path(__file__).parent / "tiny"


def adapter() -> Path:
    """The LoRA file of the vectorized timestep adaptation."""
    return folder() / "pusa.safetensors"
