"""`pusa vbench total`: compute the total of a run, and compare two runs."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pusa.cli.shared.options import OUTPUT, File, Many, Verbosity
from pusa.cli.shared.terminal import Report

if TYPE_CHECKING:
    from pusa.evaluation.vbench.totals import Results, RunScores


def total(
    results: Annotated[Path, File],
    *more: str,
    against: Annotated[tuple[str, ...], Many, Parameter(metavar="RESULTS...", consume_multiple=True)] = (),
    submission: Annotated[Path | None, File, Parameter(group=OUTPUT)] = None,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Compute the total of a run of VBench-I2V from result files of the official code, or from plain numbers.

    A file of plain numbers is {"i2v_subject": 0.9695, …}, in fractions or in percent. If a dimension or a video is
    missing, there is no total, and the exit code is 1.

    Parameters
    ----------
    results
        A result file.
    more
        Further files of the same run, with other dimensions.
    against
        Files of another run. The command prints how much each dimension adds to the difference.
    submission
        A .zip to write for the official leaderboard. It needs official results of all videos.
    """
    from pusa.evaluation.vbench import totals

    run = totals.read([results, *map(Path, more)])
    found = totals.run_scores(run)
    record: dict[str, Any] = {"run": run.name, "values": _percent(run), **found.record()}
    text = _table(run, found)
    if against:
        other = totals.read(list(map(Path, against)))
        parts = totals.contributions(other, run)
        record["against"] = {"run": other.name, "values": _percent(other), "contributions": parts}
        text += "\n\n" + _difference(run, other, parts)
    if submission is not None:
        totals.submit(run, submission)
        record["submission"] = str(submission)
        text += f"\n\n{submission}"
    return Report(record, text, exit_code=int(found.scores is None))


def _percent(run: Results) -> dict[str, float]:
    return {name: 100 * value for name, value in run.values.items()}


def _table(run: Results, found: RunScores) -> str:
    from pusa.evaluation.vbench.protocol import DIMENSIONS

    lines = []
    for name, dimension in DIMENSIONS.items():
        value = f"{100 * run.values[name]:6.2f}" if name in run.values else "missing"
        lines.append(f"{dimension.title:24}{value:>8}{_bounds(found, name)}")
    candidates = {"": found.scores, " of these videos": found.part, " without camera motion": found.without_camera}
    for title, scores in [(title, scores) for title, scores in candidates.items() if scores is not None][:1]:
        lines += [
            "",
            f"{'I2V' + title:32}{100 * scores.i2v:6.2f}",
            f"{'quality':32}{100 * scores.quality:6.2f}",
            f"{'total' + title:32}{100 * scores.total:6.2f}{_bounds(found, 'total')}",
        ]
    reasons = [f"{DIMENSIONS[name].title} is missing" for name in found.missing]
    reasons += [
        f"{DIMENSIONS[name].title} has {scored:,} of {expected:,} videos"
        for name, (scored, expected) in found.short.items()
    ]
    if reasons:
        lines += ["", f"The benchmark has no total: {', '.join(reasons)}."]
    return "\n".join(lines)


def _bounds(found: RunScores, name: str) -> str:
    interval = found.intervals.get(name)
    if interval is None or isnan(interval.low):
        return ""
    return f"  ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


def _difference(run: Results, other: Results, parts: dict[str, float]) -> str:
    from pusa.evaluation.vbench.protocol import DIMENSIONS

    lines = [f"{run.name} − {other.name}, in points of the total"]
    for name in sorted(parts, key=lambda key: -abs(parts[key])):
        values = f"{100 * other.values[name]:6.2f} → {100 * run.values[name]:6.2f}"
        lines.append(f"{DIMENSIONS[name].title:24}{values}{parts[name]:+9.3f}")
    sums = {
        group: sum(value for name, value in parts.items() if DIMENSIONS[name].group == group)
        for group in ("i2v", "quality")
    }
    lines.append(
        f"{'sum':24}{'':15}{sum(parts.values()):+9.3f}   (I2V {sums['i2v']:+.3f}, quality {sums['quality']:+.3f})"
    )
    if missing := [dimension.title for name, dimension in DIMENSIONS.items() if name not in parts]:
        lines.append(f"Missing in at least one run: {', '.join(missing)}.")
    return "\n".join(lines)
