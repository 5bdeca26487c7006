"""The tables as Markdown, JSON and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pusa.embedded import world
from pusa.evaluation.intervals import Interval
from pusa.evaluation.paper import experiments
from pusa.evaluation.paper.experiments import Study
from pusa.evaluation.paper.scoring import Job
from pusa.evaluation.paper.tables import (
    SHOWN,
    TABLES,
    Table,
    cell,
    difference,
    outcome,
    reached_at,
    written,
)
from pusa.evaluation.paper.training import BATCH, CLIPS, STEPS
from pusa.files import write_json, write_text_atomic


def write(study: Study, letters: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Write paper.md and paper.json into the study's folder; the files, and what the JSON holds."""
    texts, record = [_head()], {}
    for letter in letters:
        text, record[letter] = _table(study, TABLES[letter]())
        texts.append(text)
    if "i" in letters:
        text, record["reached"] = _reached(study)
        texts.append(text)
    markdown, data = study.folder / "paper.md", study.folder / "paper.json"
    write_text_atomic(markdown, "\n".join(texts))
    write_json(data, record)
    return [markdown, data], {"tables": record, "files": [str(markdown), str(data)]}


def _head() -> str:
    scenes = Job("base", 0, 0).scenes
    return f"""# The paper in miniature

Every number here is from the embedded base (4.7 million parameters, clips of {world.FRAMES} frames at {world.SIZE} ×
{world.SIZE}) and its synthetic world: {len(experiments.SEEDS)} trainings of each kind on the same {CLIPS:,} clips, and
{len(scenes)} held-out scenes for each. `pusa reproduce` makes all of it. PSNR is that of the frames that were not
given, pooled over all clips; the judge says whether the motion is the caption's. In brackets are 95 % bootstrap
intervals over trainings and scenes. The paper's numbers are totals of VBench-I2V for Wan2.1-14B: what can be compared
is the order, not the size.
"""


def _table(study: Study, table: Table) -> tuple[str, dict[str, Any]]:
    shown = [measure for measure in table.measures if any(cell(study, row, measure) for row in table.rows)]
    heads = ["", *(SHOWN[measure][0] for measure in shown), *([f"the paper: {table.paper}"] if table.paper else [])]
    lines = [f"## {table.key}. {table.title}\n", *(f"{note}\n" for note in table.notes)]
    lines += [_line(heads), _line(["---", *("---:" for _ in heads[1:])])]
    rows = []
    for row in table.rows:
        cells = {measure: cell(study, row, measure) for measure in shown}
        texts = [row.label, *(written(cells[measure], measure) for measure in shown)]
        lines.append(_line([*texts, row.paper] if table.paper else texts))
        rows.append({"label": row.label, "paper": row.paper, **{m: _plain(found) for m, found in cells.items()}})
    orderings = []
    if table.orderings:
        lines += ["", _line(["ordering", "difference", "here"]), _line(["---", "---:", "---"])]
    for ordering in table.orderings:
        found = difference(study, ordering)
        lines.append(_line([ordering.claim, written(found, ordering.measure), f"**{outcome(found)}**"]))
        orderings.append({"claim": ordering.claim, "difference": _plain(found), "outcome": outcome(found)})
    lines.append(f"\n`pusa reproduce {table.key}`\n")
    return "\n".join(lines), {"title": table.title, "rows": rows, "orderings": orderings}


def _reached(study: Study) -> tuple[str, dict[str, Any]]:
    """How many steps training with image channels takes to the adapter's score, as a ratio."""
    lines, record = [], {}
    for measure, what in (("db", "PSNR"), ("motion", "share of right motions")):
        steps, curve = reached_at(study, measure)
        record[measure] = {"steps": steps, "curve": curve, "ratio": None if steps is None else steps / STEPS}
        if steps is None:
            most = curve[-1][0]
            text = f"is not reached in {most:,} steps, {most / STEPS:g} times the adapter's"
        elif steps <= experiments.LONG[0]:
            text = f"is reached within {experiments.LONG[0]:,} steps, no more than the adapter's"
        else:
            text = (
                f"is reached after about {steps:,.0f} steps of {BATCH} clips, {steps / STEPS:.1f} times the adapter's"
            )
        lines.append(f"The adapter's {what} {text}.")
    return "\n".join(lines) + "\n", record


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
