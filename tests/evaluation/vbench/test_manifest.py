from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa.errors import InputError
from pusa.evaluation.vbench import manifest

NAMES_SHA256 = "9581c63a07ca60e835a91ebb37ee5ec4c1dd83f038db4ab81458e5144c023036"
"""Of the official list of 5,590 names, sampled_videos/i2v_sampled_videos.txt, sorted, a line each."""


def test_the_full_suite_has_the_official_names(info: Path) -> None:
    plan = manifest.build(info)
    names = [video.file for video in plan.videos]
    assert len(names) == len(set(names)) == 5590
    assert len({video.image for video in plan.videos}) == 355
    prompts = {entry["prompt_en"] for entry in json.loads(info.read_text())}
    assert set(names) == {f"{prompt}-{index}.mp4" for prompt in prompts for index in range(5)}
    assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest() == NAMES_SHA256
    assert max(len(name.encode()) for name in names) == 118


def test_dimensions_have_the_published_numbers_of_videos(info: Path) -> None:
    found = Counter(dimension for video in manifest.build(info).videos for dimension in video.dimensions)
    assert found == {
        "camera_motion": 3815,
        "aesthetic_quality": 1775,
        "imaging_quality": 1775,
        "temporal_flickering": 1775,
        "i2v_subject": 1230,
        "subject_consistency": 1230,
        "motion_smoothness": 1230,
        "dynamic_degree": 1230,
        "i2v_background": 545,
        "background_consistency": 545,
    }


@pytest.mark.parametrize(("suite", "count"), [("core", 1775), ("subset750", 750), ("smoke", 6)])
def test_smaller_suites_hold_the_same_videos(info: Path, suite: manifest.Suite, count: int) -> None:
    full = {video.file: video for video in manifest.build(info).videos}
    part = manifest.build(info, suite)
    assert len(part.videos) == count
    assert all(full[video.file] == video for video in part.videos)
    assert part == manifest.build(info, suite)


def test_seeds_differ_and_follow_from_run_prompt_and_sample(info: Path) -> None:
    first, again, other = (manifest.build(info, seed=seed) for seed in (0, 0, 1))
    assert first == again
    seeds = [video.seed for video in first.videos]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {video.seed for video in other.videos}
    assert max(seeds) < 2**53
    assert len({first.identity, other.identity, manifest.build(info, fps=24).identity}) == 3


def test_a_manifest_comes_back_from_its_file(info: Path, tmp_path: Path) -> None:
    plan = manifest.build(info, "core", (1280, 720), seed=3)
    plan.write(tmp_path / "m.jsonl")
    assert manifest.read(tmp_path / "m.jsonl") == plan
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 1776


def test_a_prompt_may_have_separators_of_unicode(info: Path, tmp_path: Path) -> None:
    entries = json.loads(info.read_text(encoding="utf-8"))
    entries[0]["prompt_en"] = "a cat\u2028and\u0085a dog"
    (tmp_path / "info.json").write_text(json.dumps(entries))
    plan = manifest.build(tmp_path / "info.json")
    plan.write(tmp_path / "m.jsonl")
    assert manifest.read(tmp_path / "m.jsonl") == plan


@pytest.mark.parametrize(
    ("size", "crop"),
    [((832, 480), "7-4"), ((1280, 720), "16-9"), ((720, 480), "3-2"), ((512, 512), "1-1"), ((512, 320), "8-5")],
)
def test_the_crop_follows_the_size(size: tuple[int, int], crop: str) -> None:
    assert manifest.crop_for(size) == crop


@given(st.integers(16, 4096), st.integers(16, 4096))
def test_a_size_gets_the_nearest_crop_or_a_sentence(width: int, height: int) -> None:
    try:
        crop = manifest.crop_for((width, height))
    except InputError:
        assert not 0.95 <= width / height <= 1.9
        return
    ratio = width / height
    assert all(max(ratio / c, c / ratio) >= max(ratio / best, best / ratio) - 1e-9
               for best in [manifest.CROPS[crop]] for c in manifest.CROPS.values())  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the list of VBench-I2V"),
        ('[{"prompt_en": "a", "dimension": ["color"], "image_name": "a.jpg"}]', "is not the list of VBench-I2V"),
        ('[{"prompt_en": "a"}]', "is not the list of VBench-I2V"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "info.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        manifest.build(tmp_path / "info.json")
    with pytest.raises(InputError, match="is not a manifest"):
        manifest.read(tmp_path / "info.json")


def test_an_altered_manifest_is_refused(info: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    manifest.build(info, "smoke").write(path)
    head, *rows = path.read_text().splitlines()
    row = json.loads(rows[0])
    for key, value in (("file", "holiday.mp4"), ("seed", 1), ("index", 1)):
        path.write_text("\n".join([head, json.dumps({**row, key: value}), *rows[1:]]))
        with pytest.raises(InputError, match="line 2: the file or the seed does not match"):
            manifest.read(path)
    path.write_text("\n".join([head, rows[0], *rows]))
    with pytest.raises(InputError, match=r"-0\.mp4 twice"):
        manifest.read(path)
