"""Extension and transition keep the given latents and join in latent space."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from pusa.errors import InputError
from pusa.generation.pipeline import extend, transition
from pusa.media.videos import write_video

PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def clip(tiny_pipe):
    return tiny_pipe.generate(PROMPT, seed=1)


@pytest.fixture(scope="module")
def other(tiny_pipe):
    return tiny_pipe.generate("a blue square", seed=2, frames=9)


@pytest.fixture
def windows(tiny_pipe, monkeypatch):
    """What was known in each sampled window: {slot: latent}."""
    seen = []
    sample = tiny_pipe.sample

    def spy(*args, known, **options):
        seen.append({slot: latent for slot, (latent, _) in known.items()})
        return sample(*args, known=known, **options)

    monkeypatch.setattr(tiny_pipe, "sample", spy)
    return seen


def test_forward_appends_in_latent_space(tiny_pipe, clip, windows):
    longer = extend(tiny_pipe, clip, PROMPT, seed=5)
    assert longer.matrix.frames == 5  # a window of the model's 17 frames: 5 known, 12 new
    assert len(longer.frames) == 17 + 12
    assert torch.equal(longer.latents[:, :, :5], clip.latents)
    assert np.array_equal(longer.frames[:17], clip.frames)  # decoded causally, so the given part is not touched at all
    assert np.array_equal(longer.frames, tiny_pipe.decode(longer.latents))
    assert sorted(windows[0]) == [0, 1]
    assert torch.equal(windows[0][0], tiny_pipe.encode(clip.frames[12:13]))
    assert torch.equal(windows[0][1], clip.latents[:, :, 4:])


def test_backward_prepends_and_keeps_all_but_the_first_latent(tiny_pipe, clip, windows):
    longer = extend(tiny_pipe, clip, PROMPT, direction="backward", frames=8, overlap=9)
    assert len(longer.frames) == 17 + 8
    assert torch.equal(longer.latents[:, :, -4:], clip.latents[:, :, 1:])
    assert sorted(windows[0]) == [3, 4]
    assert torch.equal(torch.cat([windows[0][3], windows[0][4]], 2), clip.latents[:, :, 1:3])


def test_transition_joins_two_clips(tiny_pipe, clip, other, windows):
    joined = transition(tiny_pipe, clip, other, PROMPT)
    assert joined.matrix.frames == 5
    assert len(joined.frames) == 17 + 8 + 9 - 1
    assert torch.equal(joined.latents[:, :, :5], clip.latents)
    assert torch.equal(joined.latents[:, :, -2:], other.latents[:, :, 1:])
    assert np.array_equal(joined.frames[:17], clip.frames)
    assert sorted(windows[0]) == [0, 1, 4]
    assert torch.equal(windows[0][4], other.latents[:, :, 1:2])


def test_a_saved_clip_is_the_clip(tiny_pipe, clip, tmp_path):
    path = clip.save(tmp_path / "a.mp4")
    from_file, from_memory = (extend(tiny_pipe, source, PROMPT, frames=4) for source in (path, clip))
    assert torch.equal(from_file.latents, from_memory.latents)
    again = extend(tiny_pipe, from_file, PROMPT, frames=4)
    assert len(again.frames) == 17 + 8
    assert torch.equal(again.latents[:, :, :6], from_file.latents)


@pytest.mark.parametrize(
    ("direction", "cut", "kept"), [("forward", "start", slice(2, 15)), ("backward", "end", slice(13))]
)
def test_any_video_can_be_extended(direction, cut, kept, tiny_pipe, noise_frames):
    video = noise_frames(15)
    with pytest.warns(UserWarning, match=f"2 of its 15 frames, at its {cut}, are left out"):
        longer = extend(tiny_pipe, video, PROMPT, frames=4, direction=direction)
    assert len(longer.frames) == 13 + 4
    own = tiny_pipe.encode(video[kept])
    if direction == "forward":
        assert torch.equal(longer.latents[:, :, :4], own)
    else:
        assert torch.equal(longer.latents[:, :, -3:], own[:, :, 1:])


def test_a_video_file_of_another_size_is_fitted(tiny_pipe, noise_frames, tmp_path):
    write_video(tmp_path / "a.mp4", noise_frames(9, size=(64, 42)), fps=8)
    assert extend(tiny_pipe, tmp_path / "a.mp4", PROMPT, frames=4).frames.shape == (13, 32, 32, 3)
    assert extend(tiny_pipe, tmp_path / "a.mp4", PROMPT, frames=4, size=(48, 32)).frames.shape == (13, 32, 48, 3)


def test_a_clip_keeps_its_own_size(tiny_pipe):
    wide = tiny_pipe.generate(PROMPT, size=(48, 32), frames=5)
    longer = extend(tiny_pipe, wide, PROMPT, frames=4)
    assert longer.frames.shape == (9, 32, 48, 3)
    assert torch.equal(longer.latents[:, :, :2], wide.latents)
    assert extend(tiny_pipe, wide.frames, PROMPT, frames=4).frames.shape == (9, 32, 48, 3)
    assert transition(tiny_pipe, wide.frames, wide.frames[:, :, :32], PROMPT, frames=4).frames.shape == (13, 32, 48, 3)


@pytest.mark.parametrize(
    ("count", "overlap", "sentence"),
    [
        (3, None, "has 3 frames, fewer than the overlap of 5: give a clip of 5 frames or more"),
        (11, 13, "has 11 frames, fewer than the overlap of 13: give an overlap of at most 9"),
    ],
)
def test_a_clip_shorter_than_the_overlap_is_counted_whole(count, overlap, sentence, tiny_pipe, noise_frames):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said to be left out of it
        with pytest.raises(InputError, match=sentence):
            extend(tiny_pipe, noise_frames(count), PROMPT, overlap=overlap)


def test_noise_on_the_overlap_leaves_the_clip(tiny_pipe, clip):
    longer = extend(tiny_pipe, clip, PROMPT, frames=4, noise=[0.0, 0.3])
    assert torch.equal(longer.matrix.sigma[:, 1], 0.3 * longer.matrix.sigma[:, 2])
    assert torch.equal(longer.latents[:, :, :5], clip.latents)
    assert not torch.equal(longer.latents, extend(tiny_pipe, clip, PROMPT, frames=4).latents)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 6}, "6 frames cannot be added: give a multiple of 4, 4 or 8"),
        ({"frames": 0}, "4 or 8"),
        ({"overlap": 8}, "overlap is 8 frames: give 4m.1"),
        ({"overlap": 1}, "overlap is 1"),
        ({"overlap": 21}, "17 frames, fewer than the overlap of 21"),
        ({"direction": "sideways"}, "choose forward or backward"),
        ({"noise": 2.0}, "noise is 2.0: give a number from 0 to 1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_input_is_a_sentence(options, sentence, tiny_pipe, clip):
    with pytest.raises(InputError, match=sentence):
        extend(tiny_pipe, clip, PROMPT, **options)
