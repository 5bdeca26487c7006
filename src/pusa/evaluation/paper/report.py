"""Write the tables as Markdown and JSON, with figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pusa.embedded import world
from pusa.evaluation.intervals import Interval
from pusa.evaluation.paper import figures, inspection
from pusa.evaluation.paper.experiments import LONG_CHECKPOINTS, Experiment
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.paper.tables import TABLES, Table
from pusa.evaluation.paper.training import CLIPS, network
from pusa.evaluation.paper.training_methods import BATCH, METHODS, SEEDS, STEPS, STRENGTH
from pusa.evaluation.paper.verdicts import SHOWN, cell, cell_text, difference, outcome, reached_at, values
from pusa.files import write_json, write_text_atomic


def write(folder: StudyFolder, letters: Sequence[str], seconds: float) -> tuple[list[Path], dict[str, Any]]:
    """Write paper.md, paper.json and the figures into the folder; returns the files, and the tables as JSON.

    seconds: the time of all trainings and clips, summed over processes.
    """
    texts, record = [], {}
    for letter in letters:
        text, record[letter] = _inspection(folder) if letter == "j" else _table(folder, TABLES[letter]())
        texts.append(text)
        if letter == "i":
            text, record["reached"] = _reached(folder)
            texts.append(text)
        if picture := figures.draw(folder, letter, folder.path / "images" / f"paper_{letter}.png"):
            texts.append(f"![Table {letter} as a figure](images/{picture.name})\n")
    texts.append(f"The trainings and clips of these tables took {seconds / 3600:.1f} hours of one CPU thread.\n")
    markdown, data = folder.path / "paper.md", folder.path / "paper.json"
    write_text_atomic(markdown, "\n".join([_head(), _outcomes(record), *texts]))
    write_json(data, record)
    return [markdown, data], {"tables": record, "seconds": seconds, "files": [str(markdown), str(data)]}


def _head() -> str:
    scenes = Experiment("base", 0, 0).scenes
    return f"""# The paper in miniature

Every number here was measured with the embedded base model (6.6 million parameters, clips of {world.FRAMES} frames of
{world.SIZE} × {world.SIZE} pixels) on its synthetic world: {len(SEEDS)} trainings of each method on the same {CLIPS:,}
clips, and {len(scenes)} held-out scenes for each training. `pusa reproduce` makes all of it. The paper is arXiv
2507.16116. Its numbers are VBench-I2V totals of Wan2.1-14B. You can therefore compare only the order of the rows, and
not the numbers.

These are the methods:

* *This method* trains a LoRA. In training, each latent frame has its own noise level. With *all weights*, it trains all
  weights instead of a LoRA.
* *First frame always clean*: in training, frame 0 is clean, and the other frames share one noise level.
* *PTSS p*: with probability p, each frame has its own noise level. Otherwise all frames share one level.
* *Tasks* (table k): the noise levels are those of a task, such as image to video: given frames are clean, and the
  other frames share one level.
* *Image channels*: all weights are trained. The model gets the first frame in additional input channels, as Wan-I2V
  does.
* *The base* is the text-to-video model before this training.

These are the columns:

* *× s* is the strength s of the LoRA. If a row with a LoRA has no strength, the strength is {STRENGTH:g}.
* *PSNR* is the PSNR of the frames that were not given, pooled over all clips.
* *Over the baseline* is the PSNR minus the PSNR of a simple baseline, such as the first frame repeated.
* *Motion right* is the share of clips in which the judge, a program, finds the motion of the caption.
* *Given frame* is the PSNR of the given frame.
* Brackets contain 95 % bootstrap intervals over trainings and scenes.
"""


def _outcomes(record: dict[str, Any]) -> str:
    """The orderings, grouped by their outcome here."""
    judged = [
        (f"({letter}) {claim}", one["outcome"])
        for letter, found in record.items()
        for claim, one in zip(_whole_claims(found.get("orderings", ())), found.get("orderings", ()), strict=True)
    ]
    lines = [
        "## Which orderings hold here\n",
        "An ordering says that one row of a table is better than another. Most orderings are claims of the paper. The "
        "others follow from it, and those of table k go beyond it. An ordering holds if the interval of the difference "
        "on the same scenes is above 0. It is reversed if the interval is below 0. Otherwise it is undecided. The "
        "letter is that of the table.\n",
    ]
    for result, title in (("holds", "Hold"), ("reversed", "Are reversed"), ("undecided", "Are undecided")):
        claims = [claim for claim, outcome_here in judged if outcome_here == result]
        lines += [f"* **{title}** ({len(claims)}):", *(f"  * {claim}" for claim in claims)]
    return "\n".join(lines) + "\n"


def _whole_claims(orderings: Sequence[dict[str, Any]]) -> list[str]:
    """The claims, where "… than X" continues the last whole claim after its "better"."""
    claims: list[str] = []
    for claim in (one["claim"] for one in orderings):
        more = claim.startswith("…")
        claims.append(claims[-1].partition(" better")[0] + " better" + claim.removeprefix("…") if more else claim)
    return claims


def _table(folder: StudyFolder, table: Table) -> tuple[str, dict[str, Any]]:
    shown = [m for m in table.measures if any(values(folder, row.experiments, m) is not None for row in table.rows)]
    heads = ["", *(SHOWN[measure][0] for measure in shown), *([f"the paper: {table.paper}"] if table.paper else [])]
    lines = [f"## {table.key}. {table.title}\n", *(f"{note}\n" for note in table.notes)]
    lines += [_line(heads), _line(["---", *("---:" for _ in heads[1:])])]
    rows = []
    for row in table.rows:
        cells = {measure: cell(folder, row, measure) for measure in shown}
        texts = [row.label, *(cell_text(cells[measure], measure) for measure in shown)]
        lines.append(_line([*texts, row.paper] if table.paper else texts))
        rows.append({"label": row.label, "paper": row.paper, **{m: _plain(found) for m, found in cells.items()}})
    orderings = []
    if table.orderings:
        lines += ["", _line(["ordering", "difference", "here"]), _line(["---", "---:", "---"])]
    for ordering in table.orderings:
        found = difference(folder, ordering)
        lines.append(_line([ordering.claim, cell_text(found, ordering.measure), f"**{outcome(found)}**"]))
        orderings.append({"claim": ordering.claim, "difference": _plain(found), "outcome": outcome(found)})
    lines.append(f"\n`pusa reproduce {table.key}`\n")
    return "\n".join(lines), {"title": table.title, "rows": rows, "orderings": orderings}


def _reached(folder: StudyFolder) -> tuple[str, dict[str, Any]]:
    """The steps after which training with image channels reaches the adapter's scores, as text and as JSON."""
    lines, record = [], {}
    measures = {"db": "PSNR", "motion": "share of right motions", "held_db": "PSNR of the given frame"}
    for measure, what in measures.items():
        steps, curve = reached_at(folder, measure)
        record[measure] = {"steps": steps, "curve": curve, "ratio": None if steps is None else steps / STEPS}
        if steps is None:
            most = curve[-1][0]
            text = f"does not reach it in {most:,} steps, {most / STEPS:g} times the steps of the adapter"
        elif steps <= LONG_CHECKPOINTS[0]:
            text = f"reaches it within {LONG_CHECKPOINTS[0]:,} steps, not more than the steps of the adapter"
        else:
            text = (
                f"reaches it after about {steps:,.0f} steps of {BATCH} clips, {steps / STEPS:.1f} times the steps of "
                "the adapter"
            )
        lines.append(f"The adapter's {what}: training with image channels {text}.")
    lines.append(
        f"A training step of all weights takes {_operations():.2f} times the operations of a step of the adapter. The "
        "count for each token is 6 operations for each trained weight and 4 for each frozen weight."
    )
    return "\n\n".join(lines) + "\n", record


def _operations() -> float:
    """The operations of a training step of all weights, divided by those of a step of the adapter."""
    model, adapted = network(METHODS["vta"], 0)
    trained = sum(p.numel() for p in adapted.parameters.values())
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return 6 * frozen / (4 * frozen + 6 * trained)


def _inspection(folder: StudyFolder) -> tuple[str, dict[str, Any]]:
    """Attention to the first frame and weight drift, with what the paper says, as text and as JSON."""
    shares = {
        name: {step: inspection.share(folder, name, step) for step in inspection.AT_STEPS} for name in inspection.TITLES
    }
    last = {name: {step: inspection.share(folder, name, step, [-1]) for step in inspection.AT_STEPS} for name in shares}
    more = {
        name: {step: inspection.more_than_base(folder, name, step) for step in inspection.AT_STEPS}
        for name in shares
        if name != "base"
    }
    drift = {name: inspection.drift(folder, name) for name in shares if name != "base"}
    heads = ["", *(f"step {step}" for step in inspection.AT_STEPS)]
    lines = [
        "## j. Attention to the first frame, and weight drift\n",
        "The first three tables show how much of the attention of the later frames goes to the given frame: "
        f"image-to-video, {inspection.SCENES} scenes, 10 sampling steps. The means over tokens and heads are exact.\n",
    ]
    for title, found in (("last block", last), ("mean of all blocks", shares)):
        lines += [_line([title, *heads[1:]]), _line(["---", *("---:" for _ in heads[1:])])]
        for name, steps in found.items():
            lines.append(_line([inspection.TITLES[name], *(one.text(1, 100) + " %" for one in steps.values())]))
        lines.append("")
    lines += [_line(["more than the base, last block", *heads[1:]]), _line(["---", *("---:" for _ in heads[1:])])]
    for name, steps in more.items():
        cells = (f"{one.text(1, 100)} % **{outcome(one)}**" for one in steps.values())
        lines.append(_line([inspection.TITLES[name], *cells]))
    lines += [
        "\nFigure 5 of the paper shows the last block. With the adapter of the paper, attention to the first frame is "
        "stronger at all steps. With Wan-I2V, it is stronger only at the first step. Figure 6 of the paper shows how "
        "far the weights moved. The weights of Wan-I2V moved more than ten times as far as those of the adapter, "
        "mostly in the text embedding and in cross-attention. The weights of the adapter moved almost only in "
        "self-attention. The last table shows how far the weights moved here.\n",
        _line(["‖ΔW‖ / ‖W‖", *(inspection.TITLES[name] for name in drift)]),
        _line(["---", *("---:" for _ in drift)]),
    ]
    for component in next(iter(drift.values())):
        lines.append(_line([component, *(f"{100 * each[component]:.2f} %" for each in drift.values())]))
    lines.append("\n`pusa reproduce j`\n")
    record = {
        "last_block": {name: {str(s): _plain(one) for s, one in steps.items()} for name, steps in last.items()},
        "more_than_base": {name: {str(s): _plain(one) for s, one in steps.items()} for name, steps in more.items()},
        "drift": drift,
    }
    return "\n".join(lines), record


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(found: Interval | None) -> dict[str, float | None] | None:
    return None if found is None else found.record()
