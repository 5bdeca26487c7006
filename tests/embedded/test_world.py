"""The world is a pure function of a seed, and a first frame with its caption determines the rest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pusa.embedded import world

SEEDS = st.integers(0, 2**31)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_seed_always_gives_the_same_clip(seed: int) -> None:
    scene = world.sample(seed, kind="shape")
    clip = world.render(scene)
    assert clip.shape == (17, 64, 64, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, world.render(world.sample(seed, kind="shape")))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_longer_clip_begins_with_the_shorter(seed: int) -> None:
    scene = world.sample(seed, kind="shape")
    assert np.array_equal(world.render(scene, 9), world.render(scene, 17)[:9])


def test_the_splits_differ_and_share_no_photograph() -> None:
    assert world.sample(5, "train") != world.sample(5, "heldout")
    assert not set(world.PHOTOGRAPHS["train"]) & set(world.PHOTOGRAPHS["heldout"])
    for split, other in (("train", "heldout"), ("heldout", "train")):
        names = {world.sample(s, split, "camera").picture for s in range(200)}  # type: ignore[arg-type, union-attr]
        assert not names & set(world.PHOTOGRAPHS[other])  # type: ignore[index]


def test_every_word_of_the_world_occurs() -> None:
    scenes = [world.sample(s, kind="shape") for s in range(600)]
    assert {s.shape for s in scenes} == set(world.SHAPES)
    assert {s.colour for s in scenes} == set(world.COLOURS)
    assert {s.background for s in scenes} == set(world.BACKGROUNDS)
    assert {s.motion for s in scenes} == set(world.MOTIONS)
    assert not any(s.shape == "circle" and s.motion == "spin" for s in scenes)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_shapes_stay_inside_and_move_as_told(seed: int) -> None:
    scene = world.sample(seed, kind="shape")
    for t in range(world.FRAMES):
        x, y, radius, angle = world.pose(scene, t)
        assert radius - 1e-9 <= x <= 64 - radius + 1e-9
        assert radius - 1e-9 <= y <= 64 - radius + 1e-9
        assert angle == (6 * t if scene.motion == "spin" else 0)
    if scene.motion == "still":
        clip = world.render(scene)
        assert (clip == clip[0]).all()


@given(st.floats(0, 1), st.floats(-200, 200))
def test_bounce_reflects(start: float, walk: float) -> None:
    low, high = 10.0, 50.0
    x = low + start * (high - low)
    assert low <= world.bounce(x + walk, low, high) <= high
    if low <= x + walk <= high:
        assert world.bounce(x + walk, low, high) == pytest.approx(x + walk, abs=1e-9)


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match=r"'hexagon'.*circle"):
        world.coverage("hexagon", 32, 32, 10)
    with pytest.raises(ValueError, match=r"'sky'.*black"):
        world.background("sky")


def test_a_panning_camera_shows_what_the_picture_holds() -> None:
    """Frame t of a pan is frame 0 shifted, on the part that both see."""
    seed = next(s for s in range(100) if world.sample(s, kind="camera").motion == "right")  # type: ignore[union-attr]
    scene = world.sample(seed, kind="camera")
    clip = world.render(scene).astype(float)
    error = np.abs(clip[8, 4:-4, 4:-12] - clip[0, 4:-4, 12:-4]).mean()
    assert error < 1.0 < np.abs(clip[8, 4:-4, 4:-12] - clip[0, 4:-4, 4:-12]).mean()


def test_contact_sheet_puts_clips_in_rows() -> None:
    clips = [world.render(world.sample(s, kind="shape")) for s in range(2)]
    assert world.contact_sheet(clips, columns=3).shape == (128, 192, 3)
