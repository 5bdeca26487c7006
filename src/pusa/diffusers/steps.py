"""What a pipeline of diffusers does after each step: the progress bar, the callback, and stopping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pusa.core.sampler import Step
from pusa.errors import InputError

TENSORS = ("latents", "denoised")
"""the attributes of a `Step` that a callback may ask for"""
OnStepEnd = Callable[..., dict[str, Tensor] | None]
"""callback(pipe, step, timestep, {name: tensor}) -> None, or a dictionary in which "latents" may be new ones"""


class Steps:
    """The callback of the sampler for the clips of one call.

    Attributes:
        latents: those after the last step, [1, C, F, h, w]; None before the first step.
    """

    def __init__(self, pipe: Any, clips: int, callback: OnStepEnd | None, names: Sequence[str]) -> None:
        """pipe: a `PusaPipeline`. clips: how many clips the call makes. names: the tensors for the callback."""
        self._pipe, self._clips, self._callback, self._names = pipe, clips, callback, names
        self._bar: Any = None
        self.latents: Tensor | None = None

    def __call__(self, step: Step) -> bool:
        """Return whether sampling goes on."""
        if self._bar is None:
            self._bar = self._pipe.progress_bar(total=step.steps * self._clips)
        self._bar.update()
        self._pipe._num_timesteps = step.steps
        if self._callback is not None:
            self._tell(self._callback, step)
        self.latents = step.latents
        return not self._pipe.interrupt

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, callback: OnStepEnd, step: Step) -> None:
        """Call the callback, and write the latents that it returns into those of the step."""
        tensors = {name: getattr(step, name) for name in self._names}
        returned = callback(self._pipe, step.index, 1000 * step.sigma_before.max(), tensors) or {}
        if not isinstance(returned, dict):
            raise InputError(
                f"callback_on_step_end returned a {type(returned).__name__}: return None, or a dictionary with latents."
            )
        changes = returned.get("denoised", step.denoised) is not step.denoised
        if unused := [name for name in returned if name not in TENSORS] or ["denoised"] * changes:
            raise InputError(f"callback_on_step_end returned {unused[0]!r}, which has no effect: return latents only.")
        changed, needed = returned.get("latents", step.latents), list(step.latents.shape)
        if not isinstance(changed, Tensor):
            raise InputError(
                f"callback_on_step_end returned latents of type {type(changed).__name__}: return a tensor {needed}."
            )
        if list(changed.shape) != needed:
            raise InputError(f"callback_on_step_end returned latents of shape {list(changed.shape)}: return {needed}.")
        if changed is not step.latents:
            step.latents.copy_(changed)


def check_names(names: Any) -> None:
    """Raise InputError for a tensor that a callback cannot have."""
    if not isinstance(names, (list, tuple)):
        raise InputError(f"callback_on_step_end_tensor_inputs is {names!r}: give a list, such as ['latents'].")
    if wrong := [name for name in names if name not in TENSORS]:
        raise InputError(f"callback_on_step_end_tensor_inputs has {wrong[0]!r}: choose {', '.join(TENSORS)}.")
