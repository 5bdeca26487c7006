"""The optimiser, from torch or another library, and the learning rate with warm-up and decay.

| name | library | bytes of state for a trained number | what it is |
| --- | --- | ---: | --- |
| `adamw` | torch | 8 | AdamW |
| `adamw8bit` | bitsandbytes | 2 | AdamW with both moments in 8 bits |
| `adamw-kahan` | torch-optimi | 6 | AdamW on bfloat16 weights with Kahan summation |
| `prodigy` | prodigyopt | 16 | AdamW that finds its learning rate |
| `schedule-free` | schedulefree | 8 | AdamW with an average of the weights instead of a schedule |
| `muon` | torch | 4 | momentum with orthogonal updates, for matrices |
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pusa.errors import InputError

LIBRARIES = {
    "adamw8bit": ("bitsandbytes", "lowmemory"),
    "adamw-kahan": ("optimi", "optimisers"),
    "prodigy": ("prodigyopt", "optimisers"),
    "schedule-free": ("schedulefree", "optimisers"),
}
"""{optimiser: (module, extra of this package)} of the optimisers that are not torch's."""
_STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.1, "adamw-kahan": 6.0, "prodigy": 16.0, "schedule-free": 8.0, "muon": 4.0}
_MOVING = {
    "adamw-kahan": ("setup", "step", "triton", "foreach", "kahan_sum"),
    "prodigy": ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k"),
    "schedule-free": ("k", "weight_sum", "lr_max", "scheduled_lr"),
}
"""{optimiser: the entries of its parameter groups that change from step to step}"""


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str) -> float:
    """Return the learning rate of `step` (from 0, below `steps`).

    The rate rises linearly to `peak` over `warmup` steps. Then it is constant, or decays as a cosine or linearly.
    A decay reaches zero one step after the last one, so that no step has a rate of zero. Raises InputError for a
    schedule that is not "constant", "cosine" or "linear".
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "linear":
        return peak * max(0.0, 1 - progress)
    raise InputError(f"The schedule {schedule!r} does not exist: choose constant, cosine or linear.")


def state_bytes(settings: Any) -> float:
    """Return how many bytes the optimiser of `settings` (`Config.train`) stores for each trained number."""
    return _STATE_BYTES[settings.optimiser]


def check(name: str) -> None:
    """Raise InputError if the library of an optimiser is not installed."""
    if name in LIBRARIES:
        _library(name)


def build(parameters: Mapping[str, nn.Parameter], settings: Any, *, sharded: bool = False) -> torch.optim.Optimizer:
    """Return the optimiser of `settings` (`Config.train`) for `parameters`, ready for a step.

    Weight decay applies to matrices, and not to vectors (biases and norms). Each group of parameters has a "factor" of
    the learning rate, from `settings.rates`. sharded: whether the parameters are shards (FSDP2). Raises InputError if
    the library is missing, if a pattern matches no parameter, or if the optimiser cannot train these parameters.
    """
    name = settings.optimiser
    if name not in _STATE_BYTES:
        raise InputError(f"The optimiser {name!r} does not exist: choose one of {', '.join(_STATE_BYTES)}.")
    if sharded and name != "adamw":
        raise InputError(
            f"The optimiser {name} cannot train sharded weights: set train.optimiser to adamw, or train.parallel to "
            "ddp."
        )
    groups = _groups(parameters, settings)
    options: dict[str, Any] = {"lr": settings.lr, "betas": tuple(settings.betas)}
    if name == "adamw":
        return torch.optim.AdamW(groups, **options)
    if name == "muon":
        if odd := [key for key, p in parameters.items() if p.ndim != 2]:
            raise InputError(f"Muon trains matrices only, and {odd[0]} is none: train a LoRA, or choose adamw.")
        # its updates have the size of Adam's, so that the same learning rates are good
        return torch.optim.Muon(groups, lr=settings.lr, momentum=settings.betas[0], adjust_lr_fn="match_rms_adamw")
    library = _library(name)
    made: Any
    if name == "adamw8bit":
        made = library.optim.AdamW8bit(groups, **options)
    elif name == "adamw-kahan":
        made = library.AdamW(groups, **options, eps=1e-8, kahan_sum=True)
    elif name == "prodigy":
        made = library.Prodigy(groups, **options, use_bias_correction=True, safeguard_warmup=True)
    else:
        made = library.AdamWScheduleFree(groups, **options)
        made.train()
    return made  # type: ignore[no-any-return]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times its factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def averaged(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the weights that the optimiser recommends: those of schedule-free are an average, which is computed here.

    The library's `eval` and `train` would change the weights of the training by rounding.
    """
    best = {name: p.detach() for name, p in parameters.items()}
    if not averages(optimiser):
        return best
    beta = {id(p): group["betas"][0] for group in optimiser.param_groups for p in group["params"]}
    return {
        name: best[name].lerp(kept["z"], 1 - 1 / beta[id(p)]) if (kept := optimiser.state.get(p)) else best[name]
        for name, p in parameters.items()
    }


def averages(optimiser: torch.optim.Optimizer) -> bool:
    """Return whether the optimiser recommends other weights than those that it trains."""
    return "train_mode" in optimiser.param_groups[0]


def group_state(optimiser: torch.optim.Optimizer, name: str) -> dict[str, dict[str, Any]]:
    """Return what the groups of the optimiser `name` remember from step to step, besides the state of parameters."""
    kept = ({key: group[key] for key in _MOVING.get(name, ()) if key in group} for group in optimiser.param_groups)
    return {str(number): values for number, values in enumerate(kept) if values}


def restore_groups(optimiser: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Set what `group_state` returned."""
    for number, kept in state.items():
        optimiser.param_groups[int(number)].update(kept)


def _groups(parameters: Mapping[str, nn.Parameter], settings: Any) -> list[dict[str, Any]]:
    """Return parameter groups, by weight decay and by factor of the learning rate."""
    rates = settings.rates or {}
    for pattern in rates:
        if not any(re.search(pattern, name) for name in parameters):
            raise InputError(
                f"train.rates has the pattern {pattern!r}, which matches no trained weight: use a part of a name such "
                f"as {next(iter(parameters), 'none')}."
            )
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for decays in (True, False):
        for name, p in parameters.items():
            if (p.ndim >= 2) == decays:
                factor = math.prod(value for pattern, value in rates.items() if re.search(pattern, name))
                found.setdefault((decays, factor), []).append(p)
    return [
        {"params": members, "weight_decay": settings.weight_decay if decays else 0.0, "factor": factor}
        for (decays, factor), members in found.items()
    ]


def _library(name: str) -> Any:
    module, extra = LIBRARIES[name]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"The optimiser {name} needs {module}: run pip install 'pusa[{extra}]', or set train.optimiser to adamw."
        ) from error
