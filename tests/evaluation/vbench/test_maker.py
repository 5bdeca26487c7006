"""Videos of the smoke suite on the embedded model, what happens to them on the way, and the official code's door."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pusa
from pusa.cli import main
from pusa.evaluation.results_folder import make_missing
from pusa.evaluation.vbench import maker, manifest, scoring, verification
from pusa.evaluation.vbench.protocol import DIMENSIONS
from pusa.media.images import write_image
from pusa.media.videos import read_video, write_video
from tests.evaluation.vbench import stub

Ask = Callable[..., tuple[int, dict[str, Any]]]
FRAMES, FPS = 5, 8.0


@pytest.fixture(scope="module")
def plan(info: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "smoke.jsonl"
    manifest.build(info, "smoke", (112, 64), FRAMES, FPS).write(path)
    return path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*tokens: str | Path) -> tuple[int, dict[str, Any]]:
        code = main(["vbench", *map(str, tokens), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out)

    return run


FAST = ("--model", "tiny", "--steps", "1", "--guidance", "1")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Videos are compared byte by byte with those of other processes: more threads add in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(plan: Path, crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six videos, made once for the tests of this file, each of which works on a copy."""
    out = tmp_path_factory.mktemp("made") / "run"
    assert main(["vbench", "generate", str(plan), "--images", str(crops), "--out", str(out), *FAST, "--quiet"]) == 0
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def names(plan: Path) -> list[str]:
    return [video.file for video in manifest.read(plan).videos]


def test_the_videos_are_whole_and_each_has_its_recipe(plan: Path, run: Path, ask: Ask) -> None:
    assert sorted(path.name for path in (run / "videos").iterdir()) == sorted(names(plan))
    for video in manifest.read(plan).videos:
        frames, fps = read_video(run / "videos" / video.file)
        assert frames.shape == (FRAMES, 64, 112, 3)
        assert fps == FPS
        recipe = json.loads(verification.recipe_path(run, video.file).read_text())
        assert (recipe["seed"], recipe["prompt"], recipe["image"]) == (video.seed, video.prompt, video.image)
    code, found = ask("verify", plan, run)
    assert (code, found["good"], found["problems"]) == (0, 6, [])


def test_a_second_run_makes_only_what_is_missing(plan: Path, run: Path, crops: Path, ask: Ask) -> None:
    gone = run / "videos" / names(plan)[2]
    before = {path: path.stat().st_mtime_ns for path in (run / "videos").iterdir()}
    kept = gone.read_bytes()
    gone.unlink()
    code, found = ask("generate", plan, "--images", crops, "--out", run, *FAST)
    assert (code, found["made"]) == (0, 1)
    assert gone.read_bytes() == kept
    assert all(path == gone or path.stat().st_mtime_ns == when for path, when in before.items())


def test_a_limit_leaves_the_rest_for_later(plan: Path, run: Path, crops: Path, ask: Ask) -> None:
    gone = names(plan)[1:5]
    for file in gone:
        (run / "videos" / file).unlink()
    generate = ("generate", plan, "--images", crops, "--out", run, *FAST)
    code, found = ask(*generate, "--limit", "3")
    assert (code, found["made"], found["left"]) == (0, 3, 1)
    assert sum((run / "videos" / file).exists() for file in gone) == 3
    code, found = ask(*generate)
    assert (code, found["made"], found["left"]) == (0, 1, 0)
    code, found = ask(*generate, "--limit", "0")
    assert code == 2
    assert "--limit 0: give 1 or more" in found["error"]["message"]


def test_nothing_of_elsewhere_is_taken_for_this_run(
    plan: Path, run: Path, crops: Path, tmp_path: Path, ask: Ask
) -> None:
    generate = ("generate", plan, "--out", run, *FAST)
    other = Path(shutil.copytree(crops, tmp_path / "crops"))
    picture = other / manifest.read(plan).videos[0].image
    write_image(picture, np.zeros((64, 112, 3), np.uint8))
    code, found = ask(*generate, "--images", other)
    assert code == 2
    assert "were made with pictures" in found["error"]["message"]
    verification.recipe_path(run, names(plan)[2]).unlink()
    code, found = ask(*generate, "--images", crops)
    assert code == 2
    assert f"{names(plan)[2]} was not made by this command, because it has no recipe" in found["error"]["message"]
    code, found = ask("verify", plan, run)
    assert (code, found["good"], found["without_recipe"]) == (0, 6, 1)
    code, found = ask("generate", plan, "--images", tmp_path / "nowhere", "--out", run, *FAST)
    assert (code, "There is no folder" in found["error"]["message"]) == (2, True)


@pytest.mark.parametrize("wish", [("--steps", "0"), ("--guidance", "nan"), ("--shift", "inf"), ("--shift", "0")])
def test_settings_that_cannot_be_leave_no_folder(
    plan: Path, crops: Path, tmp_path: Path, ask: Ask, wish: tuple[str, str]
) -> None:
    code, found = ask("generate", plan, "--images", crops, "--out", tmp_path / "out", "--model", "tiny", *wish)
    assert code == 2
    assert wish[0][2:] in found["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_manifest_replaces_no_other_file(info: Path, tmp_path: Path, ask: Ask) -> None:
    mine = Path(shutil.copy(info, tmp_path / "info.json"))
    for size in ("0x480", "0x0", "480x0"):
        assert ask("manifest", mine, "--out", tmp_path / "m.jsonl", "--size", size)[0] == 2
    code, found = ask("manifest", mine, "--out", mine)
    assert (code, "manifest; give another name" in found["error"]["message"]) == (2, True)
    assert mine.read_bytes() == info.read_bytes()
    for suite in ("smoke", "core"):
        assert ask("manifest", mine, "--out", tmp_path / "m.jsonl", "--suite", suite)[0] == 0


def test_the_crops_next_to_the_right_ones_are_refused(
    plan: Path, info: Path, crops: Path, tmp_path: Path, ask: Ask
) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(crops, wide)
    last = manifest.read(plan).videos[-1].image
    write_image(wide / last, np.zeros((252, 448, 3), np.uint8))
    code, found = ask("generate", plan, "--images", wide, "--out", tmp_path / "out", *FAST)
    assert code == 2
    assert f"{last} is not 7:4 (the first is 448x252)" in found["error"]["message"]
    (wide / last).write_bytes(b"no picture")
    code, found = ask("generate", plan, "--images", wide, "--out", tmp_path / "out", *FAST)
    assert code == 2
    assert f"{last} is not a picture" in found["error"]["message"]


def test_other_settings_or_another_manifest_are_refused(
    plan: Path, run: Path, crops: Path, info: Path, tmp_path: Path, ask: Ask
) -> None:
    code, found = ask("generate", plan, "--images", crops, "--out", run, *FAST, "--noise", "0.2")
    assert code == 2
    assert "were made with noise 0.0, not 0.2" in found["error"]["message"]
    other = tmp_path / "other.jsonl"
    manifest.build(info, "core", (112, 64), FRAMES, FPS).write(other)
    code, found = ask("verify", other, run)
    assert code == 2
    assert "belongs to another manifest (suite smoke" in found["error"]["message"]


def test_verify_names_what_is_wrong(plan: Path, run: Path, ask: Ask) -> None:
    videos, files = run / "videos", names(plan)
    (videos / files[0]).unlink()
    (videos / files[1]).write_bytes((videos / files[1]).read_bytes()[:500])
    frames, _ = read_video(videos / files[2])
    write_video(videos / files[2], frames, 25)
    write_video(videos / files[3], frames[:4], FPS)
    (videos / files[5]).write_bytes((videos / files[4]).read_bytes())
    verification.recipe_path(run, files[5]).unlink()
    (videos / "holiday.mp4").write_bytes(b"")
    code, found = ask("verify", plan, run)
    assert code == 1
    assert found["good"] == 1
    kinds = {problem["file"]: problem["kind"] for problem in found["problems"]}
    assert kinds == {
        files[0]: "missing",
        files[1]: "damaged",
        files[2]: "wrong",
        files[3]: "wrong",
        files[5]: "duplicate",
        "holiday.mp4": "foreign",
    }
    said = {problem["file"]: problem["what"] for problem in found["problems"]}
    assert said[files[2]] == "has 25 frames per second instead of 8"
    assert said[files[3]] == "has 4 frames instead of 5"


def test_verify_sees_a_video_that_was_exchanged_for_one_of_the_same_kind(plan: Path, run: Path, ask: Ask) -> None:
    videos, files = run / "videos", names(plan)
    frames, _ = read_video(videos / files[0])
    write_video(videos / files[0], frames[::-1], FPS)
    _, found = ask("verify", plan, run)
    assert [(problem["kind"], problem["file"]) for problem in found["problems"]] == [("altered", files[0])]


def test_missing_pictures_and_crops_of_another_shape_are_named(
    plan: Path, crops: Path, info: Path, tmp_path: Path, ask: Ask
) -> None:
    some = tmp_path / "some"
    shutil.copytree(crops, some)
    gone = manifest.read(plan).videos[0].image
    (some / gone).unlink()
    code, found = ask("generate", plan, "--images", some, "--out", tmp_path / "out", *FAST)
    assert code == 2
    assert f"lacks {gone}" in found["error"]["message"]
    square = tmp_path / "square.jsonl"
    manifest.build(info, "smoke", (64, 64), FRAMES, FPS).write(square)
    code, found = ask("generate", square, "--images", crops, "--out", tmp_path / "out", *FAST)
    assert code == 2
    assert f"{crops}: " in found["error"]["message"]
    assert "are not 1:1 (the first is 112x64)" in found["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_and_two_processes_share_the_rest(
    plan: Path, made: Path, crops: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pusa", "vbench", "generate", str(plan), "--images", str(crops), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*command, *FAST, "--quiet"], env=environment, start_new_session=True)
    while not list((out / "videos").glob("[!.]*.mp4")) and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    both = [subprocess.Popen([*command, *FAST, "--quiet"], env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    times = [json.loads(line)["unit"] for line in (out / ".times.jsonl").read_text().splitlines()]
    assert len(times) == len(set(times))
    for file in names(plan):
        assert (out / "videos" / file).read_bytes() == (made / "videos" / file).read_bytes()
    assert not verification.problems(manifest.read(plan), out)


# ------------------------------------------------------------------------------------------------- the official code


@pytest.fixture
def checkout(info: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stub checkout with every weight file that would be looked for, empty."""
    folder = stub.write(tmp_path / "VBench", info.read_text(), crops, "7-4")
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = scoring.Checkout(folder, sys.executable).places()
    for files in scoring.WEIGHTS.values():
        for place, name in files:
            (places[place] / name).parent.mkdir(parents=True, exist_ok=True)
            (places[place] / name).touch()
    return folder


def test_the_official_code_scores_what_it_can_and_the_rest_is_unavailable(
    plan: Path, run: Path, checkout: Path, ask: Ask
) -> None:
    code, found = ask("score", plan, run, "--vbench", checkout)
    assert code == 1
    assert sorted(found["unavailable"]) == ["aesthetic_quality", "background_consistency", "motion_smoothness"]
    assert "a_library_that_is_not_there" in found["unavailable"]["background_consistency"]
    assert "no CUDA here" in found["unavailable"]["aesthetic_quality"]
    assert "1 of 2 videos were not scored" in found["unavailable"]["motion_smoothness"]
    assert len(found["scores"]) == len(DIMENSIONS) - 3
    assert found["settings"]["torchvision"] == "0.99"
    assert (found["settings"]["antialias"], found["settings"]["fps"]) == ("True", FPS)
    code, total = ask("total", found["results"])
    assert code == 1
    assert total["total"] is None
    assert sorted(total["missing"]) == sorted(found["unavailable"])
    assert total["videos"]["camera_motion"] == [2, 3815]
    assert total["intervals"]["imaging_quality"]["value"] == pytest.approx(total["values"]["imaging_quality"])


def test_the_interpreter_may_be_a_relative_path(
    plan: Path, run: Path, checkout: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").mkdir()
    python = tmp_path / "env" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    code, found = ask("score", plan, run, "--vbench", "VBench", "--python", "env/python", "--dimensions", "i2v_subject")
    assert (code, list(found["scores"])) == (0, ["i2v_subject"])


def test_videos_that_are_not_the_manifests_are_not_scored(plan: Path, run: Path, checkout: Path, ask: Ask) -> None:
    subject, background = names(plan)[0], names(plan)[2]
    flags = ("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject", "i2v_background")
    (run / "videos" / background).unlink()
    shutil.copy(run / "videos" / subject, run / "videos" / subject.replace("-0.mp4", "-1.mp4"))
    code, found = ask(*flags)
    assert code == 1
    assert f"1 of its 2 videos are missing, such as {background}" in found["unavailable"]["i2v_background"]
    assert "1 videos that are not in the manifest were scored" in found["unavailable"]["i2v_subject"]
    frames, _ = read_video(run / "videos" / subject)
    write_video(run / "videos" / subject, frames, 25)
    code, found = ask(*flags)
    assert code == 2
    assert "has 25 frames per second instead of 8; run pusa vbench verify" in found["error"]["message"]


def test_a_checkout_with_another_list_is_refused(plan: Path, run: Path, checkout: Path, ask: Ask) -> None:
    path = checkout / "vbench2_beta_i2v/vbench2_i2v_full_info.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    code, found = ask("score", plan, run, "--vbench", checkout)
    assert code == 2
    assert "is not the list that the manifest was made from" in found["error"]["message"]


def test_what_was_scored_is_not_scored_again_and_not_mixed(plan: Path, run: Path, checkout: Path, ask: Ask) -> None:
    ask("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject")
    (checkout / "evaluate_i2v.py").write_text("raise SystemExit('it was run again')")
    code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject")
    assert code == 0
    code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject", "--legacy-antialias")
    assert code == 2
    assert "was scored with other settings" in found["error"]["message"]
    first = run / "videos" / names(plan)[0]
    frames, fps = read_video(first)
    write_video(first, frames[::-1], fps)
    code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject")
    assert code == 2
    assert "is not the file that was made" in found["error"]["message"]
    verification.recipe_path(run, first.name).unlink()  # so it may be from elsewhere
    code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject")
    assert code == 2
    assert "i2v_subject.json was scored from other videos" in found["error"]["message"]


def test_dimensions_scored_one_by_one_end_in_one_file(plan: Path, run: Path, checkout: Path, ask: Ask) -> None:
    for dimension in ("i2v_subject", "camera_motion"):
        code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", dimension)
        assert code == 0
    assert sorted(found["scores"]) == ["camera_motion", "i2v_subject"]
    _, total = ask("total", found["results"])
    assert sorted(total["values"]) == ["camera_motion", "i2v_subject"]


def test_legacy_antialias_reaches_the_official_code(plan: Path, run: Path, checkout: Path, ask: Ask) -> None:
    flags = ("score", plan, run, "--vbench", checkout, "--dimensions", "i2v_subject")
    _, modern = ask(*flags, "--out", run / "modern")
    _, legacy = ask(*flags, "--out", run / "legacy", "--legacy-antialias")
    assert legacy["scores"]["i2v_subject"] == pytest.approx(modern["scores"]["i2v_subject"] + 0.001)
    assert legacy["settings"]["antialias"] == "False"


def test_missing_weights_and_crops_are_found_before_anything_runs(
    plan: Path, run: Path, checkout: Path, ask: Ask, tmp_path: Path
) -> None:
    (tmp_path / "torch/hub/checkpoints/cotracker2.pth").unlink()
    (tmp_path / "torch/hub/facebookresearch_dino_main/hubconf.py").unlink()
    (checkout / "vbench2_beta_i2v/data/crop/7-4").unlink()
    (checkout / "vbench2_beta_i2v/data/crop/7-4").mkdir()
    code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", "camera_motion", "i2v_subject")
    assert code == 1
    assert "cotracker2.pth is missing" in found["unavailable"]["camera_motion"]
    assert "facebookresearch_dino_main/hubconf.py is missing" in found["unavailable"]["i2v_subject"]
    assert "7-4 lacks" in found["unavailable"]["i2v_subject"]
    assert "and 3 more" in found["unavailable"]["i2v_subject"]


def test_what_is_no_checkout_is_refused(plan: Path, run: Path, checkout: Path, ask: Ask, tmp_path: Path) -> None:
    code, found = ask("score", plan, run, "--vbench", tmp_path)
    assert code == 2
    assert "give a checkout of Vchitect/VBench" in found["error"]["message"]
    code, found = ask("score", plan, run, "--vbench", checkout, "--python", "/no/such/python")
    assert code == 2
    assert "/no/such/python does not run" in found["error"]["message"]
    code, found = ask("score", plan, run, "--vbench", checkout, "--dimensions", "beauty")
    assert code == 2
    assert "no dimension 'beauty'" in found["error"]["message"]


def test_a_picture_and_a_prompt_are_encoded_once(plan: Path, crops: Path, tmp_path: Path) -> None:
    smoke = manifest.read(plan)
    first = [video for video in smoke.videos if "camera_motion" in video.dimensions][:2]
    assert len({video.image for video in first}) == 1
    videos = tuple(replace(video, index=i, seed=10 + i) for video in first for i in range(3))
    verification.start_run(tmp_path / "run", smoke, {})
    settings = {"steps": 1, "guidance": 1.0}
    made = maker.VideoMaker(pusa.load("tiny"), replace(smoke, videos=videos), crops, tmp_path / "run", 0.0, settings)
    make_missing(made.units(video.file for video in videos), tmp_path / "run")
    assert made.encoded == {"pictures": 1, "prompts": 2}
    made = [read_video(tmp_path / "run" / "videos" / video.file)[0] for video in videos]
    assert not np.array_equal(made[0], made[1])


@pytest.mark.slow
def test_a_cluster_makes_the_same_videos(plan: Path, made: Path, crops: Path, tmp_path: Path, ask: Ask) -> None:
    pytest.importorskip("ray")
    flags = ("--images", crops, "--out", tmp_path / "run", *FAST, "--ray", "local", "--workers", "2")
    code, found = ask("generate", plan, *flags)
    assert (code, found["made"]) == (0, 6)
    for file in names(plan):
        assert (tmp_path / "run" / "videos" / file).read_bytes() == (made / "videos" / file).read_bytes()
