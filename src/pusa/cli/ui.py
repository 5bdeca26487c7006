"""`pusa ui`; see `serve`."""

from pusa.cli.serve import ui

__all__ = ["ui"]
