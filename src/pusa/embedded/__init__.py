"""A tiny trained Wan pipeline in the standard diffusers layout, its adapter, and the synthetic world it comes from.

`folder()` is an ordinary text-to-video model, trained with one timestep per clip, that stock diffusers loads;
`adapter()` is the LoRA that vectorized timestep adaptation put on top. `recipes/embedded/` remakes both.
"""

from pathlib import Path

STRENGTH = 1.6
"""At which `tiny` runs the adapter, by `recipes/embedded/measure.py --tune` on scenes of their own."""


def folder() -> Path:
    """The diffusers folder of the plain text-to-video base."""
    return Path(__file__).parent / "tiny"


def adapter() -> Path:
    """The LoRA file of the vectorized timestep adaptation."""
    return folder() / "pusa.safetensors"
