"""The matrix of a latent, and its picture."""

from __future__ import annotations

from typing import Any

import torch

from pusa.core import schedules, sigmas
from tests.comfyui.conftest import SLOTS, Twins
from tests.comfyui.test_sampler import matrix, picture


def test_the_columns_of_given_frames_are_scaled(twins: Twins, noise_frames: Any) -> None:
    latent = picture(twins, picture(twins, twins.empty(), noise_frames(1), 0), noise_frames(1), -1, 0.5)
    free = schedules.synchronous(sigmas.grid(4, 5.0), SLOTS)
    assert matrix(latent, 4) == schedules.conditioned(free, {0: 0.0, SLOTS - 1: 0.5})


def test_the_picture_shows_every_number_on_its_colour(twins: Twins, noise_frames: Any) -> None:
    from comfyui import PusaMatrixPreview
    from comfyui.drawing import CELL, LEFT, TOP

    latent = picture(twins, twins.empty(), noise_frames(1), 0)
    walked = matrix(latent, 4)
    (image,) = PusaMatrixPreview().draw(walked)
    assert image.dtype == torch.float32
    assert image.ndim == 4
    assert float(image.amax()) <= 1
    heat = walked.image(CELL).float() / 255
    for step in range(4):
        for frame in range(SLOTS):
            y, x = TOP + step * CELL, LEFT + frame * CELL
            cell = image[0, y : y + CELL, x : x + CELL]
            colour = heat[step * CELL + 2, frame * CELL + 2]
            assert torch.allclose(cell[2, 2], colour)
            assert int((cell - colour).abs().amax(dim=2).gt(0.3).sum()) > 40  # the number
    other = PusaMatrixPreview().draw(matrix(twins.empty(), 4))[0]
    assert other.shape == image.shape
    assert not torch.equal(other, image)
