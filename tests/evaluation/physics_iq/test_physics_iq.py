"""Scores on scenes whose answer is known: a copy is perfect, and each way of being wrong has its own measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pusa.cli import main
from pusa.errors import InputError
from pusa.evaluation.physics_iq import measures, scores
from pusa.evaluation.physics_iq.dataset import TESTING, Dataset, Scene
from pusa.evaluation.physics_iq.measures import Similarity
from pusa.media.images import Frames
from pusa.media.videos import read_video, write_video
from tests.evaluation.physics_iq.conftest import COUNT, FPS, VIEWS, clip

Ask = Callable[..., tuple[int, dict[str, Any]]]
Write = Callable[..., Path]


@pytest.fixture
def ask(dataset: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(command: str, *tokens: str | Path, flags: tuple[str | Path, ...] = ()) -> tuple[int, dict[str, Any]]:
        where = ("--data", dataset, *flags)
        code = main(["physics-iq", command, *map(str, (*tokens, *where)), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def score(dataset: Path, ask: Ask, videos: Write) -> Callable[..., dict[str, Any]]:
    """The scores of videos that a function of the scene's name makes."""

    def of(make: Callable[[str], Frames], folder: str = "videos") -> dict[str, Any]:
        place = videos(make, folder)
        flags = ("--descriptions", dataset / "descriptions.csv", "--out", place.parent / f"{folder}-scores")
        code, found = ask("score", place, flags=flags)
        assert code == 0
        return found

    return of


def test_overlaps_by_hand() -> None:
    one, other = np.zeros((2, 3, 2, 2), bool)
    one[1, 0, 0] = one[2, 0, :] = True  # 1 pixel, then 2
    other[1, 0, 0] = other[2, 1, 0] = True  # the same, then another
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    found = measures.similarity(measures.ComparedVideo(frames, one), measures.ComparedVideo(frames + 51, other))
    assert found.spatial == pytest.approx(1 / 3)  # {(0,0), (0,1)} and {(0,0), (1,0)}
    assert found.spatiotemporal == pytest.approx((1 + 1 + 0) / 3)  # nothing, the same, apart
    assert found.weighted == pytest.approx((1 / 3) / (2 / 3 + 1 / 3 + 1 / 3))
    assert found.mse == pytest.approx(0.04)
    assert measures.overlap(np.zeros(4, bool), np.zeros(4, bool)) == 1


def test_the_mask_is_where_something_moves_and_fades_when_it_stops() -> None:
    frames = clip(count=COUNT)
    frames[10:] = frames[10]
    mask = measures.mask(frames)
    assert not mask[0].any()
    assert mask[5, 60:84].any()
    assert not mask[5, :50].any()
    assert not mask[-1].any()


def test_noise_below_the_threshold_does_not_move() -> None:
    rng = np.random.default_rng(0)
    still = np.clip(90 + rng.normal(0, 3, (10, 72, 128, 3)), 0, 255).astype(np.uint8)
    assert measures.mask(still).mean() < 0.001


def test_both_takes_are_perfect_and_others_are_not(score: Callable[..., dict[str, Any]]) -> None:
    copy = score(lambda name: clip(name), "copy")
    other_take = score(lambda name: clip(name, offset=(0, 3)), "other")
    frozen = score(lambda name: np.repeat(clip(name)[:1], COUNT, axis=0), "frozen")
    for found in (copy, other_take):
        assert found["verified"]["value"] == pytest.approx(1, abs=0.02)
        assert found["complete"]
    assert frozen["verified"]["value"] < 0.35
    assert frozen["original"]["value"] < 0.35
    assert set(copy["categories"]) == {"Solid Mechanics", "Fluid Dynamics"}


def test_each_error_is_found_by_its_own_measure(score: Callable[..., dict[str, Any]]) -> None:
    def parts(found: dict[str, Any]) -> dict[str, float]:
        return {name: one["value"] for name, one in found["parts"].items()}

    late = parts(score(lambda name: clip(name, first=-8), "late"))
    aside = parts(score(lambda name: clip(name, offset=(0, 40) if "slides" in name else (40, 0)), "aside"))
    backwards = parts(score(lambda name: clip(name)[::-1], "backwards"))
    tinted = parts(score(lambda name: np.clip(clip(name) + np.uint8(30), 0, 255), "tinted"))
    assert late["spatial"] > 0.7
    assert late["spatiotemporal"] < 0.6 * late["spatial"]
    assert aside["spatial"] < 0.3
    assert backwards["spatial"] > 0.85
    assert backwards["spatiotemporal"] < 0.4
    assert tinted["spatial"] > 0.9
    assert tinted["mse"] < 0.5


def test_original_and_verified_by_hand() -> None:
    def view(scene: str, video: Similarity, takes: Similarity) -> scores.View:
        return scores.View(scene, "perspective-left", "Optics", video, takes)

    takes = Similarity(spatial=0.8, spatiotemporal=0.5, weighted=0.4, mse=0.01)
    good = view("a", Similarity(0.4, 0.5, 0.6, 0.02), takes)
    bad = view("b", Similarity(0.0, 0.0, 0.1, 0.04), takes)
    assert good.parts() == pytest.approx({"spatial": 0.5, "spatiotemporal": 1, "weighted": 1, "mse": 0.5})
    found = scores.summarise([good, bad])
    assert found.verified.value == pytest.approx(((0.5 + 1 + 1 + 0.5) / 4 + (0 + 0 + 0.25 + 0.25) / 4) / 2)
    assert found.original.value == pytest.approx((0.2 / 0.8 + 0.25 / 0.5 + 0.35 / 0.4) / 3 - (0.03 - 0.01))
    same = scores.summarise([view("a", takes, takes)])
    assert same.verified.value == pytest.approx(1)
    assert np.isnan(same.verified.low)


def test_a_missing_video_is_named_and_not_counted(dataset: Path, ask: Ask, videos: Write) -> None:
    place = videos(clip)
    flags = ("--descriptions", dataset / "descriptions.csv")
    gone = sorted(place.iterdir())[0]
    gone.unlink()
    write_video(sorted(place.iterdir())[0], clip(count=30), FPS)
    code, found = ask("score", place, flags=flags)
    assert code == 1
    assert not found["complete"]
    assert found["compared"] == 2
    assert found["missing"][gone.name] == "is missing"
    assert "30 frames, 3.75 s" in " ".join(found["missing"].values())
    assert found["verified"]["value"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("fps", [23.976, 29.97, 60])
def test_a_video_at_any_rate_is_compared_with_all_five_seconds(tmp_path: Path, fps: float) -> None:
    """A take of 150 frames at 30 per second ends 1/30 s before 5 s: resampled to 60 per second, it has 299 frames."""
    scene = Scene("0001", "perspective-left", "square", "A square moves.", "Solid Mechanics", "made.mp4")
    folder = tmp_path / TESTING[0] / "30FPS"
    folder.mkdir(parents=True)

    def square(seconds: np.ndarray) -> Frames:
        frames = np.full((len(seconds), 64, 128, 3), 90, np.uint8)
        for frame, way in zip(frames, (16 * seconds).astype(int), strict=True):
            frame[24:40, 8 + way : 24 + way] = (240, 220, 60)
        return frames

    takes = [folder / f"000{i}_testing-videos_30FPS_{scene.view}_take-{i}_{scene.name}.mp4" for i in (1, 2)]
    for path in takes:
        write_video(path, square(np.arange(150) / 30), 30, crf=0)
    made = tmp_path / scene.file
    write_video(made, square(np.arange(round(5 * fps)) / fps), fps, crf=0)
    found = scores.compare(scene, made, Dataset(tmp_path))
    assert found.video.spatiotemporal == pytest.approx(1, abs=0.1)
    write_video(takes[1], square(np.arange(140) / 30), 30)
    with pytest.raises(InputError, match=r"take-2_square.mp4 has 140 frames, 4.67 s, but 5 s are needed; download it"):
        scores.compare(scene, made, Dataset(tmp_path))
    write_video(made, square(np.arange(round(5 * fps) - 2) / fps), fps)
    with pytest.raises(InputError, match=r"made.mp4 has \d+ frames, 4.\d\d s; give a video of 5 s"):
        scores.compare(scene, made, Dataset(tmp_path))


def test_a_second_scoring_looks_only_at_what_is_new(dataset: Path, ask: Ask, videos: Write, tmp_path: Path) -> None:
    place = videos(clip)
    flags = ("--descriptions", dataset / "descriptions.csv")
    ask("score", place, flags=flags)
    times = (tmp_path / "scores" / ".times.jsonl").read_text().splitlines()
    assert len(times) == 4
    write_video(sorted(place.iterdir())[0], clip(offset=(0, 20)), FPS)
    ask("score", place, flags=flags)
    assert len((tmp_path / "scores" / ".times.jsonl").read_text().splitlines()) == 5


def test_runs_with_other_seeds_have_a_mean_and_a_spread(dataset: Path, ask: Ask, videos: Write, tmp_path: Path) -> None:
    flags = ("--descriptions", dataset / "descriptions.csv")
    places = [videos(clip, "exact/videos"), videos(lambda name: clip(offset=(0, 8)), "aside/videos")]
    code, found = ask("score", *places, flags=flags)
    assert code == 0
    values = [run["verified"]["value"] for run in found["runs"]]
    assert found["verified"]["mean"] == pytest.approx(sum(values) / 2)
    assert found["verified"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert values[0] > values[1] + 0.1
    next(iter(places[1].iterdir())).unlink()
    code, found = ask("score", *places, flags=flags)
    assert (code, "verified" in found) == (1, False)
    code, found = ask("score", places[0], places[0], flags=flags)
    assert (code, "A folder is given twice" in found["error"]["message"]) == (2, True)


def test_real_takes_in_which_nothing_moves_are_named(
    dataset: Path, videos: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = Path(shutil.copytree(dataset, tmp_path / "still"))
    for path in (still / "split-videos").rglob("*slides.mp4"):
        if VIEWS[0] in path.name:
            write_video(path, clip(speed=0), FPS, crf=0)
    place = videos(clip)
    command = ["physics-iq", "score", str(place), "--descriptions", str(dataset / "descriptions.csv"), "--data"]
    assert main([*command, str(still), "-q"]) == 0
    said = capsys.readouterr().out
    assert said.count("the real takes show no motion") == 1
    assert f"trimmed-square-slides, {VIEWS[0]}: the real takes show no motion" in said
    assert main([*command, str(dataset), "-q"]) == 0
    assert "no motion" not in capsys.readouterr().out


def test_a_missing_take_is_said(dataset: Path, ask: Ask, videos: Write, tmp_path: Path) -> None:
    code, found = ask(
        "score", videos(lambda name: clip(name)[:10], fps=2), flags=("--descriptions", dataset / "descriptions.csv")
    )
    assert code == 1
    assert "no take 1 of 0001" in found["missing"][f"0001_{VIEWS[0]}_trimmed-square-slides.mp4"]


@pytest.mark.parametrize("track", ["i2v", "v2v"])
def test_the_embedded_model_makes_a_track_that_can_be_scored(
    dataset: Path, ask: Ask, tmp_path: Path, track: str
) -> None:
    descriptions = dataset / "descriptions.csv"
    fast = ("--out", tmp_path / "run", "--track", track, "--steps", "1", "--guidance", "1", "--model", "tiny")
    code, found = ask("generate", descriptions, flags=fast)
    assert (code, found["videos"]) == (0, 4)
    made = sorted((tmp_path / "run" / "videos").iterdir())
    assert made[0].name == f"0001_{VIEWS[0]}_trimmed-square-slides.mp4"
    for path in made:
        frames, fps = read_video(path)
        assert (len(frames), fps) == (COUNT, FPS)
    when = made[0].stat().st_mtime_ns
    assert ask("generate", descriptions, flags=fast)[0] == 0
    assert made[0].stat().st_mtime_ns == when
    code, found = ask("generate", descriptions, flags=(*fast, "--seed", "1"))
    assert code == 2
    assert "were made with seed 0, not 1" in found["error"]["message"]
    code, found = ask("score", tmp_path / "run" / "videos", flags=("--descriptions", descriptions))
    assert (code, found["compared"]) == (0, 4)
    assert 0 <= found["verified"]["value"] < 0.8


def test_bad_input_is_one_sentence(dataset: Path, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    flags = ("--out", tmp_path / "run", "--model", "tiny")
    code, found = ask("generate", tmp_path / "odd.csv", flags=flags)
    assert (code, "does not have the columns" in found["error"]["message"]) == (2, True)
    code, found = ask("score", tmp_path / "nowhere", flags=("--descriptions", dataset / "descriptions.csv"))
    assert (code, "There is no folder" in found["error"]["message"]) == (2, True)
    text = (dataset / "descriptions.csv").read_text().replace("square-slides", "circle-slides")
    (tmp_path / "other.csv").write_text(text)
    code, found = ask("generate", tmp_path / "other.csv", flags=flags)
    assert (code, "lacks the pictures in switch-frames of 0001, 0002" in found["error"]["message"]) == (2, True)
    assert not (tmp_path / "run").exists()


def test_what_the_model_cannot_make_is_refused_before_it_loads(
    dataset: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.cli.shared.clip_jobs.open_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
    descriptions = dataset / "descriptions.csv"
    for track in ("i2v", "v2v"):
        flags = ("--track", track, "--out", tmp_path / "run", "--model", "tiny", "--boundary", "0.5")
        code, found = ask("generate", descriptions, flags=flags)
        assert (code, "boundary is for two experts" in found["error"]["message"]) == (2, True)
    assert not (tmp_path / "run").exists()
    assert ask("generate", descriptions, flags=("--out", tmp_path / "run", "--dry-run"))[0] == 0
