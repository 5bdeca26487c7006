"""Frame arithmetic for any number of frames a slot, and texts with their masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pusa.errors import InputError
from pusa.models.backbone import Geometry, Text

GEOMETRY = st.builds(Geometry, st.integers(1, 12), st.integers(1, 32))


@given(GEOMETRY, st.integers(0, 10_000))
def test_every_frame_is_in_its_slot(geometry: Geometry, frame: int) -> None:
    slot = geometry.slot_of(frame)
    held = geometry.frames_of(slot)
    assert frame in held
    assert len(held) == (1 if frame == 0 else geometry.frames_per_slot)
    assert geometry.begins_slot(frame) == (frame == held[0])
    assert geometry.is_whole(frame + 1) == (frame == held[-1])


@given(GEOMETRY, st.integers(1, 5000))
def test_lengths(geometry: Geometry, slots: int) -> None:
    frames = geometry.pixel_frames(slots)
    assert geometry.latent_frames(frames) == slots
    assert geometry.whole(frames) == geometry.whole(frames + geometry.frames_per_slot - 1) == frames
    assert geometry.groups(frames - 1) == frames - 1
    assert geometry.frames_of(slots - 1)[-1] == frames - 1


def test_sentences_and_shapes() -> None:
    six = Geometry(6, 4, (1, 2, 2))
    with pytest.raises(InputError, match=r"^14 frames cannot be made, a clip has 6n\+1 of them: use 13 or 19\.$"):
        six.latent_frames(14)
    with pytest.raises(InputError, match=r"use 1\.$"):
        six.latent_frames(0)
    assert six.nearest(14) == (13, 19)
    assert (six.form(), six.form("m"), six.form(plus=0), six.group) == ("6n+1", "6m+1", "6n", "six")
    assert six.multiple == 8
    assert six.latent_shape(16, 13, (32, 16)) == (1, 16, 3, 4, 8)


def test_the_mask_ends_with_the_prompt() -> None:
    tokens = torch.randn(2, 5, 3)
    tokens[0, 3:], tokens[1, 1] = 0, 0  # a zero inside a prompt is part of it
    text = Text.padded(tokens)
    assert text.mask is not None
    assert text.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert len(text) == 2
    assert torch.equal(text[1:].tokens, tokens[1:])
    assert text[:1].expand(3).tokens.shape == (3, 5, 3)
    assert Text(tokens)[:1].expand(3).mask is None
    assert Text(tokens).with_tokens(tokens).mask is None
    assert torch.equal(Text(tokens, text.mask).with_tokens(tokens).mask, text.mask)
