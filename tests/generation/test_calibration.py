"""Choosing an acceleration by what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pusa.errors import InputError
from pusa.generation.calibration import Calibration, Measured, place
from pusa.generation.limits import Limits
from pusa.generation.request import Generate


def calibration(source: str = "tiny", steps: int = 20) -> Calibration:
    rows = {"steps": ([1.2, 1.4, 1.3], [40.0, 44.0]), "frames": ([1.6], [33.0]), "tokens": ([2.4], [25.0])}
    measured = [Measured(name, "text to video", speed, psnr, [0.5]) for name, (speed, psnr) in rows.items()]
    measured.append(Measured("frames", "extension", [3.0], [36.0], [0.2]))
    measured.append(Measured("tokens", "extension", [2.0], [31.0], [0.3]))
    return Calibration(source, steps, tuple(measured), {}, {})


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSA_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("speed", "min_psnr", "chosen"),
    [
        (1.2, None, "steps"),  # of all that are fast enough, the closest
        (1.5, None, "frames"),
        (2.0, None, "tokens"),
        (None, 41.0, "steps"),  # of all that are close enough, the fastest
        (None, 30.0, "frames"),
        (None, 20.0, "tokens"),
        (1.0, None, None),  # the plain clip is as fast as itself
        (None, 50.0, None),
        (1.5, 30.0, "frames"),
    ],
)
def test_the_worst_task_decides(speed: float | None, min_psnr: float | None, chosen: str | None) -> None:
    assert calibration().choose(speed, min_psnr) == chosen


@pytest.mark.parametrize(
    ("speed", "min_psnr", "sentence"),
    [
        (3.0, None, r"reaches 3 times as fast, by its calibration: the nearest is tokens, 2 times as fast at 25.0 dB"),
        (
            1.2,
            50.0,
            r"reaches 1.2 times as fast and 50 dB, by its calibration: the nearest is none, the plain clip; ask",
        ),
        (2.0, 30.0, r"reaches 2 times as fast and 30 dB.*the nearest is frames, 1.6 times as fast at 33.0 dB; ask"),
    ],
)
def test_what_none_reaches(speed: float | None, min_psnr: float | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        calibration().choose(speed, min_psnr)


def test_a_request_gets_the_choice_and_its_sidecar_says_only_that() -> None:
    calibration().save()
    limits = Limits.of("tiny", _tiny(), {})
    settings = Generate("a red circle", steps=20, speed=1.5).check(limits)
    assert settings.record()["accelerate"] == "frames,threshold=0.1,first=0.2"
    assert {"speed", "min_psnr"}.isdisjoint(settings.record())
    assert Generate("a red circle", steps=20, speed="2x").check(limits).accelerate.startswith("tokens")  # type: ignore[arg-type]


def test_a_note_says_what_was_chosen_and_where_the_clip_differs() -> None:
    about = {"size": [64, 64], "frames": 17, "guidance": 2.0}
    dataclasses.replace(calibration(), about=about).save()
    limits = Limits.of("tiny", _tiny(), {})
    (note,) = Generate("a red circle", steps=20, speed=1.5).notes(limits)
    assert note == "The acceleration is frames, 1.6 times as fast at 33.0 dB, by the calibration of tiny."
    (note,) = Generate("a red circle", steps=20, min_psnr=70.0).notes(limits)
    assert note == "The acceleration is none, the plain clip, by the calibration of tiny."
    _, other = Generate("a red circle", steps=20, speed=1.5, guidance=1.0, size=(48, 64)).notes(limits)
    assert "has size 64x64 instead of 48x64, guidance 2 instead of 1, so that speed and closeness can differ" in other
    assert Generate("a red circle", steps=20, accelerate="steps").notes(limits) == []


def test_a_folder_that_cannot_be_written_is_told_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSA_CACHE", "/dev/null")
    with pytest.raises(InputError, match=r"cannot be kept in /dev/null/pusa/calibrations \(.*\): name another folder"):
        place("tiny", 20)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"accelerate": "tokens,share=1/0.5"}, "2 shares of tokens, and the matrix has 6 steps"),
        ({"accelerate": "tokens,share=0.5:0.5"}, "2 shares of tokens in step 1, and the clip has 5 latent frames"),
        ({"accelerate": "taylorseer", "schedule": "staircase,block=1,delay=1"}, "step 2 moves frames at different"),
        ({"accelerate": "first-block", "guidance_batch": "on"}, "a cache of diffusers that needs one call for each"),
    ],
)
def test_what_cannot_run_on_a_clip_is_told_before_the_model_is_loaded(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Generate("a red circle", steps=6, **options).check(Limits.of("tiny", _tiny(), {}))


def test_none_is_no_acceleration() -> None:
    assert Generate("", accelerate="none").accelerate is None


def test_a_missing_or_damaged_calibration_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    limits = Limits.of("tiny", _tiny(), {})
    request = Generate("a red circle", steps=10, min_psnr=30.0)
    with pytest.raises(
        InputError, match=r"no calibration of tiny for 10 steps: run pusa calibrate tiny --steps 10, or"
    ):
        request.check(limits)
    for steps in (20, 30):
        calibration(steps=steps).save()
    with pytest.raises(InputError, match=r"for 10 steps, only for 20 and 30 steps: run"):
        request.check(limits)
    calibration(steps=10).save().write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"is damaged: delete it, and run pusa calibrate tiny --steps 10\.$"):
        request.check(limits)


def test_models_of_the_same_name_have_calibrations_of_their_own() -> None:
    calibration("/a/wan").save()
    assert Calibration.find("/a/wan", 20).source == "/a/wan"
    with pytest.raises(InputError, match="no calibration of /b/wan"):
        Calibration.find("/b/wan", 20)


def test_how_and_how_fast_cannot_both_be_given() -> None:
    with pytest.raises(InputError, match=r"accelerate is steps.*and speed and min_psnr choose one"):
        Generate("", accelerate="steps", speed=2.0)
    with pytest.raises(InputError, match=r"speed is 0\.5: give a number of at least 1"):
        Generate("", speed=0.5)


def _tiny() -> Path:
    from pusa import embedded

    return embedded.folder()
