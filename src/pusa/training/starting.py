"""What a training starts from besides its base model: a LoRA file, or a checkpoint of another run."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from pusa import adapters
from pusa.adapters import lora_start
from pusa.errors import InputError
from pusa.files import write_json
from pusa.models.lora import header
from pusa.training import run_folder
from pusa.training.config.sections import TARGETS
from pusa.training.config.tree import SHAPE_OF_LORA, Config
from pusa.training.data import split
from pusa.training.run_folder import LOGS, MANIFEST, Checkpoint
from pusa.training.weight_averages import SNAPSHOTS, snapshots_of

ORIGIN = "resumed_from.json"
"""The file in the folder of a run that names the checkpoint from which it began."""


def with_lora(config: Config, layers: Mapping[str, tuple[int, int]]) -> Config:
    """Return the settings with rank, alpha and targets of the LoRA `lora.init`, where they are not given.

    layers: {name: (inputs, outputs)} of the model's linear layers. Raises InputError if the file cannot be used, or is
    for the other expert. `Lora.attach` compares the settings that are given with the file.
    """
    lora = config.lora
    if lora is None or lora.init is None:
        return config
    made_for = header.expert_for(lora.init)
    if made_for is not None and config.model.expert not in (None, made_for):
        raise InputError(
            f"lora.init {lora.init} is for the {made_for}-noise expert, and model.expert is {config.model.expert}: "
            "start from a LoRA for this expert."
        )
    start = lora_start.read(lora.init, layers)
    own = lora_start.settings_of(start, layers, TARGETS, stabilised=lora.rslora)
    missing = {name: own[name] for name in SHAPE_OF_LORA if name not in lora.model_fields_set}
    return config.model_copy(update={"lora": lora.model_copy(update=missing)})


def check_result(config: Config, out: Path) -> None:
    """Raise InputError if `out` has trained weights and no checkpoint: a training from the beginning replaces them."""
    weights = out / adapters.from_settings(config.lora).output
    if weights.exists() and not any((out / "checkpoints").glob("step_*")):
        raise InputError(
            f"{out} has {weights.name} and no checkpoint, so a training would begin anew and replace it: choose "
            "another folder, or add --overwrite to replace it."
        )


def branch(source: Path, out: Path) -> None:
    """Begin the run `out` with a checkpoint of another run, so that training there resumes from it.

    source: the folder of a checkpoint, such as runs/first/checkpoints/step_000300, or of a run, for its newest one. The
    log and the snapshots up to its step are copied with it. The other run does not change. Do nothing if `out` began
    with this checkpoint before. Raises InputError if there is no complete checkpoint, or if `out` has its own already.
    """
    place = out / ORIGIN
    began = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    if any((out / "checkpoints").glob("step_*")):
        if began.get("given") == str(source.absolute()):
            return
        raise InputError(
            f"{out} has checkpoints of its own: give another --out to train on from {source}, or leave --resume-from "
            "out to resume from the newest checkpoint there."
        )
    chosen = _checkpoint(source)
    run = chosen.folder.absolute().parent.parent
    with run_folder.lock(out), run_folder.writing(f"the copy of {chosen.folder} into {out}"):
        for log in LOGS:
            if (run / log).is_file():
                shutil.copy2(run / log, out / log)
                run_folder.rewind(out / log, chosen.step)
        if (run / split.RECORD).is_file():
            shutil.copy2(run / split.RECORD, out / split.RECORD)
        for step, snapshot in snapshots_of(run).items():
            if step <= chosen.step:
                (out / SNAPSHOTS).mkdir(exist_ok=True)
                shutil.copy2(snapshot, out / SNAPSHOTS / snapshot.name)
        write_json(place, {"given": str(source.absolute()), "checkpoint": str(chosen.folder.absolute())})
        copied = out / "checkpoints" / f"step_{chosen.step:06d}"
        part = copied.with_name(f".{copied.name}-{secrets.token_hex(4)}.part")
        shutil.copytree(chosen.folder, part)
        part.rename(copied)


def _checkpoint(source: Path) -> Checkpoint:
    """Return the checkpoint in a folder, or the newest one of a run. InputError if there is none or it is damaged."""
    if (source / MANIFEST).is_file():
        return run_folder.read(source)
    found = sorted((source / "checkpoints").glob("step_*"), key=lambda folder: folder.name)
    if found:
        return run_folder.read(max(found, key=lambda folder: int(folder.name.removeprefix("step_"))))
    near = sorted(folder.name for folder in source.parent.glob("step_*"))
    there = f"; its run has {', '.join(near)}" if near else ""
    raise InputError(
        f"--resume-from {source} is not a checkpoint{there}: give a folder such as runs/first/checkpoints/step_000300."
    )
