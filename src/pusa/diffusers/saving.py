"""The folder of a pipeline: a stock folder of diffusers, with the settings of the model and without its LoRAs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pusa.errors import InputError
from pusa.files import write_json
from pusa.generation.pipeline import Pipeline
from pusa.models import export
from pusa.models.loading import configurations
from pusa.models.lora import runtime


def save(model: Pipeline, target: Path, write: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Write a model as the folder `target`; see `PusaPipeline.save_pretrained`.

    write: `DiffusionPipeline.save_pretrained` of the pipeline. options: its keywords.
    """
    if model.profile.fp8 or model.profile.transformer == "disk":
        raise InputError(
            f"The memory profile {model.profile.name} changes how weights are stored: save a pipeline without it."
        )
    _ = model.text_encoder  # loads it again if it was released
    if not model.loras:
        _write(model, target, write, options)
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already, and a merged model needs an empty folder: give another one.")
    if options:
        raise InputError(
            f"{next(iter(options))} has no effect on weights with LoRAs: call unload_lora_weights, or leave it out."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
        base = Path(folder) / Path(model.backbone.source).name
        with _without_loras(model):
            _write(model, base, write, options)
        running = [lora for lora in model.loras if lora.scale]
        for number, lora in enumerate(running, 1):
            merged = target if number == len(running) else Path(folder) / f"{number}" / base.name
            export.merge(lora.path, base, merged, scale=lora.scale, expert=lora.expert)
            base = merged
        if not running:
            base.rename(target)


@contextmanager
def _without_loras(model: Pipeline) -> Iterator[None]:
    """Inside the block, the model has no LoRAs."""
    loras = model.loras
    for lora in loras:
        model.remove_lora(lora.name, lora.expert)
    try:
        yield
    finally:
        for lora in loras:
            model.load_lora(lora.path, lora.scale, lora.name, lora.expert)


def stock_names(configuration: str) -> str:
    """Return the configuration of a pipeline, JSON, with the classes of diffusers in place of those of this project."""
    values = json.loads(configuration)
    values["_class_name"] = "WanPipeline"
    for name in ("transformer", "transformer_2"):
        if name in values and values[name][0] is not None:
            values[name] = ["diffusers", "WanTransformer3DModel"]
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _write(model: Pipeline, target: Path, write: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Write a model without LoRAs, and its settings where they differ from those of its family."""
    with ExitStack() as stack:
        for network in (model.transformer, model.transformer_2):
            if network is not None:
                stack.enter_context(runtime.stock_keys(network))
        write(target, **options)
    path = target / export.DEFAULTS_FILE
    path.unlink(missing_ok=True)
    family = asdict(configurations.defaults_of(target))
    if changed := {name: value for name, value in asdict(model.defaults).items() if value != family[name]}:
        write_json(path, changed)
