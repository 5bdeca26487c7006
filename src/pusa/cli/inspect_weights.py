"""`pusa inspect weights`: relative change of weights, by component and by block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pusa.cli.arguments import lora as read_lora
from pusa.cli.options import OUTPUT, File, Many, Talk
from pusa.cli.terminal import Report, Terminal
from pusa.errors import InputError


def weights(
    base: str,
    *others: str,
    lora: Annotated[tuple[str, ...], Many, Parameter(metavar="PATH[:SCALE]")] = (),
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/weights"),
    talk: Talk = Talk(),
) -> Report:
    """Compare models, or LoRAs at their strengths, with a base: ‖ΔW‖ / ‖W‖ by component and by block.

    weights.png and weights.json are written. Models are held in memory whole, two at a time; a LoRA a layer at a time.

    Parameters
    ----------
    base
        The model that is compared with: tiny-base, a folder, a file or a hub id.
    others
        Models of the same architecture; further input channels, as an image-to-video model has them, are left out.
    lora
        LoRA files for the base, each at its strength. Repeatable.
    out
        Folder for the results.
    """
    if not others and not lora:
        raise InputError("There is nothing to compare with the base; give another model or --lora FILE.")
    terminal = Terminal(talk.talkative)
    files = [read_lora(text, 1.0) for text in lora]
    with terminal.status("Comparing"):
        from pusa.errors import needing
        from pusa.evaluation import drift
        from pusa.files import write_json

        with needing("eval"):
            from pusa.evaluation import plots

        first = _transformer(base)
        found: dict[str, drift.Drift] = {}
        for path, strength in files:
            found[f"{path.name} × {strength:g}"] = drift.of_lora(first, path, strength)
        for other in others:
            found[_short(other)] = drift.of_models(first, _transformer(other))
    groups = drift.over(found)
    record: dict[str, Any] = {
        "base": base,
        "components": groups,
        "blocks": {name: one.of()[1] for name, one in found.items()},
        "notes": {name: one.notes for name, one in found.items() if one.notes},
    }
    write_json(_made(out) / "weights.json", record)
    picture = plots.grouped_bars(out / "weights.png", groups, xlabel="‖ΔW‖ / ‖W‖")
    width = max(map(len, groups))
    lines = [f"{'':{width}}  {'  '.join(f'{name:>12}' for name in found)}"]
    for component, values in groups.items():
        numbers = "  ".join(f"{100 * values[name]:>{max(12, len(name)) - 2}.3f} %" for name in found)
        lines.append(f"{component:{width}}  {numbers}")
    lines += [f"{name}: {note}" for name, one in found.items() for note in one.notes]
    return Report(record, "\n".join([*lines, "", str(picture), str(out / "weights.json")]))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _short(source: str) -> str:
    parts = [part for part in Path(source).parts if part != "transformer"]
    return "/".join(parts[-2:]) or source


def _transformer(source: str) -> Any:
    """The transformer of a model without LoRAs, or of a bare transformer folder."""
    folder = Path(source)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        from diffusers import WanTransformer3DModel

        return WanTransformer3DModel.from_pretrained(folder)
    from pusa.models import checkpoints

    return checkpoints.load(checkpoints.TINY_BASE if source == checkpoints.TINY else source).transformer
