"""Previews are made by the model that is trained, and the training does not notice."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from pusa.adapters.lora import without_lora
from pusa.core.objectives import flow_matching_loss
from pusa.errors import InputError
from pusa.media import images, videos
from pusa.models.loading import checkpoints
from pusa.models.wan.backbone import WanBackbone
from pusa.training import previews
from pusa.training.data.samples import Bucket


@dataclass(frozen=True)
class Held:
    key: str
    latents: Tensor
    context: Tensor
    caption: str


@dataclass(frozen=True)
class Settings:
    tasks: tuple[str, ...] = ("text-to-video", "image-to-video", "start-end", "extension")
    prompts: tuple[str, ...] | None = None
    steps: int | None = 2
    guidance: float | None = 2.0


@pytest.fixture(scope="module")
def parts(tiny_folder: Path) -> WanBackbone:
    """A random pipeline with an adapter on it that does something."""
    return trainable(tiny_folder)


def trainable(folder: Path) -> WanBackbone:
    parts = checkpoints.load(str(folder), device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False, lora_dropout=0.1)
    parts.transformer.add_adapter(config, "pusa")
    parts.transformer.train()
    return parts


@pytest.fixture(scope="module")
def held(parts: WanBackbone) -> list[Held]:
    samples = []
    for i, caption in enumerate(["a red circle moves left", "the camera pans right over a photograph of a cat"]):
        z = torch.randn(16, 5, 4, 4, generator=torch.Generator().manual_seed(i))
        context = parts.encode_text([caption]).tokens[0]
        samples.append(Held(str(i), z, context, caption))
    return samples


def test_clips_and_sheet(parts: WanBackbone, held: list[Held], tmp_path: Path) -> None:
    made = previews.make(parts, held, 40, tmp_path / "step_000040", Settings())
    names = {path.name for path in (tmp_path / "step_000040").iterdir()}
    assert names == {"sheet.png", *(f"{task}_{i}.mp4" for task in Settings().tasks for i in (0, 1))}
    frames, fps = videos.read_video(tmp_path / "step_000040" / "image-to-video_1.mp4")
    assert (frames.shape, fps) == ((17, 32, 32, 3), 8)
    by_name = {p.path.stem: p for p in made}
    for task, slots in (("text-to-video", ()), ("image-to-video", (0,)), ("start-end", (0, 4)), ("extension", (0, 1))):
        preview = by_name[f"{task}_0"]
        assert preview.given == slots
        assert preview.prompt == "a red circle moves left"
        held_clean = (preview.matrix.sigma == 0).all(dim=0).nonzero()[:, 0].tolist()
        assert tuple(held_clean) == slots
    assert [by_name[f"image-to-video_{i}"].seed for i in (0, 1)] == [0, 1]
    first = by_name["image-to-video_0"]
    assert np.array_equal(first.frames[0], first.truth[0])  # the given latent came through bit for bit
    assert not np.array_equal(first.frames[-1], first.truth[-1])
    sheet = images.read_image(tmp_path / "step_000040" / "sheet.png")
    assert (sheet == previews.MARK).all(axis=-1).any()
    block = (sheet.shape[0] - 34) / len(made)
    assert block == int(block) > 100


def test_a_picture_of_ones_own_is_shown_in_the_given_frames(parts: WanBackbone, tmp_path: Path) -> None:
    picture = np.zeros((64, 40, 3), np.uint8)
    picture[:32] = (200, 30, 30)
    images.write_image(tmp_path / "mine.png", picture)
    buckets = [Bucket(48, 32, 17), Bucket(32, 48, 17), Bucket(32, 64, 5), Bucket(32, 48, 1)]
    prompts = ("a red sky",)
    (clip,) = previews.clips_of(parts, [tmp_path / "mine.png"], prompts, buckets)
    assert clip.latents.shape == (16, 5, 6, 4)
    cropped = images.fit(picture, (32, 48))
    assert torch.equal(clip.latents[:, :1], parts.encode(cropped[None])[0].cpu())
    settings = Settings(tasks=("image-to-video",), prompts=prompts)
    (made,) = previews.make(parts, [clip], 1, tmp_path / "step", settings)
    assert (made.prompt, made.given, made.frames.shape) == ("a red sky", (0,), (17, 48, 32, 3))
    assert np.array_equal(made.frames[0], made.truth[0])


def test_the_same_model_makes_the_same_previews_and_a_changed_one_others(
    parts: WanBackbone, held: list[Held], tmp_path: Path
) -> None:
    settings = Settings(tasks=("image-to-video",), guidance=1.0)
    one, again = (previews.make(parts, held[:1], s, tmp_path, settings)[0].frames for s in (1, 2))
    assert np.array_equal(one, again)
    with without_lora(parts.transformer):
        base = previews.make(parts, held[:1], 3, tmp_path, settings)[0].frames
    assert not np.array_equal(one, base)


def test_the_model_and_the_random_numbers_are_left_alone(parts: WanBackbone, held: list[Held], tmp_path: Path) -> None:
    parts.transformer.blocks[0].eval()
    modes = [module.training for module in parts.transformer.modules()]
    weights = {name: p.detach().clone() for name, p in parts.transformer.named_parameters()}
    before = torch.get_rng_state(), random.getstate()
    previews.make(parts, held, 1, tmp_path, Settings(tasks=("start-end",)))
    assert [module.training for module in parts.transformer.modules()] == modes
    assert True in modes
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
    for name, p in parts.transformer.named_parameters():
        assert p.equal(weights[name])
        assert p.grad is None
        assert p.requires_grad == ("lora_" in name)
    parts.transformer.train()


def test_a_training_with_previews_is_bit_for_bit_the_one_without(
    tiny_folder: Path, held: list[Held], tmp_path: Path
) -> None:
    """With dropout, so that the training itself draws from the global stream and minds its mode."""

    def train(preview: bool) -> dict[str, Tensor]:
        parts = trainable(tiny_folder)
        model = parts.transformer
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
        torch.manual_seed(1)
        for step in range(3):
            x0 = held[step % 2].latents[None]

            def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
                return model(x, 1000 * sigma, context, return_dict=False)[0]

            noise, sigma = torch.randn_like(x0), torch.rand(1, 5)
            flow_matching_loss(velocity, x0, noise, sigma, held[step % 2].context[None]).backward()
            optimiser.step()
            optimiser.zero_grad()
            if preview and step < 2:
                previews.make(parts, held, step, tmp_path / str(step), Settings(tasks=("image-to-video",)))
        return {name: p.detach().clone() for name, p in trained.items()}

    plain, previewed = train(False), train(True)
    assert (tmp_path / "1" / "sheet.png").is_file()
    for name, value in plain.items():
        assert value.equal(previewed[name]), name


def test_prompts_of_ones_own_and_processes_that_do_not_write(
    parts: WanBackbone, held: list[Held], tmp_path: Path
) -> None:
    settings = Settings(tasks=("text-to-video",), prompts=("a blue square grows", "a cat", "the dog"), guidance=None)
    made = previews.make(parts, held, 1, tmp_path / "none", settings, write=False)
    assert [p.prompt for p in made] == ["a blue square grows", "a cat", "the dog"]
    assert not (tmp_path / "none").exists()
    caption = Settings(tasks=("text-to-video",), guidance=None)
    empty = parts.encode_text([""]).tokens[0]
    given = previews.make(parts, held, 1, tmp_path, caption, empty_context=empty, write=False)
    encoded = previews.make(parts, held, 1, tmp_path, caption, write=False)
    assert np.array_equal(given[0].frames, encoded[0].frames)


def test_stills_have_text_to_video_only(parts: WanBackbone, held: list[Held], tmp_path: Path) -> None:
    still = [Held("s", held[0].latents[:, :1], held[0].context, "a still")]
    made = previews.make(parts, still, 1, tmp_path, Settings())
    assert [p.task for p in made] == ["text-to-video"]
    with pytest.raises(InputError, match=r"add text-to-video to preview\.tasks"):
        previews.make(parts, still, 1, tmp_path, Settings(tasks=("image-to-video",)))
    with pytest.raises(InputError, match="need held-out clips"):
        previews.make(parts, [], 1, tmp_path, Settings())
