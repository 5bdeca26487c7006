"""How the operations of a transformer run: the kernel of attention, and compiled blocks.

`Attention` and `check` need no torch, so that a wrong choice is told before anything is imported. A kernel from the hub
is downloaded by the package `kernels` when it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from pusa.errors import InputError, first_line

Attention = Literal[
    "native", "cudnn", "flash", "flash-hub", "flash3-hub", "xformers", "flex", "sage", "sage-hub"
]  # fmt: skip
"""The kernels of attention. All but `sage` and `sage-hub` compute the stock result up to rounding."""
NATIVE: Attention = "native"
INEXACT = ("sage", "sage-hub")
"""kernels that quantise queries and keys to 8 bits (arXiv 2410.02367)"""


@dataclass(frozen=True)
class _Kernel:
    """name: of the backend in diffusers. package: what must be installed, or None."""

    name: str
    package: str | None = None


_KERNELS = {
    "native": _Kernel("native"),
    "cudnn": _Kernel("_native_cudnn"),
    "flash": _Kernel("flash", "flash_attn"),
    "flash-hub": _Kernel("flash_hub", "kernels"),
    "flash3-hub": _Kernel("_flash_3_hub", "kernels"),
    "xformers": _Kernel("xformers", "xformers"),
    "flex": _Kernel("flex"),
    "sage": _Kernel("sage", "sageattention"),
    "sage-hub": _Kernel("sage_hub", "kernels"),
}
ON_CPU = ("native", "flex")


def check(attention: str) -> None:
    """Raise InputError unless there is such a kernel and its package is installed. It imports nothing."""
    if attention not in get_args(Attention):
        raise InputError(f"There is no attention kernel {attention!r}: choose one of {', '.join(get_args(Attention))}.")
    package = _KERNELS[attention].package
    if package is not None and find_spec(package) is None:
        raise InputError(
            f"The attention kernel {attention} needs the package {package}, which is not installed: install it, or "
            "choose native."
        )


def use_attention(transformers: Iterable[Any], attention: Attention, device: str) -> None:
    """Let transformers of diffusers compute attention by a kernel. device: the type of device on which they run.

    Raises InputError if it does not run on this device, or if diffusers refuses it.
    """
    check(attention)
    if device == "cpu" and attention not in ON_CPU:
        raise InputError(f"The attention kernel {attention} runs on a GPU only: choose native, or another device.")
    if attention == NATIVE:
        return
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry
    from diffusers.utils import logging

    # diffusers also makes the kernel the default of all models, which a later model would get. The registry is private;
    # test_a_kernel_is_used_by_every_expert_and_by_no_other_model fails when it moves.
    default, _ = Registry.get_active_backend()
    log = logging.get_logger("diffusers.models.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # hides the warning that kernels are experimental
    try:
        for transformer in transformers:
            transformer.set_attention_backend(_KERNELS[attention].name)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        raise InputError(
            f"The attention kernel {attention} cannot be used ({first_line(error)}): choose native."
        ) from error
    finally:
        Registry.set_active_backend(default)
        log.setLevel(level)


def compile_blocks(transformers: Iterable[Any]) -> None:
    """Compile the blocks of transformers of diffusers in their first call, one kernel for all blocks.

    The first call takes from half a minute to several minutes. Calls with another number of tokens compile once more,
    and then for all numbers. Compiled operations are fused, so results differ from the stock ones by rounding.
    """
    for transformer in transformers:
        transformer.compile_repeated_blocks()
