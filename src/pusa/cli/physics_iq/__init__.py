"""`pusa physics-iq`: the videos of Physics-IQ, and their scores. One file per command."""

from __future__ import annotations

from cyclopts import App

COMMANDS = {
    "generate": "Make the videos of a track.",
    "score": "Score videos against the real takes.",
}
physics_iq = App(name="physics-iq", help_epilogue="docs/physics_iq.md has the layout of the data and the definitions.")
for _place, (_command, _help) in enumerate(COMMANDS.items()):
    physics_iq.command(f"pusa.cli.physics_iq.{_command}:{_command}", help=_help, sort_key=_place, help_epilogue="")
