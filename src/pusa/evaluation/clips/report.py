"""Scores of clips as a table in the terminal, and as one HTML file with the clips, their curves and contact sheets.

Every table shows flicker, warp error and smoothness together with dynamic degree and sharpness, because a frozen or
blurred clip scores well in the first three.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from pusa.evaluation.clips.measures import MEASURES
from pusa.evaluation.clips.scoring import Evaluation
from pusa.evaluation.clips.seams import TITLES
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.files import write_text_atomic

COLUMNS = (
    "dynamic",
    "sharpness",
    "sharpness_kept",
    "flicker",
    "warp_error",
    "smoothness",
    "colour_drift",
    "luma_drift",
)
"""The measures of a table. The stillness-prone ones come after dynamic degree and sharpness."""
DIGITS = {"flicker": 4, "smoothness": 4, "sharpness": 0}
STANDS_OUT = 3.0
"""the robust z from which a join is marked"""
LARGEST_VIDEO = 30 * 2**20
"""the size in bytes above which a clip is linked, not embedded in the page"""


def text(record: dict[str, Any], name: str) -> str:
    """A measure of a clip as table text."""
    value = record.get("measures", {}).get(name)
    return "–" if value is None else f"{value:.{DIGITS.get(name, 2)}f}"


def _camera(record: dict[str, Any]) -> str:
    """The motion of the camera as table text; a dash if it is unknown."""
    known = [word for word in record.get("camera", []) if word != "unknown"]
    return ", ".join(known) or "–"


def mean(records: Sequence[dict[str, Any]], name: str) -> Interval | None:
    """The mean of a measure over the clips that have it, with its interval; None for fewer than two clips."""
    found = [record["measures"][name] for record in records if "measures" in record]
    return bootstrap(found) if len(found) > 1 else None


def head(name: str) -> str:
    """The column title of a measure."""
    known = MEASURES[name]
    return known.title + (f", {known.unit}" if known.unit else "")


def lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """The table for a terminal, then the given frames, the truth, the joins, and the notes and errors."""
    good = [record for record in records if "error" not in record]
    rows = [["clip", "camera", *(MEASURES[name].title for name in COLUMNS)]]
    for record in good:
        camera = _camera(record)
        rows.append([_short(record["clip"]), camera, *(text(record, name) for name in COLUMNS)])
    if len([record for record in good if "measures" in record]) > 1:
        rows.append(["mean", "", *(_mean_text(good, name) for name in COLUMNS)])
    out = _aligned(rows) if good else []
    out += _section("given frames", [
        [_short(record["clip"]), f"frame {one['frame']}", f"{one['psnr']:.1f} dB", f"SSIM {one['ssim']:.3f}",
         f"ΔE {one['delta_e']:.2f}", f"noise {one['noise']:g}" if one["noise"] else ""]
        for record in good for one in _ends(record.get("given", []))
    ])  # fmt: skip
    out += _section("against the truth", [
        [_short(record["clip"]), f"{one['psnr']:.2f} dB", f"SSIM {one['ssim']:.3f}", f"ΔE {one['delta_e']:.2f}"]
        for record in good if (one := record.get("truth"))
    ])  # fmt: skip
    out += _section("joins, robust z", [
        [_short(record["clip"]), f"frame {one['join']}", *(f"{what} {one[name]:.1f}" for name, what in TITLES.items())]
        for record in good for one in record.get("seams", [])
    ])  # fmt: skip
    for record in records:
        out += [f"{_short(record['clip'])}: {note}" for note in record.get("notes", [])]
        out += [f"{_short(record['clip'])}: {record['error']}"] if "error" in record else []
    return out


def _ends(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All given frames, or the first and the last if there are more than four."""
    return given if len(given) <= 4 else [given[0], given[-1]]


def _section(title: str, rows: list[list[str]]) -> list[str]:
    return ["", title, *_aligned(rows)] if rows else []


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _mean_text(records: Sequence[dict[str, Any]], name: str) -> str:
    found = mean(records, name)
    return "–" if found is None else f"{found.value:.{DIGITS.get(name, 2)}f}"


def _short(path: str) -> str:
    name = Path(path).name
    return name if len(name) <= 40 else f"{name[:24]}…{name[-15:]}"


# ----------------------------------------------------------------------------------------------------------- the page


def write(evaluation: Evaluation, records: Sequence[dict[str, Any]], file: Path) -> Path:
    """Write the HTML report of these records to `file`."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    cards = "\n".join(_card(evaluation, record, key) for record, key in zip(records, evaluation.keys, strict=True))
    write_text_atomic(file, template.replace("{{summary}}", _summary(records)).replace("{{cards}}", cards))
    return file


def _summary(records: Sequence[dict[str, Any]]) -> str:
    good = [record for record in records if "error" not in record]
    rule = next(i for i, name in enumerate(COLUMNS) if MEASURES[name].stillness_prone)

    def cells(values: Sequence[str], tag: str = "td") -> str:
        return "".join(f"<{tag}{' class=prone' if i == rule else ''}>{value}</{tag}>" for i, value in enumerate(values))

    heads = cells([escape(head(name)) for name in COLUMNS], "th")
    rows = [f"<tr><th>clip</th><th class=camera>camera</th>{heads}</tr>"]
    for record in good:
        camera = escape(_camera(record))
        numbers = cells([text(record, name) for name in COLUMNS])
        rows.append(f"<tr><td>{escape(_short(record['clip']))}</td><td class=camera>{camera}</td>{numbers}</tr>")
    if any(intervals := [mean(good, name) for name in COLUMNS]):
        numbers = cells([_bounds(one, DIGITS.get(name, 2)) for one, name in zip(intervals, COLUMNS, strict=True)])
        rows.append(f"<tr><td>mean <small>95 %</small></td><td></td>{numbers}</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _bounds(found: Interval | None, digits: int) -> str:
    """A mean with its interval in small type."""
    if found is None:
        return "–"
    return f"{found.value:.{digits}f}<small>{found.low:.{digits}f} to {found.high:.{digits}f}</small>"


def _card(evaluation: Evaluation, record: dict[str, Any], key: str) -> str:
    title = escape(Path(record["clip"]).name)
    if "error" in record:
        return f'<article><h2>{title}</h2><ul class="notes"><li>{escape(record["error"])}</li></ul></article>'
    size = "×".join(map(str, record["size"]))
    joins = [one["join"] for one in record.get("seams", [])]
    curves = "".join(_curve(name, values, joins, record["frames"]) for name, values in record.get("curves", {}).items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in record["notes"])
    sheet = _data(evaluation.file(key).with_suffix(".png"), "image/png")
    return f"""<article><h2>{title} <small>{record["frames"]} frames, {size}, {record["fps"]:g} fps</small></h2>
<div class="work">{_video(Path(record["clip"]))}<div class="curves">{curves}</div></div>
<img class="sheet" src="{sheet}" alt="frames of the clip">
{_given(record)}{_seams(record)}{f'<ul class="notes">{notes}</ul>' if notes else ""}</article>"""


def _video(path: Path) -> str:
    if not path.is_file() or path.suffix.lower() not in (".mp4", ".webm", ".m4v"):
        return ""
    if path.stat().st_size > LARGEST_VIDEO:
        return f'<video controls loop muted src="{escape(path.resolve().as_uri())}"></video>'
    kind = "video/webm" if path.suffix.lower() == ".webm" else "video/mp4"
    return f'<video controls loop muted autoplay playsinline src="{_data(path, kind)}"></video>'


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""


def _curve(name: str, values: Sequence[float], joins: Sequence[int], frames: int) -> str:
    """A line plot with a mark at each join. The caption has its first and last value, and its range.

    values: one for each frame, or one for each step between frames.
    """
    low, high = min(values), max(values)
    span, gap = high - low or 1.0, 100 / max(1, len(values) - 1)
    points = " ".join(f"{gap * i:.2f},{30 - 28 * (value - low) / span:.2f}" for i, value in enumerate(values))
    places = (gap * (join - 0.5 - (frames - len(values)) / 2) for join in joins)
    marks = "".join(f'<line x1="{place:.2f}" x2="{place:.2f}" y1="0" y2="32"/>' for place in places)
    return (
        f'<figure><svg viewBox="0 0 100 32" preserveAspectRatio="none"><polyline points="{points}"/>{marks}</svg>'
        f"<figcaption>{escape(name)}: from {values[0]:.3g} to {values[-1]:.3g} "
        f"<small>(lowest {low:.3g}, highest {high:.3g})</small></figcaption></figure>"
    )


def _given(record: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>frame {one['frame']}</td><td>{one['psnr']:.1f}</td><td>{one['ssim']:.3f}</td>"
        f"<td>{one['delta_e']:.2f}</td><td>{one['noise']:g}</td></tr>"
        for one in record.get("given", [])
    )
    head = "<tr><th>given</th><th>PSNR, dB</th><th>SSIM</th><th>ΔE2000</th><th>noise</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _seams(record: dict[str, Any]) -> str:
    def number(value: float) -> str:
        return f"<td{' class=stands' if value >= STANDS_OUT else ''}>{value:.1f}</td>"

    rows = "".join(
        f"<tr><td>join at frame {one['join']}</td>{''.join(number(one[name]) for name in TITLES)}</tr>"
        for one in record.get("seams", [])
    )
    head = f"<tr><th>robust z</th>{''.join(f'<th>{title}</th>' for title in TITLES.values())}</tr>"
    return f"<table>{head}{rows}</table>" if rows else ""
