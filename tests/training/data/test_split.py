"""Which clips are held out, and how a run that is resumed keeps its clips."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from pusa.errors import InputError
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import split
from pusa.training.data.samples import Bucket, Plan, VideoFile, plan
from pusa.training.data.split import SeenClips, held_out, hold_out


def contents(count: int, seed: int = 0) -> list[str]:
    return [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(count)]


def planned(*names: str, caption: str = "a caption") -> Plan:
    """A plan with two samples of each clip; the content of a clip is the first letter of its name."""
    files = [VideoFile(Path(f"{name}.mp4"), (caption,), 34, 8, 32, 32, name[0]) for name in names]
    return plan(files, [Bucket(32, 32, 17)], 8, GEOMETRIES[16], "uniform")


def names(part: Plan) -> list[str]:
    return [cut.file.path.stem for cut in part.cuts]


@pytest.mark.parametrize("setting", [None, 0.1, 0.25])
def test_a_clip_that_is_held_out_stays_held_out_when_clips_are_added(setting: float | None) -> None:
    moved, shares = 0, []
    for seed in range(2):
        everything = contents(1001, seed)
        before = held_out(everything[:9], setting)
        for count in range(10, 1002):
            now = held_out(everything[:count], setting)
            assert before <= now, "a held-out clip would be trained on"
            assert now - before <= {everything[count - 1]} or count == 10
            moved += now != before
            before = now
        shares.append(len(before) / 1001)
    expected = setting or 0.1
    assert sum(shares) / 2 == pytest.approx(expected, abs=0.02)
    assert moved / (2 * 992) == pytest.approx(expected, abs=0.02), "most additions leave the validation set as it was"


def test_the_clips_that_are_validated_seldom_change() -> None:
    """Validation uses the first held-out clips, here 8."""
    files = [
        VideoFile(Path(f"{i % 7}{i}.mp4"), ("x",), 17, 8, 32, 32, content) for i, content in enumerate(contents(300))
    ]
    whole = plan(files, [Bucket(32, 32, 17)], 8, GEOMETRIES[16])

    def validated(count: int) -> list[str]:
        return names(hold_out(replace(whole, cuts=whole.cuts[:count]), None)[1])[:8]

    moved = sum(validated(count) != validated(count + 1) for count in range(200, 300, 2))
    assert moved <= 10


def test_few_clips_are_all_trained_and_a_number_is_exact() -> None:
    assert held_out(contents(9), None) == set()
    assert held_out(contents(9), 0) == set()
    for count in (1, 3, 8):
        assert len(held_out(contents(9), count)) == count


def test_both_parts_have_whole_clips() -> None:
    whole = planned("a", "b", "c", "d")
    learnt, apart = hold_out(whole, 2)
    assert len(learnt.cuts) == len(apart.cuts) == 4
    assert sorted(map(str, (*learnt.cuts, *apart.cuts))) == sorted(map(str, whole.cuts))
    assert not set(names(learnt)) & set(names(apart))
    renamed = hold_out(planned("a9", "b8", "c7", "d6"), 2)[1]
    assert {cut.file.sha256 for cut in renamed.cuts} == {cut.file.sha256 for cut in apart.cuts}
    with pytest.raises(InputError, match=r"data.held_out is 4, and there are 4 clips: leave at least one clip"):
        hold_out(whole, 4)


def test_what_a_run_has_seen_keeps_its_part_and_its_order(tmp_path: Path) -> None:
    first = hold_out(planned("a", "b", "c", "d"), 1)
    SeenClips({"cut": "head"}, ()).with_parts(*first).write(tmp_path)
    seen = split.read(tmp_path)
    assert seen is not None
    assert dict(seen.settings) == {"cut": "head"}
    again = hold_out(seen.in_order(planned("d1", "c2", "b3", "a4")), 1, seen.parts)
    assert [cut.file.sha256 for part in again for cut in part.cuts] == [
        cut.file.sha256 for part in first for cut in part.cuts
    ]
    assert seen.changes(again[0]) == []
    moved = seen.with_parts(*again)
    assert {clip.path for clip in moved.clips} == {"d1.mp4", "c2.mp4", "b3.mp4", "a4.mp4"}
    assert moved.parts == seen.parts


def test_changes_are_named_clip_by_clip() -> None:
    first = hold_out(planned("a", "b", "c", "d"), 0)
    seen = SeenClips({}, ()).with_parts(*first)
    others = planned("x", "d")
    learnt, apart = hold_out(
        seen.in_order(replace(others, cuts=(*others.cuts, *planned("b2", caption="else").cuts))), 0
    )
    assert names(learnt) == ["b2", "b2", "d", "d", "x", "x"]
    assert seen.changes(learnt) == [
        "a.mp4 is gone", "c.mp4 is gone", "the caption of b2.mp4 was 'a caption' and is 'else'", "x.mp4 is new",
    ]  # fmt: skip
    assert split.listed([f"{i}" for i in range(8)]) == "0; 1; 2; 3; 4; and 3 more"
    assert {clip.content for clip in seen.with_parts(learnt, apart).clips} == set("abcdx")


def test_repeats_count_in_the_training_part_only() -> None:
    whole = planned("a", "b", "c", "d")
    whole = replace(whole, cuts=tuple(replace(cut, file=replace(cut.file, repeats=3)) for cut in whole.cuts))
    learnt, apart = hold_out(whole, 1)
    assert (len(learnt.cuts), len(apart.cuts)) == (3 * 2 * 3, 2)
    seen = SeenClips({}, ()).with_parts(learnt, apart)
    assert len(seen.clips) == 4
    once = hold_out(planned("a", "b", "c", "d"), 1, seen.parts)[0]
    assert seen.changes(once)[0].endswith(".mp4 had 3 repeats and has 1")


def test_clips_for_validation_only_are_the_ones_held_out() -> None:
    whole = replace(planned("a", "b", "c", "d"), validation=frozenset("cx"))
    learnt, apart = hold_out(whole, None, {"a": True})
    assert (set(names(learnt)), set(names(apart))) == ({"a", "b", "d"}, {"c"})


def test_a_held_out_clip_may_change() -> None:
    """It does not change what is trained."""
    first = hold_out(planned("a", "b", "c", "d"), 1)
    seen = SeenClips({}, ()).with_parts(*first)
    (apart,) = set(names(first[1]))
    rest = [name for name in "abcd" if name != apart]
    assert seen.changes(hold_out(planned(*rest), 1, seen.parts)[0]) == []


def test_a_run_from_before_keeps_the_clips_that_it_held_out() -> None:
    for count, expected in ((9, 0), (10, 1), (39, 3), (500, 16)):
        files = [VideoFile(Path(c[:8]), ("x",), 17, 8, 32, 32, c) for c in contents(count)]
        before = split.before_clips_were_written(plan(files, [Bucket(32, 32, 17)], 8, GEOMETRIES[16]), None)
        assert sum(before.values()) == expected
        assert {c for c in before if before[c]} == held_out(contents(count), expected)


def test_a_damaged_list_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / split.RECORD).write_text("{}")
    with pytest.raises(InputError, match=r"clips.json is damaged .*; remove it to go on without it"):
        split.read(tmp_path)
