"""`pusa vbench`: the videos of VBench-I2V, the official scorer, and its total. One file per command."""

from __future__ import annotations

from cyclopts import App

COMMANDS = {
    "manifest": "List the videos of a suite, each with its prompt, picture, seed and file name.",
    "generate": "Make the videos of a manifest.",
    "verify": "Say which videos are missing, damaged, duplicated or wrongly tagged.",
    "score": "Run the official code on the videos, in its own environment.",
    "total": "Add results up, or say what is missing; compare two runs.",
}
vbench = App(name="vbench", help_epilogue="In this order; docs/vbench.md has the protocol, its traps and its cost.")
for _place, (_command, _help) in enumerate(COMMANDS.items()):
    vbench.command(f"pusa.cli.vbench.{_command}:{_command}", help=_help, sort_key=_place, help_epilogue="")
