"""`pusa inspect`: inspect a model. One file per command."""

from __future__ import annotations

from cyclopts import App

COMMANDS = {
    "attention": "Measure the attention between frames while a clip is made.",
    "weights": "Measure how far the weights of models or LoRAs are from a base.",
}
inspect = App(name="inspect", help_epilogue="docs/inspect.md shows the results for the embedded model.")
for _position, (_command, _help) in enumerate(COMMANDS.items()):
    inspect.command(f"pusa.cli.inspect.{_command}:{_command}", help=_help, sort_key=_position, help_epilogue="")
