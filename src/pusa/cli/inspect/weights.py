"""`pusa inspect weights`: measure the relative change of weights, by component, layer and block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pusa.cli.shared.arguments import lora as read_lora
from pusa.cli.shared.options import OUTPUT, File, Many, Verbosity
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
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Compare models or LoRAs with a base model: ‖ΔW‖ / ‖W‖ by component, layer and block.

    The command writes weights.png, blocks.png and weights.json. It reads one tensor at a time, so models of any size
    fit into memory.

    Parameters
    ----------
    base
        The base model: tiny-base, a folder of a model or of a transformer, a file or a hub id.
    others
        Models of the same size. If one has further input channels, like an image-to-video model, they are left out and
        a note says so.
    lora
        A LoRA for the base, with its strength. Repeatable.
    out
        Folder for the results.
    """
    if not others and not lora:
        raise InputError("There is nothing to compare with the base; give another model or --lora FILE.")
    terminal = Terminal(verbosity.verbose)
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
    components = _changes(found, lambda group: group.component)
    layers = _changes(found, lambda group: f"{group.component}, {group.layer}" if group.layer else None)
    blocks = _changes(found, lambda group: group.block)
    in_blocks = _changes(
        found, lambda group: None if group.block is None else f"{group.component}, block {group.block}"
    )
    record = {
        "base": base,
        "components": components,
        "share_of_change": {name: drift.shares() for name, drift in found.items()},
        "layers": layers,
        "blocks": blocks,
        "components_by_block": in_blocks,
        "notes": {name: drift.notes for name, drift in found.items() if drift.notes},
    }
    pictures = [
        plots.grouped_bars(out / "weights.png", _infinity_as_nan(components), xlabel="‖ΔW‖ / ‖W‖"),
        plots.lines(
            out / "blocks.png",
            list(blocks),
            {name: [values[name] for values in _infinity_as_nan(blocks).values()] for name in found},
            xlabel="block",
            ylabel="‖ΔW‖ / ‖W‖",
        ),
    ]
    write_json(out / "weights.json", _without_infinity(record))
    paths = [str(path) for path in (*pictures, out / "weights.json")]
    notes = [f"{name}: {note}" for name, drift in found.items() for note in drift.notes]
    text = [*_table(found, components, layers), *notes, "", *paths]
    return Report(_without_infinity(record) | {"files": paths}, "\n".join(text))


def _find(base: str, others: tuple[str, ...]) -> dict[str, StoredTransformer]:
    """Return the models by their given names. `tiny` is not included, because it is a LoRA on tiny-base."""
    from pusa.evaluation.inspect.stored_transformer import StoredTransformer
    from pusa.models.loading.sources import TINY, TINY_BASE

    if TINY in (base, *others) and base != TINY_BASE:
        raise InputError("tiny is tiny-base with a LoRA; give tiny-base as the base.")
    return {source: StoredTransformer.find(source) for source in (base, *others) if source != TINY}


def _compare(
    base: str, others: tuple[str, ...], files: list[tuple[Path, float]], models: Mapping[str, StoredTransformer]
) -> dict[str, Drift]:
    """Return the drift of each model and each LoRA by its name in the report."""
    from pusa import embedded
    from pusa.evaluation.inspect import weight_drift
    from pusa.models.lora.runtime import default_name

    found: dict[str, Drift] = {}
    for path, strength in files:
        name = f"{default_name(path)} × {strength:g}"
        found[f"{path} × {strength:g}" if name in found else name] = weight_drift.of_lora(models[base], path, strength)
    for other in others:
        name = _short_name(other) if _short_name(other) not in found else other
        if other not in models:
            found[name] = weight_drift.of_lora(models[base], embedded.adapter(), embedded.STRENGTH)
            continue
        found[name] = weight_drift.of_models(models[base], models[other])
        for model in (models[base], models[other]):
            if model.experts > 1:
                found[name].notes.append(
                    f"{model.source} has {model.experts} experts; only the high-noise expert is compared"
                )
    return found


def _short_name(source: str) -> str:
    parts = [part for part in Path(source).parts if part != "transformer"]
    return "/".join(parts[-2:]) or source


def _changes(found: Mapping[str, Drift], key: Any) -> dict[Any, dict[str, float]]:
    """Return the relative changes as {key of a group: {name: change}}."""
    by_name = {name: drift.by(key) for name, drift in found.items()}
    keys = dict.fromkeys(key for values in by_name.values() for key in values)
    return {key: {name: values[key] for name, values in by_name.items() if key in values} for key in keys}


def _infinity_as_nan(groups: Mapping[Any, Mapping[str, float]]) -> dict[Any, dict[str, float]]:
    """Replace infinity, the relative change of a weight that was zero, by NaN, which is not drawn."""
    return {
        key: {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
        for key, values in groups.items()
    }


def _without_infinity(data: Any) -> Any:
    """Replace infinity, the relative change of a weight that was zero, by None, because JSON has no infinity."""
    if isinstance(data, dict):
        return {key: _without_infinity(value) for key, value in data.items()}
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _table(
    found: Mapping[str, Drift], components: Mapping[str, Mapping[str, float]], layers: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Return a table with a line for each component and, below it, for its layers.

    A component's share of the whole change is in brackets.
    """
    shares = {name: drift.shares() for name, drift in found.items()}
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
