"""Where given frames go, with how much noise, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pusa.errors import InputError
from tests.comfyui.conftest import SLOTS, Twins
from tests.comfyui.test_sampler import picture, shown


def clip(twins: Twins, count: int, frame: int, noise: str = "0", latent: Any = None) -> Any:
    from comfyui import PusaClip

    latent = twins.empty() if latent is None else latent
    return PusaClip().place(latent, twins.vae, torch.rand(count, 32, 32, 3), frame, noise, "crop")[0]


@pytest.mark.parametrize(("frame", "slot"), [(0, 0), (1, 1), (4, 1), (5, 2), (16, 4), (-1, 4), (-17, 0)])
def test_a_picture_fills_the_latent_frame_of_its_pixel_frame(
    twins: Twins, noise_frames: Any, frame: int, slot: int
) -> None:
    from comfyui.latents import multipliers

    latent = picture(twins, twins.empty(), noise_frames(1), frame, 0.25)
    expected = [1.0] * SLOTS
    expected[slot] = 0.25
    assert multipliers(latent) == expected
    filled = latent["samples"].flatten(3).any(dim=3).any(dim=1)[0]
    assert filled.nonzero().flatten().tolist() == [slot]


def test_a_later_picture_is_a_still_clip_or_one_frame(twins: Twins, noise_frames: Any) -> None:
    from comfyui import PusaPicture

    image = shown(noise_frames(1))
    still, single = (
        PusaPicture().place(twins.empty(), twins.vae, image, 5, 0.0, way, "crop")[0]["samples"][:, :, 2:3]
        for way in ("repeat", "single")
    )
    assert torch.equal(single, twins.vae.encode(image))
    assert torch.equal(still, twins.vae.encode(image.expand(5, -1, -1, -1))[:, :, 1:])
    assert not torch.equal(still, single)


def test_pictures_of_another_shape(twins: Twins) -> None:
    from comfyui.conditions import fitted

    samples = twins.empty()["samples"]
    wide = torch.zeros(1, 32, 96, 4)
    wide[:, :, 32:64] = 1
    cut, distorted = (fitted(wide, samples, twins.vae, fit) for fit in ("crop", "stretch"))
    assert cut.shape == distorted.shape == (1, 32, 32, 3)
    assert float(cut.mean()) > 0.9
    assert float(distorted.mean()) < 0.5
    same = torch.rand(2, 32, 32, 3)
    assert torch.equal(fitted(same, samples, twins.vae, "crop"), same)


def test_the_input_does_not_change(twins: Twins, noise_frames: Any) -> None:
    empty = twins.empty()
    once = picture(twins, empty, noise_frames(1), 0)
    picture(twins, once, noise_frames(1), 8)
    assert not empty["samples"].any()
    assert "noise_mask" not in empty
    assert not once["samples"][:, :, 1:].any()


def test_the_places_of_clips(twins: Twins) -> None:
    from comfyui.latents import multipliers

    assert multipliers(clip(twins, 9, 0, "0, 0.5, 0.25")) == [0, 0.5, 0.25, 1, 1]
    assert multipliers(clip(twins, 8, 5, "0.5")) == [1, 1, 0.5, 0.5, 1]
    assert multipliers(clip(twins, 4, -1)) == [1, 1, 1, 1, 0]
    assert multipliers(clip(twins, 17, -1)) == [0] * 5


def test_what_does_not_fit_is_refused(twins: Twins, noise_frames: Any) -> None:
    with pytest.raises(InputError, match="Frame 17 is outside the clip, which has 17 frames"):
        picture(twins, twins.empty(), noise_frames(1), 17)
    with pytest.raises(InputError, match="2 pictures for frame 0"):
        picture(twins, twins.empty(), noise_frames(2), 0)
    with pytest.raises(InputError, match=r"Latent frame 1 \(pixel frame 1 and later\) is given twice"):
        picture(twins, picture(twins, twins.empty(), noise_frames(1), 3), noise_frames(1), 4)
    with pytest.raises(InputError, match="8 frames do not fill whole latent frames: give 5 or 9"):
        clip(twins, 8, 0)
    with pytest.raises(InputError, match="begins at a frame 4k-3, such as 1 or 5"):
        clip(twins, 4, 3)
    with pytest.raises(InputError, match="3 frames from frame 5 on do not fill"):
        clip(twins, 3, 5)
    with pytest.raises(InputError, match="frames 13 to 20 of a clip of 17"):
        clip(twins, 8, 13)
    with pytest.raises(InputError, match="frames -1 to 16"):
        clip(twins, 18, -1)
    with pytest.raises(InputError, match="'a': give numbers"):
        clip(twins, 4, 1, "a")
    with pytest.raises(InputError, match=r"from 0 \(keeps a frame\) to 1"):
        clip(twins, 4, 1, "1.5")
    with pytest.raises(InputError, match="2 numbers for 1 latent frames"):
        clip(twins, 4, 1, "0, 0")
    small = {"samples": torch.zeros(1, 8, SLOTS, 4, 4)}
    with pytest.raises(InputError, match="16 channels and 4x4, and the latent has 8 and 4x4"):
        picture(twins, small, noise_frames(1), 0)
    with pytest.raises(InputError, match="make it with a node for video"):
        picture(twins, {"samples": torch.zeros(1, 16, 4, 4)}, noise_frames(1), 0)


def test_masks_of_other_nodes(twins: Twins) -> None:
    from comfyui.latents import multipliers

    samples = twins.empty()["samples"]
    column = torch.tensor([0, 0.5, 1, 1, 1])[:, None, None].expand(SLOTS, 4, 4)
    assert multipliers({"samples": samples, "noise_mask": column}) == [0, 0.5, 1, 1, 1]
    assert multipliers({"samples": samples, "noise_mask": column[None, None]}) == [0, 0.5, 1, 1, 1]
    uneven = column.clone()
    uneven[2, 0, 0] = 0
    with pytest.raises(InputError, match="varies inside a latent frame"):
        multipliers({"samples": samples, "noise_mask": uneven})
    with pytest.raises(InputError, match="17 frames and the latent has 5"):
        multipliers({"samples": samples, "noise_mask": torch.ones(17, 4, 4)})
    with pytest.raises(InputError, match="outside 0 to 1"):
        multipliers({"samples": samples, "noise_mask": 2 * torch.ones(SLOTS, 4, 4)})
