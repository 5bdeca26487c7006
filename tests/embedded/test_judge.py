"""The judge is right on rendered clips and wrong where it must be: every statistic has a control that fails."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pusa.embedded import judge, world
from pusa.media.images import Frames

CLIPS = 80


def share(key: str, change: Callable[[Frames], Frames]) -> float:
    """How often the judge finds what the caption says, on held-out clips after `change`."""
    right = 0
    for seed in range(CLIPS):
        scene = world.sample(seed, "heldout", "shape")
        right += getattr(judge.judge(change(world.render(scene))), key) == getattr(scene, key)
    return right / CLIPS


def blurred(clip: Frames) -> Frames:
    blur = ImageFilter.GaussianBlur(1)
    return np.stack([np.asarray(Image.fromarray(f).filter(blur)) for f in clip])


def shuffled(clip: Frames) -> Frames:
    return clip[np.random.default_rng(int(clip[0].sum())).permutation(len(clip))]


def recoloured(clip: Frames) -> Frames:
    return clip[..., [1, 2, 0]]


@pytest.mark.parametrize("key", ["colour", "shape", "motion"])
def test_rendered_clips_are_judged_right(key: str) -> None:
    assert share(key, lambda clip: clip) == 1.0


@pytest.mark.parametrize("key", ["colour", "motion"])
def test_a_slight_blur_changes_little(key: str) -> None:
    assert share(key, blurred) >= 0.97


@pytest.mark.parametrize(
    ("key", "change", "at_most"),
    [
        ("motion", lambda clip: np.repeat(clip[:1], len(clip), axis=0), 0.2),
        ("motion", lambda clip: clip[::-1], 0.6),
        ("motion", shuffled, 0.6),
        ("colour", recoloured, 0.1),
    ],
)
def test_controls_are_judged_wrong(key: str, change: Callable[[Frames], Frames], at_most: float) -> None:
    assert share(key, change) <= at_most


def test_a_clip_without_a_shape_has_no_verdict() -> None:
    grey = np.full((17, 64, 64, 3), 128, np.uint8)
    assert judge.judge(grey) == judge.Verdict(None, None, None, 0.0)


def test_speed_is_in_pixels_a_frame() -> None:
    scene = world.ShapeScene("circle", "red", "black", "right", 16, 32, 10)
    assert judge.judge(world.render(scene)).speed == pytest.approx(world.SPEED, abs=0.05)
    assert judge.judge(world.render(scene).repeat(2, axis=0)[:17]).speed < 0.6 * world.SPEED


def test_camera_motions_are_told_apart_and_a_frozen_clip_is_still() -> None:
    scenes = [world.sample(seed, "heldout", "camera") for seed in range(60)]
    clips = [world.render(s) for s in scenes]
    assert all(judge.judge_camera(c) == s.motion for c, s in zip(clips, scenes, strict=True))
    assert all(judge.judge_camera(np.repeat(c[:1], 17, 0)) == "still" for c in clips)
