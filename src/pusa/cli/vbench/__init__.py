"""`pusa vbench`: make the videos of VBench-I2V, run the official scorer, compute the total. One file per command."""

from __future__ import annotations

from cyclopts import App

COMMANDS = {
    "manifest": "List the videos of a suite, each with its prompt, picture, seed and file name.",
    "generate": "Make the videos of a manifest.",
    "verify": "Find videos that are missing, damaged, duplicated or wrongly tagged.",
    "score": "Run the official code on the videos, in its own environment.",
    "total": "Compute the total of a run, or list what is missing; compare two runs.",
}
vbench = App(
    name="vbench",
    help_epilogue="Run the commands in this order. docs/vbench.md describes the protocol, its pitfalls and its cost.",
)
for _position, (_command, _help) in enumerate(COMMANDS.items()):
    vbench.command(f"pusa.cli.vbench.{_command}:{_command}", help=_help, sort_key=_position, help_epilogue="")
