"""Where conditions go, what they are encoded to, and the sentences for those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from pusa.errors import InputError
from pusa.generation.conditions import Target, place, resolve
from pusa.generation.given import Clip, Image
from pusa.media.images import fit, write_image
from pusa.media.videos import write_video
from pusa.models.wan.geometry import GEOMETRIES


@pytest.fixture
def target(tiny_pipe):
    return Target(frames=17, size=(32, 32), fps=8, fit="crop", backbone=tiny_pipe.backbone)


@pytest.fixture
def picture(noise_frames):
    return noise_frames(1)[0]


def slots(conditions, target):
    return {slot: noise for slot, (_, noise) in resolve(conditions, target)[0].items()}


@pytest.mark.parametrize(
    ("frame", "slot"), [(0, 0), (1, 1), (4, 1), (5, 2), (-1, 4), (-17, 0), ("1s", 2), ("0.5s", 1), ("2s", 4), ("-1", 4)]
)
def test_frames_find_their_slot(frame, slot, picture, target):
    assert slots([Image(picture, frame, noise=0.25)], target) == {slot: 0.25}


def test_paths_pil_and_arrays_are_the_same_picture(picture, target, tmp_path):
    write_image(tmp_path / "a.png", picture)
    sources = (picture, PILImage.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png"))
    first, *others = (resolve([Image(src, -1)], target)[0][4][0] for src in sources)
    assert all(torch.equal(first, other) for other in others)


def test_another_shape_is_fitted(noise_frames, tiny_pipe, target):
    wide = noise_frames(1, size=(64, 32))[0]
    for mode in ("crop", "pad", "stretch"):
        known, _ = resolve([Image(wide)], Target(17, (32, 32), 8, mode, tiny_pipe.backbone))
        assert torch.equal(known[0][0], tiny_pipe.encode(fit(wide, (32, 32), mode)[None]))


def test_a_clip_at_the_beginning_is_one_video(noise_frames, tiny_pipe, target):
    video = noise_frames(20)
    known, _ = resolve([Clip(video, frames=9, noise=[0, 0.1, 0.2])], target)
    assert {slot: noise for slot, (_, noise) in known.items()} == {0: 0, 1: 0.1, 2: 0.2}
    assert torch.equal(torch.cat([known[s][0] for s in range(3)], 2), tiny_pipe.encode(video[:9]))
    later, _ = resolve([Clip(video, frames=5, start=3)], target)
    assert torch.equal(later[1][0], tiny_pipe.encode(video[3:8])[:, :, 1:])


def test_the_end_of_a_video_keeps_its_own_context(noise_frames, tiny_pipe, target):
    """Completion: the last frames of the very clip that is to be completed get the latents they have in it."""
    video = noise_frames(17)
    known, _ = resolve([Clip(video, at=-1, start=-8)], target)
    assert sorted(known) == [3, 4]
    assert torch.equal(torch.cat([known[3][0], known[4][0]], 2), tiny_pipe.encode(video)[:, :, 3:])


def test_the_beginning_of_a_video_further_in_loses_no_frame(noise_frames, tiny_pipe, target):
    video = noise_frames(8)
    known, _ = resolve([Clip(video, at=9)], target)
    assert sorted(known) == [3, 4]
    expected = tiny_pipe.encode(np.concatenate([video[:1], video]))[:, :, 1:]
    assert torch.equal(torch.cat([known[3][0], known[4][0]], 2), expected)


@given(at=st.integers(0, 20), count=st.integers(1, 21))
def test_a_clip_is_placed_exactly_or_refused(at, count, tiny_pipe):
    target = Target(21, (32, 32), 8, "crop", tiny_pipe.backbone)
    try:
        placed = place(Clip(np.zeros((21, 32, 32, 3), np.uint8), at=at, frames=count), target)
    except InputError:
        assert at + count > 21 or (count % 4 != 1 if at == 0 else at % 4 != 1 or count % 4 != 0)
    else:
        assert [f for slot in placed.slots for f in GEOMETRIES[16].frames_of(slot)] == list(range(at, at + count))


def test_paper_example_of_completion(tiny_pipe, noise_frames):
    target = Target(81, (32, 32), 16, "crop", tiny_pipe.backbone)
    conditions = [Clip(noise_frames(9)), Clip(noise_frames(12), at=-1)]
    assert sorted(slots(conditions, target)) == [0, 1, 2, 18, 19, 20]


def test_a_video_file_is_read_at_the_models_rate(noise_frames, target, tmp_path):
    write_video(tmp_path / "a.mp4", noise_frames(33), fps=16)
    assert sorted(slots([Clip(tmp_path / "a.mp4")], target)) == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def clip(tiny_pipe):
    return tiny_pipe.generate("a red circle", seed=11)


class TestGeneratedClips:
    def test_latents_are_used_as_they_are(self, clip, target, tmp_path):
        path = clip.save(tmp_path / "a.mp4")
        for source in (clip, path):
            known, records = resolve([Clip(source)], target)
            assert torch.equal(torch.cat([known[s][0] for s in range(5)], 2), clip.latents)
            assert records[0]["latents_sha256"] == clip.saved["latents_sha256"]
            known, _ = resolve([Clip(source, at=9, start=5, frames=8)], target)
            assert torch.equal(torch.cat([known[s][0] for s in (3, 4)], 2), clip.latents[:, :, 2:4])

    def test_a_first_latent_from_inside_is_encoded_alone(self, clip, tiny_pipe, target):
        known, _ = resolve([Clip(clip, start=8)], target)
        assert torch.equal(known[0][0], tiny_pipe.encode(clip.frames[8:9]))
        assert torch.equal(torch.cat([known[1][0], known[2][0]], 2), clip.latents[:, :, 3:])

    def test_elsewhere_its_frames_are_encoded(self, clip, tiny_pipe, target, tmp_path):
        path = clip.save(tmp_path / "b.mp4")
        for source in (clip, path):
            known, _ = resolve([Clip(source, start=2, frames=9)], target)
            assert torch.equal(torch.cat([known[s][0] for s in range(3)], 2), tiny_pipe.encode(clip.frames[2:11]))
        smaller = Target(17, (16, 16), 8, "stretch", tiny_pipe.backbone)
        known, _ = resolve([Clip(clip)], smaller)
        assert torch.equal(known[0][0], tiny_pipe.encode(fit(clip.frames, (16, 16), "stretch"))[:, :, :1])

    def test_latents_of_another_video_or_autoencoder_are_not_used(self, clip, target, tmp_path, noise_frames):
        path = clip.save(tmp_path / "c.mp4")
        write_video(path, noise_frames(17), fps=8)
        with pytest.warns(UserWarning, match="has changed since c.latents.safetensors was written"):
            known, records = resolve([Clip(path)], target)
        assert not torch.equal(known[0][0], clip.latents[:, :, :1])
        assert "latents_sha256" not in records[0]
        clip.save(path)
        weights = target.backbone.vae.quant_conv.weight.data
        before = weights.clone()
        weights[0, 0] += 1
        try:
            known, _ = resolve([Clip(path)], target)
        finally:
            weights.copy_(before)
        assert not torch.equal(known[1][0], clip.latents[:, :, 1:2])

    def test_damaged_latents(self, clip, target, tmp_path):
        path = clip.save(tmp_path / "d.mp4")
        (tmp_path / "d.latents.safetensors").write_bytes(b"no")
        with pytest.raises(InputError, match=r"d.latents.safetensors is damaged .* delete it"):
            resolve([Clip(path)], target)


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        (lambda p, v: [Image(p, 17)], "frame 17 is outside the clip, which has 17 frames: 0 to 16, -17 to -1"),
        (lambda p, v: [Image(p, -18)], "frame -18 is outside"),
        (lambda p, v: [Image(p, "2.1s")], "frame 2.1s is outside .* 0s to 2s"),
        (lambda p, v: [Image(p, "soon")], "'soon' is not a frame"),
        (lambda p, v: [Image(p, 1.5)], "frame is 1.5|1.5 is not a frame"),
        (lambda p, v: [Image(p, noise=1.1)], "noise is 1.1: give a number from 0 to 1; 0 keeps"),
        (lambda p, v: [Image(p, noise=float("nan"))], "noise is nan: give a number from 0 to 1"),
        (lambda p, v: [Image(p, encoding="double")], "'double' is unknown: choose single or repeat"),
        (lambda p, v: [Image(p, 13), Image(p, -1)], r"frame 13 and .* frame -1 fall into .* \(frames 13 to 16\)"),
        (lambda p, v: [Image(p, 0), Clip(v)], "fall into the same latent frame .frame 0"),
        (lambda p, v: [Image(p.astype(float))], "must be uint8"),
        (lambda p, v: [Image("nowhere.png")], "nowhere.png does not exist"),
        (lambda p, v: [Clip("nowhere.mp4")], "nowhere.mp4 does not exist"),
        (lambda p, v: [Clip(p)], r"must be uint8 frames \[N, H, W, 3\]"),
        (lambda p, v: [Clip(v[:8])], "8 frames do not fill whole latent frames, which takes 4n.1: use 5 of them"),
        (lambda p, v: [Clip(v[:7], at=9)], "7 frames do not fill .* 4n: use 4 of them"),
        (lambda p, v: [Clip(v[:16])], "use 13 of them"),
        (lambda p, v: [Clip(v[:3], at=9)], "takes 4n: give a longer clip"),
        (lambda p, v: [Clip(v[:7], at=9, start=1)], "use 4 of them"),
        (lambda p, v: [Clip(v[:4], at=10)], "put it at frame 9 or 13"),
        (
            lambda p, v: [Clip(v[:5], at=-1)],
            "a multiple of four frames, not 5; use frames=4 .*, or start=-4",
        ),
        (lambda p, v: [Clip(v, at=13)], "end at frame 29, outside the clip of 17"),
        (lambda p, v: [Clip(v, frames=21)], "21 frames from frame 0 on were requested, but the clip has 17"),
        (lambda p, v: [Clip(v, start=20)], "the start of the given clip: frame 20 is outside"),
        (lambda p, v: [Clip(v, noise=[0, 1])], "2 noise multipliers for 5 latent frames"),
        (lambda p, v: [Clip(v, noise=-0.1)], "noise is -0.1: give a number from 0 to 1"),
        (lambda p, v: [Clip(v[:4], at=-2)], "ends with a group of 4; let it end at frame -5 or -1"),
        (lambda p, v: [Clip(v, at=-9)], "begin before the clip of 17 frames"),
    ],
)
def test_what_does_not_fit_is_a_sentence(conditions, sentence, picture, noise_frames, target):
    with pytest.raises(InputError, match=sentence):
        resolve(conditions(picture, noise_frames(17)), target)
