"""The arithmetic against every published row whose inputs are published too."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pusa.errors import InputError
from pusa.evaluation.vbench import totals
from pusa.evaluation.vbench.protocol import DIMENSIONS, share_of_total, total

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
ROWS = PUBLISHED["rows"]
MISPRINTED = "r512 α2.0"
"""Its printed I2V is 1 point above what its own inputs give; its total is right."""
TOLERANCE = 0.011


def fractions(row: dict[str, Any]) -> dict[str, float]:
    return {name: value / 100 for name, value in row["values"].items()}


def named(model: str, table: str = "1") -> dict[str, Any]:
    return next(row for row in ROWS if (row["model"], row["table"]) == (model, table))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['table']} {row['model']}")
def test_published_rows_are_reproduced(row: dict[str, Any]) -> None:
    scores = total(fractions(row))
    found = {"total": 100 * scores.total, "i2v": 100 * scores.i2v, "quality": 100 * scores.quality}
    off = {name: abs(value - row[name]) for name, value in found.items() if abs(value - row[name]) > TOLERANCE}
    if row["model"] == MISPRINTED:
        assert off == {"i2v": pytest.approx(1.0, abs=TOLERANCE)}
    else:
        assert not off


def test_all_rows_are_there() -> None:
    assert len(ROWS) == 93
    assert sum(row["model"] == MISPRINTED for row in ROWS) == 1


@pytest.mark.parametrize("row", PUBLISHED["without_camera_motion"], ids=lambda row: row["model"])
def test_quality_without_camera_motion(row: dict[str, Any]) -> None:
    assert 100 * total(fractions(row), camera=False).quality == pytest.approx(row["quality"], abs=TOLERANCE)


def test_the_lead_over_wan_i2v_is_the_background(write: Callable[..., Path]) -> None:
    wan = totals.read([write("wan.json", named("Wan-I2V")["values"])])
    pusa = totals.read([write("pusa.json", named("Ours")["values"])])
    parts = totals.contributions(wan, pusa)
    assert sum(parts.values()) == pytest.approx(0.46, abs=TOLERANCE)
    assert parts["i2v_background"] == pytest.approx(0.903, abs=0.001)
    quality = sum(value for name, value in parts.items() if DIMENSIONS[name].group == "quality")
    assert quality == pytest.approx(-0.51, abs=0.01)
    assert max(parts, key=lambda name: parts[name]) == "i2v_background"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(name: str, data: Any) -> Path:
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return written


PREFIX = {1230: ("subject",), 545: ("background",), 3815: ("camera",), 1775: ("subject", "background")}
"""What the prompts of a dimension begin with, by the number of its videos."""
ENTRIES = {"subject": 246, "background": 109, "camera": 763}


def official(
    values: dict[str, float], samples: int = 5, spread: Callable[[str, int], float] = lambda name, e: 0.01 * (-1) ** e
) -> dict[str, Any]:
    """A result file as the official code writes it. spread: of a dimension and an entry, what it adds to the score."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        unit = 100 if name == "imaging_quality" else 1
        videos = [
            {"video_path": f"videos/{kind} {e}-{s}.mp4", "video_results": unit * (value + spread(name, e))}
            for kind in PREFIX[DIMENSIONS[name].videos]
            for e in range(ENTRIES[kind])
            for s in range(samples)
        ]
        kinds = [{"pan_left": 0.3, "zoom_in": None}] if name == "camera_motion" else []
        found[name] = [value, *kinds, videos]
    return found


def test_percent_fractions_and_official_files_agree(write: Callable[..., Path]) -> None:
    row = named("Wan-I2V")
    percent = totals.read([write("percent.json", row["values"])])
    plain = totals.read([write("plain.json", fractions(row))])
    whole = totals.read([write("official.json", official(fractions(row)))])
    assert percent.values == pytest.approx(plain.values)
    assert whole.values == pytest.approx(plain.values)
    found = totals.run_scores(whole)
    assert found.scores is not None
    assert 100 * found.scores.total == pytest.approx(86.86, abs=TOLERANCE)
    interval = found.intervals["total"]
    assert interval.low < found.scores.total < interval.high


def test_samples_of_one_prompt_count_once_in_the_interval(write: Callable[..., Path]) -> None:
    values = fractions(named("Wan-I2V"))
    many = totals.read([write("many.json", official(values, samples=5))])
    more = totals.read([write("more.json", official(values, samples=1))])
    wide, narrow = (totals.run_scores(one).intervals["i2v_subject"] for one in (many, more))
    assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low)


def test_what_was_measured_on_one_video_is_drawn_together(write: Callable[..., Path]) -> None:
    """Two dimensions that make up for each other leave the total where it is; drawn apart, they would not."""
    values = fractions(named("Wan-I2V"))
    signs = {"i2v_subject": 1, "subject_consistency": -1}

    def opposed(name: str, e: int) -> float:
        return signs.get(name, 0) * 0.01 * (-1) ** e / share_of_total(name)

    def alike(name: str, e: int) -> float:
        return abs(opposed(name, e)) * (-1) ** e

    for spread, still in ((opposed, True), (alike, False)):
        one = totals.run_scores(totals.read([write("a.json", official(values, spread=spread))])).intervals
        assert one["i2v_subject"].high - one["i2v_subject"].low > 0.001
        assert (one["total"].high - one["total"].low < 1e-9) == still


def test_a_part_of_the_videos_has_no_total_of_the_benchmark(write: Callable[..., Path]) -> None:
    values = fractions(named("Wan-I2V"))
    whole = totals.read([write("whole.json", official(values))])
    part = totals.read([write("part.json", official(values, samples=1))])
    found = totals.run_scores(part)
    assert (found.scores, found.without_camera) == (None, None)
    assert found.part == totals.run_scores(whole).scores
    assert found.short["camera_motion"] == (763, 3815)
    with pytest.raises(InputError, match="compare runs of one suite"):
        totals.contributions(whole, part)


def test_the_zip_for_the_leaderboard_holds_the_official_results(write: Callable[..., Path], tmp_path: Path) -> None:
    values = official(fractions(named("Wan-I2V")))
    flickering = {"temporal_flickering": [0.9, [{"video_path": "videos/a.mp4", "video_results": 0.9}]]}
    run = totals.read([write("a.json", values | flickering)])
    totals.submit(run, tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        found = {key: value for name in archive.namelist() for key, value in json.loads(archive.read(name)).items()}
    assert found.keys() == DIMENSIONS.keys()
    assert {name: result[0] for name, result in found.items()} == pytest.approx(run.values)
    assert totals.read([write("again.json", found)]).videos == run.videos
    for lacking in (official(fractions(named("Wan-I2V")), samples=4), fractions(named("Wan-I2V"))):
        with pytest.raises(InputError, match="needs official results of all videos, but i2v_subject has"):
            totals.submit(totals.read([write("b.json", lacking)]), tmp_path / "no.zip")
    assert not (tmp_path / "no.zip").exists()
    for path, why in ((tmp_path / "run.zip", "exists"), (tmp_path / "a.json", "exists"),
                      (tmp_path / "c.json", r"does not end in \.zip")):  # fmt: skip
        with pytest.raises(InputError, match=why):
            totals.submit(run, path)


def test_official_results_of_videos_in_two_folders_are_two_runs(write: Callable[..., Path]) -> None:
    values = fractions(named("Wan-I2V"))
    halves = [dict(list(values.items())[:4]), dict(list(values.items())[4:])]
    first, second = (official(half) for half in halves)
    assert not totals.read([write("a.json", first), write("b.json", second)]).missing
    for result in second.values():
        for row in result[-1]:
            row["video_path"] = row["video_path"].replace("videos/", "other/")
    with pytest.raises(InputError, match=r"is of videos in videos, and .* of videos in other"):
        totals.read([write("a.json", first), write("b.json", second)])


def test_an_incomplete_set_has_no_total(write: Callable[..., Path]) -> None:
    values = fractions(named("Wan-I2V"))
    del values["camera_motion"]
    found = totals.run_scores(totals.read([write("a.json", values)]))
    assert found.scores is None
    assert found.missing == ["camera_motion"]
    assert found.without_camera is not None
    del values["imaging_quality"]
    found = totals.run_scores(totals.read([write("b.json", values)]))
    assert (found.scores, found.without_camera) == (None, None)
    assert found.missing == ["camera_motion", "imaging_quality"]


def test_what_is_unavailable_is_missing_and_not_zero(write: Callable[..., Path]) -> None:
    values: dict[str, Any] = fractions(named("Wan-I2V"))
    values["i2v_subject"] = {"unavailable": "dino_vitbase16_pretrain.pth is missing"}
    assert totals.read([write("a.json", values)]).missing == ["i2v_subject"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("{", "is not JSON"),
        ([1], "does not contain an object"),
        ({}, "does not have a value for any dimension"),
        ({"i2v_subjekt": 0.9}, "'i2v_subjekt', which is not a dimension"),
        ({"i2v_subject": "0.9"}, "i2v_subject is '0.9'"),
        ({"i2v_subject": True}, "i2v_subject is True"),
        ({"i2v_subject": 96.9, "dynamic_degree": 0.52}, "percent and fractions may be mixed"),
        ({"i2v_subject": 969}, "i2v_subject is 969"),
        ({"i2v_subject": -0.1}, "i2v_subject is -0.1"),
        ({"i2v_subject": [0.9, [{"path": "a.mp4"}]]}, "do not have the form of the official code"),
        ({"i2v_subject": [0.9, []]}, "do not have the form of the official code"),
        ({"imaging_quality": [0.7, [{"video_path": "a.mp4", "video_results": 0.7}]]}, "have a mean of 0.007"),
    ],
)
def test_what_is_no_result_is_refused(write: Callable[..., Path], data: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        totals.read([write("a.json", data)])


def test_results_of_two_runs_are_not_mixed(write: Callable[..., Path]) -> None:
    one = write("one.json", {"i2v_subject": 0.9, "settings": {"steps": 10}})
    other = write("other.json", {"i2v_background": 0.9, "settings": {"steps": 20}})
    with pytest.raises(InputError, match=r"are of two runs \(steps is 10 and 20\)"):
        totals.read([one, other])
    again = write("again.json", {"i2v_subject": 0.9, "settings": {"steps": 10}})
    with pytest.raises(InputError, match=r"i2v_subject is in .*one.json and in .*again.json"):
        totals.read([one, again])
    rest = write("rest.json", {"i2v_background": 0.8, "settings": {"steps": 10}})
    assert totals.read([one, rest]).values == {"i2v_subject": 0.9, "i2v_background": 0.8}
