"""Clips as GIF, WebP and PNG frames: the right pixels, and the right time in all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.media.animations import frame_paths, write_animation, write_frames
from pusa.media.images import read_image

Make = Callable[..., NDArray[np.uint8]]


def opened(path: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """The frames of an animated picture, and their durations in milliseconds."""
    frames, times = [], []
    with PILImage.open(path) as picture:
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
            times.append(picture.info["duration"])
    return np.stack(frames), times


@pytest.mark.parametrize("fps", [8, 16, 24, 29.97])
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_lasts_as_long_as_the_clip(noise_frames: Make, tmp_path: Path, suffix: str, fps: float) -> None:
    frames = noise_frames(17)
    write_animation(tmp_path / f"a{suffix}", frames, fps)
    seen, times = opened(tmp_path / f"a{suffix}")
    assert seen.shape == frames.shape
    assert sum(times) == pytest.approx(1000 * 17 / fps, abs=5)
    error = np.abs(seen.astype(int) - frames)
    assert error.mean() < 6 if suffix == ".gif" else error.max() == 0


def test_frames_are_written_in_their_order(noise_frames: Make, tmp_path: Path) -> None:
    frames = noise_frames(12)
    write_frames(tmp_path, frames)
    assert sorted(tmp_path.iterdir()) == list(frame_paths(tmp_path, 12))
    assert (np.stack([read_image(path) for path in sorted(tmp_path.iterdir())]) == frames).all()


def test_another_suffix_is_refused(noise_frames: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.gif or \.webp"):
        write_animation(tmp_path / "a.bmp", noise_frames(2), 8)
    with pytest.raises(InputError, match="fps is 0"):
        write_animation(tmp_path / "a.gif", noise_frames(2), 0)
    assert not list(tmp_path.iterdir())
