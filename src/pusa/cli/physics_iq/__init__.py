"""`pusa physics-iq`: make the videos of Physics-IQ and score them. One file per command."""

from __future__ import annotations

from cyclopts import App

COMMANDS = {
    "generate": "Make the videos of a track.",
    "score": "Score videos by comparing them with the real takes.",
}
physics_iq = App(name="physics-iq", help_epilogue="docs/physics_iq.md defines the scores and the layout of the data.")
for _position, (_command, _help) in enumerate(COMMANDS.items()):
    physics_iq.command(f"pusa.cli.physics_iq.{_command}:{_command}", help=_help, sort_key=_position, help_epilogue="")
