"""Speed against closeness, as a plot."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from pusa.evaluation.plots import COLOURS, figure
from pusa.generation.calibration import Calibration


def draw(found: Calibration, path: Path) -> Path:
    """Draw the settings of a calibration, a line for each kind of acceleration, and return the path."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for one in found.settings():
        kind = "+".join(part.split(",")[0] for part in one.accelerate.split("+"))
        kinds.setdefault(kind, []).append((one.speed, one.psnr))
    with figure(path, 4.8, 3.2) as axes:
        axis = axes[0, 0]
        for colour, (kind, points) in zip(cycle(COLOURS), kinds.items(), strict=False):
            axis.plot(*zip(*sorted(points), strict=True), marker="o", ms=3, color=colour, label=kind)
        axis.axvline(1, color="#999999", lw=0.7)
        axis.set_xlabel("times as fast as the plain clip")
        axis.set_ylabel("PSNR to the plain clip (dB)")
        axis.set_title(f"{Path(found.source).name}, {found.steps} steps, in the worst of the tasks")
        axis.legend()
    return path
