"""Warnings for settings that contradict the files: guidance with a distilled LoRA, conditions without a per-frame LoRA.

Such clips look like a fault of the method. The purpose of a LoRA is known from its metadata if this project trained it,
and otherwise from its name. A name can mislead, so these are warnings and not errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pusa.generation.settings import Settings
from pusa.models.backbone import Expert
from pusa.models.lora.header import is_distilled, is_per_frame, maybe_for
from pusa.models.lora.runtime import Lora

FEW_STEPS = 12
"""With a distilled LoRA, more steps than this give a warning."""


def advice(
    source: str, loras: Sequence[Lora], settings: Settings, *, given: bool, merged: Sequence[str] = ()
) -> list[str]:
    """One sentence for each contradiction.

    source: the model's name. given: whether some frames have conditions. merged: the transformers that take a timestep
    per frame without a LoRA, see `Defaults.per_frame`.
    """
    found = []
    running = [lora for lora in loras if lora.scale]
    if distilled := next((lora for lora in running if is_distilled(lora.path)), None):
        wrong = [f"guidance is {value:g}" for value in sorted(settings.guidances - {1.0})]
        wrong += [f"there are {settings.steps} steps"] * (settings.steps > FEW_STEPS)
        if wrong:
            found.append(
                f"The LoRA {distilled.path.name} is distilled, by its name, for guidance 1 and a few steps, and "
                f"{' and '.join(wrong)}: give guidance 1 and about 4 steps, or leave it out."
            )
    found += _experts(running)
    own: set[Expert | None] = {"high", None} if "transformer" in merged else set()
    own |= {"low"} if "transformer_2" in merged else set()
    for expert in dict.fromkeys(lora.expert for lora in running):
        doubled = [lora.path.name for lora in running if lora.expert == expert and is_per_frame(lora.path)]
        doubled += ["the weights themselves"] if expert in own else []
        if len(doubled) > 1:
            own_base = "; tiny brings its own, and tiny-base has none" if source == "tiny" else ""
            found.append(
                f"{' and '.join(doubled)} each teach the model a timestep per frame, and all run: leave a LoRA out"
                f"{own_base}."
            )
    if given and "pusa" not in Path(source).name.lower():
        two = settings.boundary is not None or any(lora.expert for lora in loras)
        experts: set[Expert | None] = {"high", "low"} if two else {None}
        lacking = experts - own - {lora.expert for lora in running if is_per_frame(lora.path)}
        if lacking:
            one = "the model" if None in lacking else f"the {next(iter(lacking))}-noise expert"
            who = f"{one} has no LoRA" if len(lacking) == 1 else "neither expert has a LoRA"
            found.append(
                f"Some frames are given, and {who} that is known to take a timestep per frame, so they may be ignored: "
                "add a Pusa LoRA (`pusa info --presets` names the official ones) or train one."
            )
    return found


def _experts(loras: Sequence[Lora]) -> list[str]:
    """One sentence for each LoRA whose name may mean an expert, and that runs on the other one."""
    found = []
    for path in dict.fromkeys(lora.path for lora in loras):
        on = {lora.expert for lora in loras if lora.path == path}
        if (maybe := maybe_for(path)) and on - {maybe, None}:
            where = "on both experts" if len(on) == 2 else f"on the {next(iter(on))}-noise expert"
            found.append(
                f"By its name, the LoRA {path.name} may be for the {maybe}-noise expert, and it runs {where}: if it is "
                f"for one, give it with --lora-{maybe}."
            )
    return found
