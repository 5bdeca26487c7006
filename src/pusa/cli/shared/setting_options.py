"""Options for the settings of a training: `--train.lr` sets `lr` in the section `train`.

The help is read from the source text of `pusa.training.config.sections`, because importing it would make `--help` slow.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.shared.terminal import Report

SECTIONS = Path(__file__).parents[2] / "training" / "config" / "sections.py"
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


_KINDS = {
    "Count": "INT",
    "Whole": "INT",
    "int": "INT",
    "PathSetting": "PATH",
    "HeldOut": "INT|FLOAT",
    "str": "TEXT",
    "Source": "TEXT",
    "bool": "true|false",
}
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


Verb = Callable[..., Report | None]


def with_settings(sections: Collection[str] | None = None, *, several: bool = False) -> Callable[[Verb], Verb]:
    """Return a decorator that replaces the parameter **overrides of a verb by one option for each setting.

    sections: those whose settings become options; None: all. several: an option for a list takes several values, too.
    """

    def decorate(verb: Verb) -> Verb:
        signature = inspect.signature(verb, eval_str=True)
        options = [option for option in signature.parameters.values() if option.kind is not option.VAR_KEYWORD]
        groups: dict[str, Group] = {}
        for one in settings():
            if sections is not None and one.section not in sections:
                continue
            if one.section not in groups:
                groups[one.section] = Group.create_ordered(f"{one.section}: {one.about}")
                if one.section == "lora":
                    options.append(_option("lora", "null", None, "Train the whole model instead.", groups["lora"]))
                if one.section == "memory":
                    text = "Settings for a card with this memory, such as 24gb."
                    options.append(_option("memory", "48gb|24gb|16gb|12gb", None, text, groups["memory"]))
            name = f"{one.section}.{one.name}"
            many = several and one.kind == "A,B"
            kind = one.kind.replace(",", " ") if many else one.kind
            options.append(_option(name, kind, one.default, one.help, groups[one.section], many=many))
        verb.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
        return verb

    return decorate


def _option(
    name: str, kind: str, default: str | None, text: str, group: Group, *, many: bool = False
) -> inspect.Parameter:
    shown = False if default is None else lambda _: default
    parameter = Parameter(name=f"--{name}", group=group, metavar=kind, help=text, show_default=shown, negative="",
                          consume_multiple=many)  # fmt: skip
    label = name.replace(".", SEPARATOR) if "." in name else name + SEPARATOR
    annotation: Any = tuple[str, ...] | None if many else str | None
    return inspect.Parameter(
        label, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, parameter]
    )


def given(overrides: Mapping[str, str | tuple[str, ...] | None]) -> dict[str, str]:
    """Return {"train.lr": "1e-4"} for the options that are given."""
    texts = {label: ",".join(value) if isinstance(value, tuple) else value for label, value in overrides.items()}
    return {label.rstrip("_").replace(SEPARATOR, "."): text for label, text in texts.items() if text is not None}
