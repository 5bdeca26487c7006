"""`pusa inspect`: inside a model. One file per command."""

from __future__ import annotations

from cyclopts import App

COMMANDS = {
    "attention": "Which frames look at which, while a clip is made.",
    "weights": "How far the weights of models, or a LoRA's, are from a base.",
}
inspect = App(name="inspect", help_epilogue="docs/inspect.md shows what the embedded model looks like inside.")
for _place, (_command, _help) in enumerate(COMMANDS.items()):
    inspect.command(f"pusa.cli.inspect.{_command}:{_command}", help=_help, sort_key=_place, help_epilogue="")
