"""What becomes of a foreign clip is told before anything is computed, and a clip that does not fit is refused then."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pusa.cli import main
from pusa.errors import Adjustment, InputError
from pusa.generation.footage import changes, crop_of_picture, footage, joined_size, strain
from pusa.generation.given import Clip, Image
from pusa.generation.limits import Limits
from pusa.generation.pictures import open_picture
from pusa.generation.pipeline import extend
from pusa.generation.request import Extend, Generate, Request, Transition
from pusa.models.backbone import Defaults, Geometry
from tests.footage import clip, encode

LIMITS = Limits("small", Defaults(fps=8, frames=17, size=(32, 32), steps=2), Geometry(4, 8, (1, 2, 2)), 64, False)
GREY = np.full((9, 32, 32, 3), 90, np.uint8)


@pytest.fixture
def phone(tmp_path: Path) -> str:
    """42 frames at 30 fps, 96x64, with sound: at 8 fps they are 11."""
    return str(encode(tmp_path / "phone.mp4", clip(42, 64, 96), 30, sound=True))


def test_a_foreign_clip_is_described(phone: str) -> None:
    found = footage(phone, 8)
    assert (found.stored, found.count, found.size, found.fps, found.sound) == (42, 11, (96, 64), 30, True)
    request = Extend(phone, "x", size=(32, 32), overlap=5, frames=4)
    (note,) = request.notes(LIMITS)
    assert note == (
        f"{phone}: its 42 frames at 30 fps are read as 11 at 8 fps, the model's rate; its 96x64 pixels become 32x32, "
        "without 16 columns at each side; 2 of its 11 frames, at its start, are left out, because a clip has 4n+1; its "
        "sound is left out."
    )
    assert "frames, at its end," in Extend(phone, size=(32, 32), overlap=5, direction="backward").notes(LIMITS)[0]
    both = Transition(phone, phone, size=(32, 32), overlap=5, frames=4).notes(LIMITS)
    assert ["frames, at its start," in both[0], "frames, at its end," in both[1]] == [True, True]
    for request_of_part in (Generate("x", [Clip(phone, frames=5)]), Generate("x", init=Clip(phone, frames=9))):
        (note,) = request_of_part.notes(LIMITS)
        assert "are read as 11 at 8 fps" in note
        assert "sound" in note


def test_every_frame_of_a_file_may_be_taken(phone: str) -> None:
    every = Clip(phone, frames=9, rate="file")
    assert footage(phone, None).count == 42
    assert "its 42 frames at 30 fps are taken one after the other at 8 fps" in Generate("x", [every]).notes(LIMITS)[0]
    with pytest.raises(InputError, match=r"phone\.mp4 at frame 0: its 42 frames end at frame 41"):
        Generate("x", [Clip(phone, rate="file")]).check(LIMITS)


@pytest.mark.parametrize(
    ("fit", "size", "says"),
    [
        ("crop", (32, 32), ", without 16 columns at each side."),
        ("crop", (96, 32), ", without 16 rows at the top and the bottom."),
        ("pad", (32, 32), ", with black bars."),
        ("stretch", (32, 32), ", and are stretched."),
        ("crop", (48, 32), " become 48x32."),
    ],
)
def test_the_fit_is_told_in_pixels_of_the_source(fit: str, size: tuple[int, int], says: str) -> None:
    found = footage(np.zeros((5, 64, 96, 3), np.uint8), 8)
    (note,) = changes(found, size, fit, 8)
    assert note.endswith(says)
    assert changes(found, (96, 64), fit, 8) == []


def test_rows_that_are_not_a_multiple_of_16_are_told() -> None:
    found = footage(np.zeros((5, 1080, 1920, 3), np.uint8), 8)
    (note,) = changes(found, (1920, 1072), "crop", 8)
    assert "its 1920x1080 pixels become 1920x1072, without 4 rows at the top and the bottom" in note


def test_a_cropped_picture_is_told() -> None:
    picture = open_picture(np.zeros((30, 40, 3), np.uint8))
    (note,) = Generate("x", [Image(picture)]).notes(LIMITS)
    assert "the given picture: its 40x30 pixels become 32x32, without 5 columns at each side (--fit pad" in note
    assert crop_of_picture("a", (64, 64), (32, 32), "crop") == []
    assert crop_of_picture("a", (40, 30), (32, 32), "pad") == []


def test_a_clip_far_from_the_models_own_size_asks_for_a_size() -> None:
    large, small = np.zeros((9, 640, 1024, 3), np.uint8), np.zeros((9, 16, 16, 3), np.uint8)
    asks = "1024x640 pixels, and small is made for 32x32, so each step takes more than 640 times as long: "
    for request in (Extend(large, overlap=5), Transition(large, large, overlap=5)):
        with pytest.raises(InputError, match=f"{asks}give --size 32x32, or --size 1024x640 to keep"):
            request.check(LIMITS)
    assert Extend(large, overlap=5, size=(32, 32)).check(LIMITS).size == (32, 32)
    assert Extend(large, overlap=5, size=(1024, 640)).check(LIMITS).size == (1024, 640)
    with pytest.raises(InputError, match=r"give --size 32x32\.$"):  # it cannot make 1280x720 at all
        Extend(np.zeros((9, 720, 1280, 3), np.uint8), overlap=5).check(LIMITS)
    assert Extend(GREY, overlap=5).check(LIMITS).size == (32, 32)
    assert joined_size(None, [np.zeros((9, 32, 64, 3), np.uint8)], 5, LIMITS) == (64, 32)
    assert joined_size(None, [np.zeros((9, 30, 64, 3), np.uint8)], 5, LIMITS) is None
    assert joined_size(None, [small], 5, LIMITS) == (16, 16)
    made = SimpleNamespace(frames=large, recipe={})  # a generated clip keeps the size that was chosen for it
    assert joined_size(None, [made], 5, LIMITS) == (1024, 640)


def test_far_lengths_and_sizes_warn() -> None:
    assert strain((32, 32), 33, LIMITS) == []
    assert strain((64, 64), 37, LIMITS)[0].startswith("37 frames are 2.2 times the 17 for which small is made")
    size, length = strain((80, 64), 161, LIMITS)
    assert size.startswith("80x64 is far from 32x32")
    assert "a step takes more than 5 times as long" in size
    assert length.startswith("161 frames are 9.5 times the 17")
    assert "16x8 is far" in strain((16, 8), 5, LIMITS)[0]
    assert "times as long" not in strain((16, 8), 5, LIMITS)[0]


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ([Clip("phone.mp4")], "phone.mp4 (42 frames at 30 fps, read as 11 at 8 fps) at frame 0: 11 frames do not fill"),
        ([Clip("phone.mp4", frames=13)], "13 frames from frame 0 on were requested, but the clip has 11 in all"),
        ([Clip("phone.mp4", at=9, frames=9)], "outside the clip of 17: use frames=8"),
        ([Clip("phone.mp4", frames=9), Image(GREY[0], 5)], "fall into the same latent frame (frames 5 to 8)"),
        ([Clip("phone.mp4", frames=9), Clip("phone.mp4", at=5, frames=4)], "fall into the same latent frame"),
        ([Clip("phone.mp4", frames=9, noise=(0.1, 0.2))], "2 noise multipliers for 3 latent frames"),
    ],
)
def test_what_needs_the_length_of_a_clip_is_found_without_a_model(
    phone: str, conditions: list[Clip | Image], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(phone).parent)
    with pytest.raises(InputError) as caught:
        Generate("x", conditions).check(LIMITS)
    assert says in str(caught.value)


def test_short_clips_and_clips_to_edit_are_measured_without_a_model(phone: str) -> None:
    with pytest.raises(InputError, match=r"has 11 frames, fewer than the overlap of 13: give an overlap of at most 9"):
        Extend(phone, size=(32, 32), overlap=13).check(LIMITS)
    with pytest.raises(InputError, match=r"11 frames cannot be edited.*frames=9"):
        Generate("x", init=Clip(phone)).check(LIMITS)
    assert Generate("x", init=Clip(phone, frames=9)).check(LIMITS).frames == 9
    with pytest.raises(InputError, match="does not exist"):
        Extend("gone.mp4").check(LIMITS)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Generate("x", frames=99_999), "make at most 253 at once"),
        (Generate("x", size=(99_999, 64)), "sides of at most 1,024"),
        (Extend(GREY, overlap=5, frames=99_999), "adds at most 248 to an overlap of 5"),
        (Transition(GREY, GREY, overlap=5, frames=99_999), "adds at most 244 to an overlap of 5"),
        (Extend(GREY, overlap=99_997), "leaves no room for new ones: give 13"),
    ],
)
def test_no_number_is_proposed_that_would_be_refused(request_: Generate | Extend, says: str) -> None:
    with pytest.raises(InputError, match=says):
        request_.check(LIMITS)
    assert Extend(GREY, overlap=5, frames=248).check(LIMITS).frames == 253
    assert Transition(GREY, GREY, overlap=5, frames=244).check(LIMITS).frames == 253


def test_python_warns_and_the_command_line_tells_it_first(
    phone: str, tiny_pipe: object, tiny_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extend(tiny_pipe, phone, size=(32, 32), overlap=5, frames=4, steps=1)  # type: ignore[arg-type]
    told = [str(one.message) for one in caught if one.category is Adjustment]
    assert told == Extend(phone, size=(32, 32), overlap=5, frames=4).notes(LIMITS)
    out = ["--out", str(tmp_path / "out"), "--model", str(tiny_folder), "--steps", "1"]
    assert main(["extend", phone, "--size", "32x32", "--overlap", "5", "--frames", "4", *out]) == 0
    assert [line.removeprefix("pusa: ") for line in capsys.readouterr().err.splitlines() if "30 fps" in line] == told
    assert main(["generate", "x", "--frames", "37", "--size", "128x128", *out]) == 0
    said = capsys.readouterr().err
    assert "128x128 is far from 32x32" in said
    assert "37 frames are 2.2 times the 17" in said
    assert "pusa: The clip takes about" in said
    part = ["--video", f"{phone},frames=5", "--out", str(tmp_path / "part.mp4"), "--model", str(tiny_folder)]
    assert main(["generate", "x", *part, "--steps", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == Generate("x", [Clip(phone, frames=5)]).notes(LIMITS)
    Path(tmp_path / "clips.jsonl").write_text('{"video": "phone.mp4,frames=5"}\n{"video": "phone.mp4,frames=9"}')
    assert main(["generate", "--prompts", str(tmp_path / "clips.jsonl"), *out]) == 0
    assert f"clips.jsonl, lines 1, 2: {phone}: its 42 frames at 30 fps" in capsys.readouterr().err


def test_a_matrix_that_ends_noisy_is_told() -> None:
    noisy = Generate("x", frames=5, matrix=[[1.0, 1.0], [0.5, 0.5], [0.0, 0.3]])
    (note,) = noisy.notes(LIMITS)
    assert note.startswith("The matrix ends latent frame 1 at σ = 0.3, so that this frame stays noisy")
    assert Generate("x", frames=5, matrix=[[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]).notes(LIMITS) == []


def test_a_solver_without_effect_is_refused() -> None:
    for kind in (Generate, Extend):
        source = () if kind is Generate else (GREY,)
        with pytest.raises(InputError, match=r"so that the solver dpm\+\+2m has no effect: leave renoise or"):
            kind(*source, schedule="synchronous,renoise", solver="dpm++2m")  # type: ignore[arg-type]
    rows = {"sigma": [[1.0], [0.5], [0.0]], "renoise": [True, True]}
    with pytest.raises(InputError, match="re-noises in every step, so that the solver"):
        Generate("x", frames=1, matrix=rows, solver="dpm++2m").check(LIMITS)
    rows["renoise"] = [True, False]
    assert Generate("x", frames=1, matrix=rows, solver="dpm++2m").check(LIMITS).solver == "dpm++2m"
    old = {"model": {}, "schedule": "synchronous,renoise", "solver": "dpm++2m", "matrix": {"renoise": [True]}}
    assert Request.from_dict(old).solver == "euler"  # the sidecar of an earlier version
