"""`pusa inspect weights`: relative change of weights, by component, layer and block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pusa.cli.shared.arguments import lora as read_lora
from pusa.cli.shared.options import OUTPUT, File, Many, Talk
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.evaluation.inspect.stored_transformer import StoredTransformer
    from pusa.evaluation.inspect.weight_drift import Drift


def weights(
    base: str,
    *others: str,
    lora: Annotated[tuple[str, ...], Many, Parameter(metavar="PATH[:SCALE]")] = (),
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/weights"),
    talk: Talk = Talk(),
) -> Report:
    """Compare models, or LoRAs at their strengths, with a base: ‖ΔW‖ / ‖W‖ by component, layer and block.

    weights.png, blocks.png and weights.json are written. Models are read a tensor at a time, so that two of any size
    fit.

    Parameters
    ----------
    base
        The model that is compared with: tiny-base, a folder, that of a transformer alone, a file or a hub id.
    others
        Models of the same size; further input channels, as an image-to-video model has them, are left out and said.
    lora
        LoRA files for the base, each at its strength. Repeatable.
    out
        Folder for the results.
    """
    if not others and not lora:
        raise InputError("There is nothing to compare with the base; give another model or --lora FILE.")
    terminal = Terminal(talk.talkative)
    files = [read_lora(text, 1.0) for text in lora]
    with terminal.status("Starting"):
        from pusa.errors import needing
        from pusa.files import check_writable, make_folder, write_json

        with needing("eval"):
            from pusa.evaluation import plots
    with terminal.status("Comparing"):
        models = _find(base, others)
        make_folder(out, "the results")
        check_writable(out / "weights.json")
        found = _compare(base, others, files, models)
    components = _beside(found, lambda group: group.component)
    layers = _beside(found, lambda group: f"{group.component}, {group.layer}" if group.layer else None)
    blocks = _beside(found, lambda group: group.block)
    each = _beside(found, lambda group: None if group.block is None else f"{group.component}, block {group.block}")
    record = {
        "base": base,
        "components": components,
        "share_of_change": {name: one.shares() for name, one in found.items()},
        "layers": layers,
        "blocks": blocks,
        "components_by_block": each,
        "notes": {name: one.notes for name, one in found.items() if one.notes},
    }
    pictures = [
        plots.grouped_bars(out / "weights.png", _drawn(components), xlabel="‖ΔW‖ / ‖W‖"),
        plots.lines(
            out / "blocks.png",
            list(blocks),
            {name: [values[name] for values in _drawn(blocks).values()] for name in found},
            xlabel="block",
            ylabel="‖ΔW‖ / ‖W‖",
        ),
    ]
    write_json(out / "weights.json", _without_infinity(record))
    paths = [str(path) for path in (*pictures, out / "weights.json")]
    notes = [f"{name}: {note}" for name, one in found.items() for note in one.notes]
    text = [*_table(found, components, layers), *notes, "", *paths]
    return Report(_without_infinity(record) | {"files": paths}, "\n".join(text))


def _find(base: str, others: tuple[str, ...]) -> dict[str, StoredTransformer]:
    """Where the models are, by what they were asked for as; `tiny` is a LoRA on the base."""
    from pusa.evaluation.inspect.stored_transformer import StoredTransformer
    from pusa.models.loading.sources import TINY, TINY_BASE

    if TINY in (base, *others) and base != TINY_BASE:
        raise InputError("tiny is tiny-base with a LoRA on it; compare it with tiny-base.")
    return {source: StoredTransformer.find(source) for source in (base, *others) if source != TINY}


def _compare(
    base: str, others: tuple[str, ...], files: list[tuple[Path, float]], models: Mapping[str, StoredTransformer]
) -> dict[str, Drift]:
    """Each change by the name that it is shown under."""
    from pusa import embedded
    from pusa.evaluation.inspect import weight_drift
    from pusa.models.lora.runtime import default_name

    found: dict[str, Drift] = {}
    for path, strength in files:
        name = f"{default_name(path)} × {strength:g}"
        found[f"{path} × {strength:g}" if name in found else name] = weight_drift.of_lora(models[base], path, strength)
    for other in others:
        name = _short(other) if _short(other) not in found else other
        if other not in models:
            found[name] = weight_drift.of_lora(models[base], embedded.adapter(), embedded.STRENGTH)
            continue
        found[name] = weight_drift.of_models(models[base], models[other])
        for model in (models[base], models[other]):
            if model.experts > 1:
                found[name].notes.append(f"of the {model.experts} experts of {model.source} the one for high noise")
    return found


def _short(source: str) -> str:
    parts = [part for part in Path(source).parts if part != "transformer"]
    return "/".join(parts[-2:]) or source


def _beside(found: Mapping[str, Drift], key: Any) -> dict[Any, dict[str, float]]:
    """Relative change by key, side by side."""
    each = {name: one.by(key) for name, one in found.items()}
    keys = dict.fromkeys(key for values in each.values() for key in values)
    return {key: {name: values[key] for name, values in each.items() if key in values} for key in keys}


def _drawn(groups: Mapping[Any, Mapping[str, float]]) -> dict[Any, dict[str, float]]:
    """The same with nothing where a change from zero has no ratio."""
    return {
        key: {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
        for key, values in groups.items()
    }


def _without_infinity(data: Any) -> Any:
    """As JSON, which has no infinity: None for a change from zero."""
    if isinstance(data, dict):
        return {key: _without_infinity(value) for key, value in data.items()}
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _table(
    found: Mapping[str, Drift], components: Mapping[str, Mapping[str, float]], layers: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """A line for each component, with those of its layers below, and in brackets its share of the whole change."""
    shares = {name: one.shares() for name, one in found.items()}
    rows = [["‖ΔW‖ / ‖W‖, and share of ‖ΔW‖²", *found]]
    for component, values in components.items():
        cells = [
            f"{100 * values[name]:.3f} % ({100 * shares[name].get(component, 0):3.0f} %)" if name in values else "–"
            for name in found
        ]
        rows.append([component, *cells])
        for layer, inner in layers.items():
            if layer.startswith(f"{component}, "):
                name_of = layer.removeprefix(f"{component}, ")
                cells = [f"{100 * inner[name]:.3f} %{'':8}" if name in inner else "–" for name in found]
                rows.append([f"  {name_of}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
