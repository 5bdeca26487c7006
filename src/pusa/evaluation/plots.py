"""Figures in one style: small multiples on white, thin lines, eight colours that colour-blind people can tell apart.

Every function writes one file, PNG or SVG by its suffix, and returns its path. Colours: Okabe and Ito (2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pusa.core.timesteps import TimestepMatrix
from pusa.evaluation.intervals import Interval
from pusa.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "normal",
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": 150,
    "savefig.facecolor": "white",
}
HEAT = "magma_r"
"""pale is little, dark is much, as in a timestep matrix pale is clean and dark is noise"""
Series = Mapping[str, Sequence[Interval | float]]


@contextmanager
def _figure(path: Path, width: float, height: float, **grid: Any) -> Iterator[Any]:
    """Axes [rows, columns] in the style, written to `path` at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(squeeze=False, **grid)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            figure.savefig(part)


def _ends(values: Sequence[Interval | float]) -> tuple[Any, Any, Any]:
    numbers = [v if isinstance(v, Interval) else Interval(float(v), float(v), float(v)) for v in values]
    value, low, high = (np.array([getattr(v, end) for v in numbers]) for end in ("value", "low", "high"))
    return value, low, high


def lines(
    path: Path, x: Sequence[float], series: Series, *, xlabel: str, ylabel: str, log: bool = False, title: str = ""
) -> Path:
    """Named series over x, intervals as bands. log: a logarithmic x with the given places as ticks."""
    with _figure(path, 4.8, 3.2) as axes:
        axis = axes[0, 0]
        for colour, (name, values) in zip(_cycle(), series.items(), strict=False):
            middle, low, high = _ends(values)
            places = list(x)[: len(middle)]
            axis.plot(places, middle, marker="o", ms=3, color=colour, label=name)
            axis.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
        if log:
            axis.set_xscale("log")
            axis.set_xticks(list(x), [f"{value:g}" for value in x])
            axis.minorticks_off()
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if len(series) > 1:
            axis.legend()
    return path


def bars(
    path: Path, values: Mapping[str, Interval | float], *, xlabel: str, title: str = "", zero: bool = True
) -> Path:
    """Lying bars, or with zero=False points, one for each name from the top, with their intervals."""
    with _figure(path, 6.0, 0.5 + 0.26 * len(values)) as axes:
        axis = axes[0, 0]
        middle, low, high = _ends(list(values.values()))
        places = np.arange(len(values))[::-1]
        spread = np.stack([middle - low, high - middle]).clip(min=0)
        if zero:
            axis.barh(places, middle, color=COLOURS[0], alpha=0.85, height=0.62)
            axis.errorbar(middle, places, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8)
        else:
            axis.errorbar(middle, places, xerr=spread, fmt="o", ms=4, color=COLOURS[0], elinewidth=1.0)
        axis.set_yticks(places, list(values))
        axis.tick_params(axis="y", length=0)
        axis.set(xlabel=xlabel, title=title)
    return path


def grouped_bars(path: Path, groups: Mapping[str, Mapping[str, float]], *, xlabel: str, log: bool = False) -> Path:
    """Lying bars of several names in each group; log: a logarithmic axis, on which nothing is at its left end."""
    names = list(next(iter(groups.values())))
    with _figure(path, 6.0, 0.6 + 0.17 * len(groups) * (len(names) + 0.7)) as axes:
        axis = axes[0, 0]
        thick = 0.8 / len(names)
        for i, (name, colour) in enumerate(zip(names, _cycle(), strict=False)):
            places = [len(groups) - 1 - g + 0.4 - thick * (i + 0.5) for g in range(len(groups))]
            axis.barh(places, [group[name] for group in groups.values()], thick * 0.9, color=colour, label=name)
        if log:
            axis.set_xscale("log")
        axis.set_yticks(range(len(groups)), list(groups)[::-1])
        axis.tick_params(axis="y", length=0)
        axis.set(xlabel=xlabel)
        if len(names) > 1:
            axis.legend(loc="best")
    return path


def heat(path: Path, maps: Mapping[tuple[str, str], ArrayLike], *, label: str, xlabel: str, ylabel: str) -> Path:
    """Small heat maps, one for each (row, column), on one scale; numbers in the cells of small ones."""
    rows, columns = (list(dict.fromkeys(key[i] for key in maps)) for i in (0, 1))
    most = max(float(np.max(np.asarray(values))) for values in maps.values())
    with _figure(path, 1.0 + 1.9 * len(columns), 0.5 + 1.75 * len(rows), nrows=len(rows), ncols=len(columns)) as axes:
        image = None
        for (row, column), values in maps.items():
            axis = axes[rows.index(row), columns.index(column)]
            array = np.asarray(values)
            image = axis.imshow(array, cmap=HEAT, vmin=0, vmax=most)
            axis.set_xticks(range(array.shape[1]))
            axis.set_yticks(range(array.shape[0]))
            axis.tick_params(length=0, labelsize=6)
            if array.size <= 64:
                for (i, j), value in np.ndenumerate(array):
                    shade = "white" if value > 0.55 * most else "black"
                    axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=5.5, color=shade)
            if row == rows[0]:
                axis.set_title(column)
            if row == rows[-1]:
                axis.set_xlabel(xlabel)
            if column == columns[0]:
                axis.set_ylabel(f"{row}\n{ylabel}")
        axes[0, 0].figure.colorbar(image, ax=axes, shrink=0.6, label=label)
    return path


def matrix(path: Path, matrices: Mapping[str, TimestepMatrix]) -> Path:
    """Timestep matrices side by side, in the colours of `TimestepMatrix.image`: a row per step, a column per frame."""
    with _figure(path, 0.4 + 1.7 * len(matrices), 2.6, ncols=len(matrices)) as axes:
        for axis, (name, one) in zip(axes[0], matrices.items(), strict=True):
            axis.imshow(one.image(16).numpy(), extent=(-0.5, one.frames - 0.5, one.steps - 0.5, -0.5), aspect="auto")
            axis.set(title=name, xlabel="latent frame", xticks=range(one.frames))
            axis.tick_params(length=0)
        axes[0, 0].set_ylabel("sampling step ↓")
    return path


def table(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A table as a figure: the first column to the left, the others to the right, thin rules above and below."""
    widths = [max(len(row[i]) for row in [head, *rows]) + 2 for i in range(len(head))]
    total = sum(widths)
    with _figure(path, 0.085 * total + 0.2, 0.24 * (len(rows) + 1) + 0.2) as axes:
        axis = axes[0, 0]
        axis.axis("off")
        axis.set(xlim=(0, total), ylim=(len(rows) + 1, 0))
        for y, row in enumerate([head, *rows]):
            right = 0
            for i, cell in enumerate(row):
                right += widths[i]
                place = {"x": 0, "ha": "left"} if i == 0 else {"x": right, "ha": "right"}
                axis.text(**place, y=y + 0.5, s=cell, va="center", color="#555555" if y == 0 else "black")
        for y in (1, len(rows) + 1):
            axis.axhline(y, color="#999999", lw=0.7)
    return path


def _cycle() -> Iterator[str]:
    while True:
        yield from COLOURS
