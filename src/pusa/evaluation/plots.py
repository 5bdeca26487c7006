"""Figures in one style: white background, thin lines, and eight colours that colour-blind people can tell apart.

Each function writes one file, PNG or SVG by its suffix, and returns its path. Colours: Okabe and Ito (2008).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.evaluation.intervals import Interval
from pusa.files import existing_file, lines_of, replacing

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
"""light is low and dark is high, as in pictures of a timestep matrix, where clean is light and noise is dark"""
Series = Mapping[str, Sequence[Interval | float]]


@contextmanager
def figure(path: Path, width: float, height: float, **grid: Any) -> Iterator[Any]:
    """Axes [rows, columns] in the style; the figure is written to `path` at the end of the block."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(squeeze=False, **grid)
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            figure.savefig(part, bbox_inches="tight", pad_inches=0.06)


def _ends(values: Sequence[Interval | float]) -> tuple[Any, Any, Any]:
    numbers = [v if isinstance(v, Interval) else Interval(float(v), float(v), float(v)) for v in values]
    value, low, high = (np.array([getattr(v, end) for v in numbers]) for end in ("value", "low", "high"))
    return value, low, high


def lines(
    path: Path,
    x: Sequence[float],
    series: Series,
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    log_y: bool = False,
    title: str = "",
) -> Path:
    """Named series over x, with intervals as bands. log: a logarithmic x axis whose ticks are the values of x.

    log_y: a logarithmic y axis.
    """
    with figure(path, 4.8, 3.2) as axes:
        axis = axes[0, 0]
        for colour, (name, values) in zip(cycle(COLOURS), series.items(), strict=False):
            middle, low, high = _ends(values)
            places = list(x)[: len(middle)]
            axis.plot(places, middle, marker="o", ms=3, color=colour, label=name)
            axis.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
        if log:
            axis.set_xscale("log")
            axis.set_xticks(list(x), [f"{value:g}" for value in x])
            axis.minorticks_off()
        if log_y:
            axis.set_yscale("log")
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if len(series) > 1:
            axis.legend()
    return path


def curves(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Path:
    """Named lines through points (x, y), each with x values of its own."""
    with figure(path, 4.8, 3.2) as axes:
        axis = axes[0, 0]
        for colour, (name, points) in zip(cycle(COLOURS), series.items(), strict=False):
            axis.plot(*zip(*sorted(points), strict=True), marker="o", ms=3, color=colour, label=name)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.set_title(title)
        axis.legend()
    return path


def bars(
    path: Path, values: Mapping[str, Interval | float], *, xlabel: str, title: str = "", zero: bool = True
) -> Path:
    """Horizontal bars with intervals, one for each name from the top; with zero=False, points instead of bars."""
    with figure(path, 6.0, 0.5 + 0.26 * len(values)) as axes:
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


def grouped_bars(
    path: Path, groups: Mapping[str, Mapping[str, Interval | float]], *, xlabel: str, log: bool = False
) -> Path:
    """Horizontal bars of several names in each group, with intervals; a group need not have every name.

    log: a logarithmic axis; a bar of 0 is at its left end.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    with figure(path, 6.0, 0.6 + 0.17 * len(groups) * (len(names) + 0.7)) as axes:
        axis = axes[0, 0]
        thick = 0.8 / len(names)
        for i, (name, colour) in enumerate(zip(names, cycle(COLOURS), strict=False)):
            there = [(g, group[name]) for g, group in enumerate(groups.values()) if name in group]
            places = [len(groups) - 1 - g + 0.4 - thick * (i + 0.5) for g, _ in there]
            middle, low, high = _ends([value for _, value in there])
            axis.barh(places, middle, thick * 0.9, color=colour, label=name)
            spread = np.stack([middle - low, high - middle]).clip(min=0)
            if spread.any():
                axis.errorbar(middle, places, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8)
        if log:
            axis.set_xscale("log")
        axis.set_yticks(range(len(groups)), list(groups)[::-1])
        axis.tick_params(axis="y", length=0)
        axis.margins(y=0.02)
        axis.set(xlabel=xlabel)
        if len(names) > 1:
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(names)))
    return path


def heat(path: Path, maps: Mapping[tuple[str, str], ArrayLike], *, label: str, xlabel: str, ylabel: str) -> Path:
    """Small heat maps on one colour scale, one for each (row, column). Maps of at most 64 cells show percentages."""
    rows, columns = (list(dict.fromkeys(key[i] for key in maps)) for i in (0, 1))
    most = max(float(np.max(np.asarray(values))) for values in maps.values())
    with figure(path, 1.0 + 1.9 * len(columns), 0.5 + 1.75 * len(rows), nrows=len(rows), ncols=len(columns)) as axes:
        image = None
        for (row, column), values in maps.items():
            axis = axes[rows.index(row), columns.index(column)]
            array = np.asarray(values)
            image = axis.imshow(array, cmap=HEAT, vmin=0, vmax=most)
            axis.set_xticks(_few(array.shape[1]))
            axis.set_yticks(_few(array.shape[0]))
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
        shown = {"shrink": min(0.6, 1.2 / len(rows)), "aspect": 14, "anchor": (0, 1), "format": PercentFormatter(1)}
        axes[0, 0].figure.colorbar(image, ax=axes, label=label, **shown)
    return path


def matrix(path: Path, matrices: Mapping[str, TimestepMatrix]) -> Path:
    """Timestep matrices side by side, in the colours of `TimestepMatrix.image`: a row per step, a column per frame."""
    with figure(path, 0.4 + 1.7 * len(matrices), 2.6, ncols=len(matrices)) as axes:
        for axis, (name, one) in zip(axes[0], matrices.items(), strict=True):
            axis.imshow(one.image(16).numpy(), extent=(-0.5, one.frames - 0.5, one.steps - 0.5, -0.5), aspect="auto")
            axis.set(title=name, xlabel="latent frame", xticks=range(one.frames))
            axis.tick_params(length=0)
        axes[0, 0].set_ylabel("sampling step ↓")
    return path


def table(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A table as a figure: the first column is left-aligned, the others right-aligned, between thin lines."""
    widths = [max(len(row[i]) for row in [head, *rows]) + 2 for i in range(len(head))]
    total = sum(widths)
    with figure(path, 0.085 * total + 0.2, 0.24 * (len(rows) + 1) + 0.2) as axes:
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


def training(path: Path, runs: Mapping[str, Path], window: int = 50) -> Path:
    """Curves of trainings, from their log.jsonl: the loss by step and the loss by noise level.

    runs: the folder of each training, by name. The first panel shows the loss and its mean over `window` steps. The
    second panel shows the mean over the last quarter of the steps, weighted by frames. The loss of a noise level
    depends on the share of noise in a frame, so compare only equal noise levels. Raises InputError if a log is missing
    or damaged.
    """
    with figure(path, 8.4, 3.2, ncols=2) as axes:
        over, by_level = axes[0]
        for colour, (name, folder) in zip(cycle(COLOURS), runs.items(), strict=False):
            steps, loss, levels = _logged(folder / "log.jsonl")
            over.plot(steps, loss, color=colour, lw=0.5, alpha=0.25)
            over.plot(steps, _running_mean(loss, window), color=colour, label=name)
            places = (np.arange(len(levels)) + 0.5) / len(levels)
            by_level.plot(places, levels, marker="o", ms=3, color=colour, label=name)
        over.set(xlabel="step", ylabel="loss")
        by_level.set(xlabel="noise level σ", xlim=(0, 1), title="last quarter of the steps")
        if len(runs) > 1:
            over.legend()
    return path


def _logged(log: Path) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps [n], loss [n], and the mean loss of ten noise levels [10] over the last quarter of the steps."""
    text = existing_file(log).read_text(encoding="utf-8")
    try:
        rows = [json.loads(line) for line in lines_of(text)]
        steps = np.array([row["step"] for row in rows])
        loss = np.array([row["loss"] for row in rows], dtype=np.float64)
        late = rows[-max(1, len(rows) // 4) :]
        weight = np.array([row["frames_by_sigma"] for row in late], dtype=np.float64)
        each = np.array([[0.0 if one is None else one for one in row["loss_by_sigma"]] for row in late])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{log} is damaged, or it is not the log of a training; give the folder of a training."
        ) from error
    with np.errstate(invalid="ignore"):
        return steps, loss, (weight * each).sum(axis=0) / weight.sum(axis=0)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the last `window` values at each position, and of fewer values at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = (ends - window).clip(min=0)
    mean: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return mean


def _few(count: int) -> range:
    """Positions of at most nine ticks for `count` cells."""
    return range(0, count, -(-count // 9))
