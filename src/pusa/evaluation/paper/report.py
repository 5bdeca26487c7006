"""The tables as Markdown, JSON and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pusa.embedded import world
from pusa.evaluation.intervals import Interval
from pusa.evaluation.paper import experiments, figures, inside
from pusa.evaluation.paper.experiments import Study
from pusa.evaluation.paper.methods import METHODS, SEEDS
from pusa.evaluation.paper.scoring import Job
from pusa.evaluation.paper.tables import (
    SHOWN,
    TABLES,
    Table,
    cell,
    difference,
    outcome,
    reached_at,
    values,
    written,
)
from pusa.evaluation.paper.training import BATCH, CLIPS, STEPS, network
from pusa.files import write_json, write_text_atomic


def write(study: Study, letters: Sequence[str], seconds: float) -> tuple[list[Path], dict[str, Any]]:
    """Write paper.md and paper.json into the study's folder; the files, and what the JSON holds.

    seconds: that the trainings and clips took, added up over processes.
    """
    texts, record = [], {}
    for letter in letters:
        text, record[letter] = _inside(study) if letter == "j" else _table(study, TABLES[letter]())
        texts.append(text)
        if letter == "i":
            text, record["reached"] = _reached(study)
            texts.append(text)
        if picture := figures.draw(study, letter, study.folder / "images" / f"paper_{letter}.png"):
            texts.append(f"![Table {letter} as a figure](images/{picture.name})\n")
    texts.append(f"Trainings and clips of these tables took {seconds / 3600:.1f} hours of one CPU thread.\n")
    markdown, data = study.folder / "paper.md", study.folder / "paper.json"
    write_text_atomic(markdown, "\n".join([_head(), _outcomes(record), *texts]))
    write_json(data, record)
    return [markdown, data], {"tables": record, "seconds": seconds, "files": [str(markdown), str(data)]}


def _head() -> str:
    scenes = Job("base", 0, 0).scenes
    return f"""# The paper in miniature

Every number here is from the embedded base (4.7 million parameters, clips of {world.FRAMES} frames at {world.SIZE} ×
{world.SIZE}) and its synthetic world: {len(SEEDS)} trainings of each kind on the same {CLIPS:,} clips, and
{len(scenes)} held-out scenes for each. `pusa reproduce` makes all of it. PSNR is that of the frames that were not
given, pooled over all clips; the judge says whether the motion is the caption's. In brackets are 95 % bootstrap
intervals over trainings and scenes. The paper's numbers are totals of VBench-I2V for Wan2.1-14B: what can be compared
is the order, not the size.
"""


def _outcomes(record: dict[str, Any]) -> str:
    """The orderings by what became of them here."""
    judged = [
        (f"({letter}) {claim}", one["outcome"])
        for letter, found in record.items()
        for claim, one in zip(_whole(found.get("orderings", ())), found.get("orderings", ()), strict=True)
    ]
    lines = [
        "## Which orderings hold here\n",
        "The paper's, and some that it suggests: each judged by the interval of the difference on the same scenes.\n",
    ]
    for result, title in (("holds", "Hold"), ("reversed", "Are reversed"), ("undecided", "Are undecided")):
        claims = [claim for claim, outcome_here in judged if outcome_here == result]
        lines.append(f"* **{title}** ({len(claims)}): {'; '.join(claims) or 'none'}.")
    return "\n".join(lines) + "\n"


def _whole(orderings: Sequence[dict[str, Any]]) -> list[str]:
    """The claims, those that begin with … from the beginning of the last whole one, up to its "better"."""
    claims: list[str] = []
    for claim in (one["claim"] for one in orderings):
        more = claim.startswith("…")
        claims.append(claims[-1].partition(" better")[0] + " better" + claim.removeprefix("…") if more else claim)
    return claims


def _table(study: Study, table: Table) -> tuple[str, dict[str, Any]]:
    shown = [m for m in table.measures if any(values(study, row.jobs, m) is not None for row in table.rows)]
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
    measures = {"db": "PSNR", "motion": "share of right motions", "held_db": "PSNR of the given frame"}
    for measure, what in measures.items():
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
    lines.append(
        f"A step of all weights takes {_operations():.2f} times the operations of one of the adapter: 6 for each "
        "weight and token, against 4 for a frozen weight and 6 for one of the LoRA."
    )
    return "\n\n".join(lines) + "\n", record


def _operations() -> float:
    """Operations of a training step of all weights over those of a step of the adapter."""
    model, adapted = network(METHODS["vta"], 0)
    trained = sum(p.numel() for p in adapted.parameters.values())
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return 6 * frozen / (4 * frozen + 6 * trained)


def _inside(study: Study) -> tuple[str, dict[str, Any]]:
    """Attention to the first frame and the drift of weights, beside what the paper says."""
    shares = {name: {step: inside.share(study, name, step) for step in inside.AT_STEPS} for name in inside.COMPARED}
    last = {name: {step: inside.share(study, name, step, [-1]) for step in inside.AT_STEPS} for name in shares}
    more = {
        name: {step: inside.more_than_base(study, name, step) for step in inside.AT_STEPS}
        for name in shares
        if name != "base"
    }
    moved = {name: inside.moved(study, name) for name in shares if name != "base"}
    heads = ["", *(f"step {step}" for step in inside.AT_STEPS)]
    lines = [
        "## j. Inside\n",
        f"The share of the later frames' attention that goes to the given frame: {inside.SCENES} scenes, image to "
        "video, 10 steps. Exact means over tokens and heads.\n",
    ]
    for title, found in (("last block", last), ("mean of all blocks", shares)):
        lines += [_line([title, *heads[1:]]), _line(["---", *("---:" for _ in heads[1:])])]
        for name, steps in found.items():
            lines.append(_line([inside.COMPARED[name], *(one.text(1, 100) + " %" for one in steps.values())]))
        lines.append("")
    lines += [_line(["more than the base, last block", *heads[1:]]), _line(["---", *("---:" for _ in heads[1:])])]
    for name, steps in more.items():
        cells = (f"{one.text(1, 100)} % **{outcome(one)}**" for one in steps.values())
        lines.append(_line([inside.COMPARED[name], *cells]))
    lines += [
        "\nThe paper (figure 5, last block): its adapter strengthens the first frame's column at all steps, Wan-I2V at "
        "the first only. Its figure 6: Wan-I2V's weights moved over ten times as far as the adapter's, mostly in text "
        "embedding and cross-attention; the adapter's almost only in self-attention.\n",
        _line(["‖ΔW‖ / ‖W‖", *(inside.COMPARED[name] for name in moved)]),
        _line(["---", *("---:" for _ in moved)]),
    ]
    for component in next(iter(moved.values())):
        lines.append(_line([component, *(f"{100 * each[component]:.2f} %" for each in moved.values())]))
    lines.append("\n`pusa reproduce j`\n")
    record = {
        "last_block": {name: {str(s): _plain(one) for s, one in steps.items()} for name, steps in last.items()},
        "more_than_base": {name: {str(s): _plain(one) for s, one in steps.items()} for name, steps in more.items()},
        "drift": moved,
    }
    return "\n".join(lines), record


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(found: Interval | None) -> dict[str, float | None] | None:
    return None if found is None else found.record()
