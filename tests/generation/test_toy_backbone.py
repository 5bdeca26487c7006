"""A second backbone, of six frames a slot: every task and a training run on it with no edit outside it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from pusa.core import schedules, sigmas
from pusa.errors import InputError
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import Pipeline, extend, transition
from pusa.generation.provenance import regenerate
from pusa.media.videos import write_video
from pusa.models.backbone import Backbone, Defaults, Flops, Geometry, Text
from pusa.processes import ProcessGroup
from pusa.training.config.tree import Config
from pusa.training.data import samples
from pusa.training.data.cache import CachedSamples, prepare
from pusa.training.data.fingerprints import fingerprint
from pusa.training.data.samples import Bucket
from pusa.training.monitoring import Monitor
from pusa.training.trainer import train

PROMPT = "a dot"


class ToyNetwork(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Every latent sees its level, its position, the text, and the mean of its clip."""

    @register_to_config
    def __init__(self, channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.inside, self.text = nn.Linear(channels + 2, width), nn.Linear(8, width)
        self.outside = nn.Linear(width, channels)

    def forward(self, x: Tensor, sigma: Tensor, text: Text, frames: Tensor) -> Tensor:
        assert text.mask is not None
        words = (text.tokens * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True).clamp(min=1)
        clip = x.movedim(1, -1)
        level = torch.stack([sigma, frames.expand_as(sigma) / 10], dim=-1)[:, :, None, None]
        hidden = self.inside(torch.cat([clip, level.expand(*clip.shape[:-1], 2)], dim=-1).to(x.dtype))
        hidden = torch.tanh(hidden + self.text(words)[:, None, None, None])
        return self.outside(hidden + hidden.mean(dim=1, keepdim=True)).movedim(-1, 1)


@dataclass
class Toy:
    """Pixels become latents by averaging 4x4 squares over a slot's frames; a letter is a text token."""

    transformer: Any = field(default_factory=ToyNetwork)
    text_encoder: Any = field(default_factory=lambda: nn.Embedding(128, 8).requires_grad_(False))
    vae: Any = field(default_factory=nn.Identity)
    transformer_2 = tokenizer = hub_names = None
    source, fingerprint, vae_fingerprint = "toy", "toy", "averages"
    defaults = Defaults(fps=6, frames=25, size=(16, 16), steps=3)
    beside: dict[str, str] = field(default_factory=dict)
    loras: tuple[Any, ...] = ()
    geometry = Geometry(frames_per_slot=6, spatial=4)
    channels, text_tokens, text_width, positions, heads = 3, 12, 8, 64, 1

    def velocity(self, network, latents, sigma, text, *, frames=None, branch=None, autocast=None):
        at = torch.arange(latents.shape[2]) if frames is None else frames
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            return network(latents, sigma, text, at).to(latents.dtype)

    def encode(self, frames):
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).float().permute(3, 0, 1, 2) / 127.5 - 1
        slots = range(self.geometry.latent_frames(len(frames)))
        means = [pixels[:, list(self.geometry.frames_of(slot))].mean(dim=1) for slot in slots]
        return nn.functional.avg_pool2d(torch.stack(means, dim=1), 4)[None]

    def decode(self, latents):
        each = [len(self.geometry.frames_of(slot)) for slot in range(latents.shape[2])]
        pixels = latents[0].repeat_interleave(torch.tensor(each), dim=1).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()

    def encode_text(self, prompts):
        ids = torch.tensor([[ord(c) for c in f"{prompt:12.12}"] for prompt in prompts])
        mask = torch.arange(12) < torch.tensor([[len(prompt)] for prompt in prompts])
        return Text(self.text_encoder(ids) * mask[..., None], mask)

    def latents_fingerprint(self):
        return self.vae_fingerprint

    def text_fingerprint(self):
        return str(self.text_encoder.weight.tolist())

    @staticmethod
    def clean(prompt):
        return prompt[:12]

    def walk(self):
        return nullcontext()

    def forget(self):
        pass

    def exact_modules(self, network):
        return [network.text]

    def blocks(self, network):
        return []

    def step_counter(self, network):
        return lambda clips, tokens, frames: Flops(6 * tokens * 8, 12 * tokens * 8)


@pytest.fixture
def toy() -> Backbone:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def pipe(toy: Backbone) -> Pipeline:
    return Pipeline(toy)


def video(frames: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)


PICTURE, LONG = video(1)[0], video(25, seed=1)
WINDOW = schedules.sliding_window(sigmas.grid(4), 5, window=2, block=1, context=1)
CONDITIONS: dict[str, tuple[list[Image | Clip], list[int]]] = {
    "text to video": ([], []),
    "image to video": ([Image(PICTURE)], [0]),
    "last frame": ([Image(PICTURE, frame=-1)], [4]),
    "keyframes": ([Image(PICTURE), Image(PICTURE, 9, encoding="single"), Image(PICTURE, 24)], [0, 2, 4]),
    "video at the beginning": ([Clip(LONG[:13])], [0, 1, 2]),
    "video further in": ([Clip(LONG[:12], at=7)], [2, 3]),
}


@pytest.mark.filterwarnings("ignore:Some frames are given")
@pytest.mark.parametrize("task", CONDITIONS)
def test_conditions(task: str, pipe: Pipeline) -> None:
    conditions, slots = CONDITIONS[task]
    clip = pipe.generate(PROMPT, conditions, seed=3)
    assert clip.frames.shape == (25, 16, 16, 3)
    assert clip.latents.shape == (1, 3, 5, 4, 4)
    assert (clip.matrix.sigma == 0).all(dim=0).nonzero()[:, 0].tolist() == slots
    if slots and slots[0] == 0:
        first = LONG[:1] if "video" in task and task != "image to video" else PICTURE[None]
        assert torch.equal(clip.latents[:, :, :1], pipe.encode(first))
    assert not torch.equal(clip.latents, pipe.generate("other", conditions, seed=3).latents)


@pytest.mark.filterwarnings("ignore:Some frames are given")
def test_editing_extension_and_transition_are_remade(pipe: Pipeline, tmp_path: Path) -> None:
    first = pipe.generate(PROMPT).save(tmp_path / "first.mp4")
    second = pipe.generate(PROMPT, seed=1).save(tmp_path / "second.mp4")
    made = {
        "edited": pipe.generate(PROMPT, init=Clip(first), strength=0.5),
        "later": extend(pipe, first, PROMPT, frames=12),
        "earlier": extend(pipe, first, PROMPT, frames=6, overlap=13, direction="backward"),
        "between": transition(pipe, first, second, PROMPT, frames=12),
        "own matrix": pipe.generate(PROMPT, matrix=WINDOW),
    }
    assert [len(clip.frames) for clip in made.values()] == [25, 37, 31, 61, 25]
    given = pipe.generate(PROMPT).latents
    assert torch.equal(made["later"].latents[:, :, :5], given)
    assert torch.equal(made["earlier"].latents[:, :, -4:], given[:, :, 1:])
    assert torch.equal(made["between"].latents[:, :, :5], given)
    for name, clip in made.items():
        again = regenerate(clip.save(tmp_path / f"{name}.mp4"), pipe)
        assert torch.equal(again.latents, clip.latents), name


def test_a_window_has_absolute_positions(pipe: Pipeline) -> None:
    seen: list[list[int]] = []
    pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[3].tolist()))
    pipe.generate(PROMPT, matrix=WINDOW, guidance=1.0)
    assert seen == [row.nonzero()[:, 0].tolist() for row in WINDOW.visible]


def test_sentences_speak_of_its_frames(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"10 frames cannot be made, a clip has 6n\+1 of them: use 7 or 13\."):
        pipe.generate(PROMPT, frames=10)
    with pytest.raises(InputError, match=r"begins with a group of six: put it at frame 1 or 7\."):
        pipe.generate(PROMPT, [Clip(LONG[:6], at=4)])
    with pytest.raises(InputError, match=r"which takes 6n\+1: use 1 or 7 of them"):
        pipe.generate(PROMPT, [Clip(LONG, frames=6)])
    with pytest.raises(InputError, match=r"give a multiple of 6, 6 or 12"):
        extend(pipe, LONG, PROMPT, frames=8)
    with pytest.raises(InputError, match=r"give 6m\+1 of them, such as 7, 13 or 19"):
        extend(pipe, LONG, PROMPT, overlap=9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [{"rank": 2, "targets": ["inside"]}, None], ids=["lora", "all weights"])
def test_training(lora: dict[str, Any] | None, precision: str, toy: Backbone, tmp_path: Path) -> None:
    """With the cache, validation, previews, costs and model card."""
    (tmp_path / "data").mkdir()
    for seed in range(5):
        write_video(tmp_path / f"data/{seed}.mp4", video(25, seed), 6)
        (tmp_path / f"data/{seed}.txt").write_text(f"clip {seed}")
    plan = samples.survey(tmp_path / "data", (Bucket(16, 16, 25),), 6, toy.geometry)
    done = prepare(plan, toy, tmp_path / "cache")
    assert (done.made, done.captions, done.failed) == (5, 6, ())
    parts = [replace(plan, cuts=cuts) for cuts in (plan.cuts[:4], plan.cuts[4:])]
    encoded, held_out = (CachedSamples(part, fingerprint(toy, 6), tmp_path / "cache") for part in parts)
    assert torch.equal(encoded[0].latents, toy.encode(samples.read(plan.cuts[0], 6))[0])
    assert torch.equal(encoded[0].context, toy.encode_text(["clip 0"]).tokens[0])
    config = Config.model_validate({
        "lora": lora,
        "train": {"steps": 2, "batch": 2, "lr": 0.1, "workers": 0, "precision": precision},
        "validate": {"every": 2},
        "preview": {"every": 2, "steps": 2},
    })  # fmt: skip
    before = {name: p.detach().clone() for name, p in toy.transformer.named_parameters()}
    out = tmp_path / "run"
    with Monitor(config, out, toy, encoded, held_out, ProcessGroup(), quiet=True) as watch:
        result = train(
            config, out, components=toy, samples=encoded, held_out=held_out, tracker=watch.tracker, hooks=watch.hooks
        )
        costs = watch.finish()
    assert result.loss is not None
    assert result.output.exists()
    assert costs is not None
    assert costs.tokens == 2 * 2 * 5 * 4 * 4
    assert {"validation.jsonl", "previews", "README.md", "cost.json"} <= {file.name for file in out.iterdir()}
    after = dict(toy.transformer.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in before.items() if name in after) == (lora is not None)
