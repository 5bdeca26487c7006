"""Settings that contradict the files: a distilled LoRA with guidance, given frames without a per-frame LoRA, or two.

All give clips that look like a fault of the method. What a LoRA is for is known from its metadata where it was trained
here, and else from its name, so this warns and never refuses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pusa.generation.settings import Settings
from pusa.models.dialects import metadata_of
from pusa.models.lora import Lora

FEW_STEPS = 12
"""Steps up to which a few-step model is not told that it has too many."""
_DISTILLED = re.compile(
    r"lightx2v|lightning|(?<!\d)[1-8][ _-]?steps?(?![a-z])|distill|causvid|accvid|fastwan|turbo|self[ _-]?forcing",
    re.IGNORECASE,
)


def advice(source: str, loras: Sequence[Lora], settings: Settings, *, given: bool) -> list[str]:
    """A sentence for each contradiction. source: the model's name; given: some frames have conditions."""
    found = []
    guidances = {value for value in (settings.guidance, settings.guidance_2) if value is not None}
    running = [lora for lora in loras if lora.scale]
    if distilled := next((lora for lora in running if is_distilled(lora.path)), None):
        wrong = [f"guidance is {value:g}" for value in sorted(guidances - {1.0})]
        wrong += [f"there are {settings.steps} steps"] * (settings.steps > FEW_STEPS)
        if wrong:
            found.append(
                f"The LoRA {distilled.path.name} is distilled, by its name, for guidance 1 and a few steps, and "
                f"{' and '.join(wrong)}: give guidance 1 and about 4 steps, or leave it out."
            )
    for expert in dict.fromkeys(lora.expert for lora in running):
        doubled = [lora for lora in running if lora.expert == expert and is_per_frame(lora.path)]
        if len(doubled) > 1:
            files = " and ".join(lora.path.name for lora in doubled)
            own = "; tiny brings its own, and tiny-base has none" if source == "tiny" else ""
            found.append(
                f"The LoRAs {files} each teach the model a timestep per frame, and both run: leave one out{own}."
            )
    if given and not _called(source, "pusa"):
        experts = {lora.expert for lora in loras} or {None}
        if None not in experts:
            experts = {"high", "low"}
        lacking = experts - {lora.expert for lora in running if is_per_frame(lora.path)}
        if lacking:
            one = "the model" if None in lacking else f"the {next(iter(lacking))}-noise expert"
            who = f"{one} has no LoRA" if len(lacking) == 1 else "neither expert has a LoRA"
            found.append(
                f"Some frames are given, and {who} that is known to take a timestep per frame, so they may be ignored: "
                "add a Pusa LoRA (`pusa info --presets` names the official ones) or train one."
            )
    return found


def is_per_frame(file: Path) -> bool:
    """Whether a LoRA was trained with a timestep per frame, by its metadata or its name."""
    pattern = metadata_of(file).get("pusa.pattern")
    return _called(file.name, "pusa") if pattern is None else pattern != "shared"


def is_distilled(file: Path) -> bool:
    """Whether the name of a LoRA, or of its folder, is that of a few-step one."""
    return any(_DISTILLED.search(part) for part in _telling(file))


def _telling(file: Path) -> list[str]:
    """The parts of a path that say what a file is: its name, its folder's, and its repository's on the hub."""
    return [file.stem, file.parent.name, *(part for part in file.parts if part.startswith("models--"))]


def _called(name: str, word: str) -> bool:
    return word in Path(name).name.lower()
