"""Spoilt copies of a real clip are found out by the right measure, and win where a measure can be fooled."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from pusa.errors import InputError
from pusa.evaluation.clips import fidelity, measures, seams
from pusa.evaluation.clips.optical_flow import Motion, flow, warp
from pusa.media.images import Frames

Controls = dict[str, dict[str, float]]
REAL = "as it is"


@pytest.mark.parametrize("spoilt", ["shuffled", "flickering by 2 %"])
@pytest.mark.parametrize(("name", "worse"), [("flicker", -1), ("warp_error", 1), ("smoothness", -1)])
def test_disorder_and_flicker_are_worse(controls: Controls, spoilt: str, name: str, worse: int) -> None:
    assert worse * controls[spoilt][name] > worse * controls[REAL][name]


@pytest.mark.parametrize("fake", ["frozen", "blurred more and more"])
def test_frozen_and_blurred_clips_win_what_stillness_wins_and_fail_the_two_beside_it(
    controls: Controls, fake: str
) -> None:
    won, real = controls[fake], controls[REAL]
    assert won["flicker"] > real["flicker"]
    assert won["warp_error"] < real["warp_error"]
    assert won["smoothness"] > real["smoothness"]
    assert won["dynamic"] == 0 if fake == "frozen" else won["sharpness_kept"] < 0.1
    assert {name for name, one in measures.MEASURES.items() if one.stillness_prone} == {
        "flicker",
        "warp_error",
        "smoothness",
    }


def test_colours_that_drift_are_seen_by_the_drift_and_by_nothing_else(controls: Controls) -> None:
    drifting, real = controls["colours drifting"], controls[REAL]
    assert drifting["colour_drift"] > 3 * real["colour_drift"]
    for name in ("flicker", "smoothness", "dynamic"):
        assert drifting[name] == pytest.approx(real[name], rel=0.02)


@pytest.mark.parametrize(
    ("spoilt", "statistic", "blind"),
    [
        ("second half shifted", "z acceleration", "z luma"),
        ("second half shifted", "z difference", "z chroma"),
        ("second half backwards", "z acceleration", None),
        ("second half 2 % brighter", "z luma", "z acceleration"),
    ],
)
def test_each_seam_stands_out_in_its_own_statistic(
    controls: Controls, spoilt: str, statistic: str, blind: str | None
) -> None:
    assert controls[spoilt][statistic] > 4
    assert controls[REAL][statistic] < 3
    if blind:
        assert controls[spoilt][blind] < 3


def test_averages_over_the_clip_do_not_see_a_seam(controls: Controls) -> None:
    shifted, real = controls["second half shifted"], controls[REAL]
    assert shifted["flicker"] == pytest.approx(real["flicker"], abs=0.005)
    assert shifted["warp_error"] < 1.2 * real["warp_error"]


def test_where_nothing_is_joined_no_frame_stands_out_often(carphone: tuple[Frames, float]) -> None:
    frames, _ = carphone
    motion = Motion(frames)
    z = [seams.seam(frames, motion, join)["acceleration"] for join in range(2, 31)]
    assert np.mean(np.array(z) > 4) < 0.2


def test_dynamic_degree_depends_on_the_frame_rate_it_is_told(carphone: tuple[Frames, float]) -> None:
    motion = Motion(carphone[0])
    assert measures.dynamic_degree(motion, 24) > 1.2 * measures.dynamic_degree(motion, 8)


def moved(dx: float, dy: float, zoom: float = 1.0, count: int = 12) -> Frames:
    """A textured picture seen by a camera that moves by (dx, dy) pixels a frame and zooms."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8), (0, 0), 2)
    frames = []
    for t in range(count):
        scale = zoom**t
        matrix = np.array([[scale, 0, 64 - scale * (200 + dx * t)], [0, scale, 48 - scale * (200 + dy * t)]])
        frames.append(cv2.warpAffine(texture, matrix, (128, 96)))
    return np.stack(frames)


@pytest.mark.parametrize(
    ("dx", "dy", "zoom", "says"),
    [
        (2, 0, 1.0, ["pans right"]),
        (-2, 0, 1.0, ["pans left"]),
        (0, 2, 1.0, ["tilts down"]),
        (0, -2, 1.0, ["tilts up"]),
        (0, 0, 1.02, ["zooms in"]),
        (0, 0, 0.98, ["zooms out"]),
        (0, 0, 1.0, ["static"]),
        (2, 0, 1.02, ["pans right", "zooms in"]),
    ],
)
def test_the_camera_is_named(dx: float, dy: float, zoom: float, says: list[str]) -> None:
    assert measures.camera(Motion(moved(dx, dy, zoom))) == says


@pytest.mark.parametrize("frames", [81, 240])
def test_a_pan_that_leaves_the_picture_is_no_zoom(frames: int) -> None:
    photo = skimage.data.astronaut()
    clip = np.stack([photo[100:196, 50 + i : 178 + i] for i in range(frames)])
    assert measures.camera(Motion(clip)) == ["pans right"]


def test_a_thing_that_moves_before_a_plain_background_shows_no_camera() -> None:
    plain = np.full((17, 64, 64, 3), 20, np.uint8)
    assert measures.camera(Motion(plain)) == ["static"]
    for t, frame in enumerate(plain):
        cv2.circle(frame, (50 - 2 * t, 32), 10, (230, 40, 40), -1)
    assert measures.camera(Motion(plain)) == ["unknown"]


def test_a_thing_that_moves_before_a_still_camera_is_no_camera_motion() -> None:
    clip = moved(0, 0, count=24)
    for t, frame in enumerate(clip):
        frame[30:60, 4 + 3 * t : 34 + 3 * t] = (230, 60, 40)
    assert measures.camera(Motion(clip)) == ["static"]


def test_the_flow_of_a_shift_is_the_shift_and_warping_undoes_it() -> None:
    frames = moved(-3, 0, count=2)
    grey = Motion(frames).grey
    field = flow(grey[0], grey[1])
    assert np.median(field[20:-20, 20:-20], axis=(0, 1)) == pytest.approx([3, 0], abs=0.1)
    back = warp(frames[1], field)
    assert np.abs(back[10:-10, 10:-10].astype(float) - frames[0][10:-10, 10:-10]).mean() < 1.5


def test_fidelity_of_known_differences() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert fidelity.compare(grey, grey) == {"psnr": 100.0, "ssim": 1.0, "delta_e": 0.0}
    found = fidelity.compare(grey + 10, grey)
    assert found["psnr"] == pytest.approx(20 * np.log10(25.5))
    assert 3 < found["delta_e"] < 5
    with pytest.raises(InputError, match="16x16 and 8x16 cannot be compared"):
        fidelity.compare(grey, grey[:, :8])


def test_robust_z_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 50.0, 2.0, 1.0, 3.0])
    # The others, but for the neighbours 3 and 2: 1, 2, 1, 3; median 1.5, deviations .5, .5, .5, 1.5.
    assert seams.robust_z(values, 3, floor=0.1) == pytest.approx((50 - 1.5) / (1.4826 * 0.5))
    assert seams.robust_z(np.zeros(9), 4, floor=0.25) == 0


@pytest.mark.parametrize("join", [0, 32, -1])
def test_a_join_outside_the_clip_is_refused(carphone: tuple[Frames, float], join: int) -> None:
    with pytest.raises(InputError, match=f"join at frame {join} of 32"):
        seams.seam(carphone[0], Motion(carphone[0]), join)
