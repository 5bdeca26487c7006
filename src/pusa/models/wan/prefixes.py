"""What programs and wrappers put before and into the names of Wan's weights. Nothing here imports torch."""

from __future__ import annotations

import re

from pusa.models.backbone import Expert

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Names that PyTorch, DeepSpeed and FSDP insert for the modules that they wrap."""
_HIGH = ("transformer_1", "high_noise_model", "high_noise", "dit_high_noise")
_LOW = ("transformer_2", "low_noise_model", "low_noise", "dit_low_noise", "dit2")
"""Names of the two experts of Wan2.2 in files that contain both."""
_LEADING = frozenset((
    *("base_model", "model", "diffusion_model", "transformer", "pipe", "dit", "net", "unet", "lora", "state_dict"),
    *("generator", "generator_ema", "generator_lora", "ema", "ema_model", "student", *_HIGH, *_LOW),
))  # fmt: skip
"""Names before those of the network, in the files of programs and trainers."""


def strip(name: str) -> str:
    """Return the name of a module or tensor without what other programs put before it and wrappers put into it."""
    name = unwrapped(name).replace("_orig_mod_", "").replace(".processor.", ".")
    while (first := name.partition("."))[0] in _LEADING:
        name = first[2]
    return name


def unwrapped(name: str) -> str:
    """Return a name without those that wrappers of modules insert, such as `_orig_mod.`."""
    return _WRAPPERS.sub("", name)


def expert_in(key: str) -> Expert | None:
    """Return the expert of Wan2.2 that the key of a file names before the name of the network, or None."""
    for part in unwrapped(key).split("."):
        if part in _HIGH:
            return "high"
        if part in _LOW:
            return "low"
        if part not in _LEADING:
            return None
    return None
