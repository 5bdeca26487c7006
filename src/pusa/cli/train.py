"""`pusa train`: train an adapter on a folder of clips.

Every setting of `pusa.training.config.sections` is an option: `--train.lr` sets `lr` in the section `train`. The help
is read from the source text of that module, because importing it would make `--help` slow.
"""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from pusa.cli.shared.options import OUTPUT, File, Switch, Verbosity
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import Cancelled, InputError

SECTIONS = Path(__file__).parents[1] / "training" / "config" / "sections.py"
SEPARATOR = "__"
"""Replaces the dot of an option in the name of its parameter."""


@dataclass(frozen=True)
class Setting:
    """One setting in sections.py.

    kind: the type of its value, as the help shows it. default: the default as text; None if the help text gives it.
    about: the description of its section.
    """

    section: str
    name: str
    kind: str
    default: str | None
    help: str
    about: str


def settings() -> Iterator[Setting]:
    """Yield every setting, in the order of sections.py."""
    tree = ast.parse(SECTIONS.read_text(encoding="utf-8"))
    for section in tree.body:
        if not (isinstance(section, ast.ClassDef) and section.name.endswith(("Config", "Settings"))):
            continue
        name = section.name.removesuffix("Config").removesuffix("Settings").lower()
        for field, text in zip(section.body, section.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value):
                continue
            if not (isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)):
                raise TypeError(f"{field.target.id} in {SECTIONS} has no help text under it")
            about = (ast.get_docstring(section) or "").rstrip(".")
            kind, choices = _kind(field.annotation)
            help_text = " ".join(str(text.value.value).split()) + (f" [choices: {choices}]" if choices else "")
            yield Setting(name, field.target.id, kind, _default(field.value), help_text, about)


_KINDS = {"Count": "INT", "Whole": "INT", "int": "INT", "Folder": "PATH", "str": "TEXT", "bool": "true|false"}
_KINDS |= dict.fromkeys(("Positive", "Amount", "Number", "Share", "Decay", "float"), "FLOAT")
_KINDS |= dict.fromkeys(("Interval", "IntervalOrNever"), "INT|epoch")
_KINDS |= {"list": "A,B", "dict": "A=0.5,B=0.5", "tuple": "A,B"}


def _kind(annotation: ast.expr) -> tuple[str, str]:
    """Return a word such as INT or CHOICE for a type annotation, and its choices as text."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *_])):
            return _kind(kind)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            words = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return "CHOICE", ", ".join(str(word.value) for word in words if isinstance(word, ast.Constant))
        case ast.Subscript(value=ast.Name(id=kind)) | ast.Name(id=kind):
            return _KINDS[kind], ""
        case ast.BinOp(left=left, right=ast.Constant(value=None)):
            return _kind(left)
        case ast.BinOp(left=left, right=right):
            return f"{_kind(left)[0]}|{_kind(right)[1]}", ""
    raise TypeError(f"{ast.unparse(annotation)} in {SECTIONS} has no word for the help; add it to _KINDS")


def _default(value: ast.expr) -> str | None:
    if isinstance(value, ast.Call) and value.args and ast.unparse(value.func) == "Path":
        value = value.args[0]
    try:
        plain = ast.literal_eval(value)
    except ValueError:
        return None
    if plain is None or isinstance(plain, list | dict):
        return None
    return (
        ",".join(map(str, plain))
        if isinstance(plain, tuple)
        else str(plain).lower()
        if isinstance(plain, bool)
        else str(plain)
    )


def _with_settings(verb: Callable[..., Report | None]) -> Callable[..., Report | None]:
    """Replace the parameter **overrides of a verb by one option for each setting."""
    signature = inspect.signature(verb, eval_str=True)
    options = [option for option in signature.parameters.values() if option.kind is not option.VAR_KEYWORD]
    groups: dict[str, Group] = {}
    for setting in settings():
        if setting.section not in groups:
            groups[setting.section] = Group.create_ordered(f"{setting.section}: {setting.about}")
            if setting.section == "lora":
                options.append(_option("lora", "null", None, "Train the whole model instead.", groups["lora"]))
        name = f"{setting.section}.{setting.name}"
        options.append(_option(name, setting.kind, setting.default, setting.help, groups[setting.section]))
    verb.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    return verb


def _option(name: str, kind: str, default: str | None, text: str, group: Group) -> inspect.Parameter:
    shown = False if default is None else lambda _: default
    parameter = Parameter(name=f"--{name}", group=group, metavar=kind, help=text, show_default=shown)
    label = name.replace(".", SEPARATOR) if "." in name else name + SEPARATOR
    return inspect.Parameter(
        label, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, parameter]
    )


@_with_settings
def train(
    config: Annotated[Path | None, File, Parameter(metavar="CONFIG")] = None,
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    presets: Annotated[bool, Switch] = False,
    data: Annotated[str | None, Parameter(metavar="DIR")] = None,
    resume_from: Annotated[Path | None, File, Parameter(metavar="CHECKPOINT")] = None,
    out: Annotated[
        Path | None, File, Parameter(group=OUTPUT, show_default=lambda _: "runs/ and the name of CONFIG or preset")
    ] = None,
    overwrite: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
    verbosity: Verbosity = Verbosity(),
    **overrides: str | None,
) -> Report | None:
    """Train an adapter on a folder of clips. It gives a text-to-video model one timestep per frame.

    If training is interrupted, run the same command again. It resumes from the last checkpoint. To use several devices,
    start it with torchrun -m pusa train or accelerate launch -m pusa train, with the same options.

    Parameters
    ----------
    config
        A .yaml or .toml file of settings. Options such as --train.lr override it.
    preset
        A named set of settings; CONFIG and options override it. --presets lists all presets.
    presets
        List the presets with their memory and time, and exit.
    data
        A folder of clips with captions, a table of clips, or the hub id of a dataset.
    resume_from
        Begin with a checkpoint of another run, such as runs/first/checkpoints/step_000300. Give a new --out; the other
        run does not change.
    out
        Folder of the run.
    overwrite
        Continue in a folder that was trained with other settings.
    """
    if presets:
        return _presets()
    is_rank_zero = os.environ.get("RANK", "0") == "0"
    terminal = Terminal(is_rank_zero and verbosity.verbose)
    named = {label.rstrip("_").replace(SEPARATOR, "."): text for label, text in overrides.items() if text is not None}
    if data is not None and named.setdefault("data.path", data) != data:
        raise InputError("--data and --data.path are the same option and have different values; give one of them.")
    with terminal.status("Starting"):
        from pusa.training.config.tree import read

        chosen = read(config, preset, named)
        if chosen.data.path is None:
            raise InputError("There are no clips to train on; give --data DIR, or data.path in the settings.")

        from pusa.training.run import run
    name = config.stem if config else preset or "tiny-base"
    try:
        outcome = run(chosen, out or Path("runs") / name, resume_from=resume_from, force=overwrite, terminal=terminal)
    except Cancelled as error:
        if is_rank_zero:
            raise
        raise SystemExit(error.exit_code) from error
    if not is_rank_zero:
        return None
    result = outcome.result
    record = {
        "folder": str(result.folder),
        "output": str(result.output),
        "first": result.first,
        "steps": result.steps,
        "loss": result.loss,
        "skipped": list(result.skipped),
        "samples": outcome.samples,
        "held_out": outcome.held_out,
        "unused": [{"path": str(one.path), "kind": one.kind, "reason": one.reason} for one in outcome.problems],
    }
    return Report(record, str(result.output))


def _presets() -> Report:
    from pusa.training.config.presets import PRESETS

    record = {
        name: {"memory": preset.memory, "time": preset.time, "note": preset.note} for name, preset in PRESETS.items()
    }
    width = max(map(len, PRESETS))
    lines = [
        line
        for name, preset in PRESETS.items()
        for line in (f"{name:{width}}  {preset.note}", f"{'':{width}}  {preset.memory}; {preset.time}")
    ]
    return Report({"presets": record}, "\n".join(lines))
