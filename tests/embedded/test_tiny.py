"""The shipped model is an ordinary Wan folder, and its adapter does what the base cannot."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

import pusa
from pusa import embedded
from pusa.embedded import world
from pusa.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return pusa.load("tiny")


def test_all_of_it_is_small() -> None:
    files = [path for path in embedded.folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000


def test_it_names_no_folder_of_the_machine_that_made_it() -> None:
    configs = list(embedded.folder().glob("*/config.json"))
    assert len(configs) == 3
    assert not any("_name_or_path" in json.loads(path.read_text()) for path in configs)


def test_it_is_none_of_the_former_models(tiny: Pipeline) -> None:
    assert tiny.recipe()["model"]["fingerprint"] not in embedded.FORMER


def test_stock_diffusers_loads_and_samples_it() -> None:
    pipe = WanPipeline.from_pretrained(embedded.folder())
    assert type(pipe.transformer).__name__ == "WanTransformer3DModel"
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        "a red circle moves left on a black background",
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    ).frames[0]
    red, green, blue = out[8].reshape(-1, 3)[out[8].reshape(-1, 3).max(1) > 0.5].mean(0)
    assert out.shape == (17, 64, 64, 3)
    assert red > 2 * green
    assert red > 2 * blue


def test_a_given_first_frame_keeps_its_latent_and_decides_the_clip(tiny: Pipeline) -> None:
    """Against the truth the adapter must beat the base, the control, on every scene."""
    scenes = [world.sample(seed, "heldout", "shape") for seed in range(6)]
    clips = [world.render(scene) for scene in scenes]
    base = pusa.load("tiny-base")
    errors: dict[str, list[float]] = {"tiny": [], "base": []}
    for scene, truth in zip(scenes, clips, strict=True):
        for name, pipe in (("tiny", tiny), ("base", base)):
            made = pipe.generate(scene.caption, [pusa.Image(truth[0])], seed=1)
            assert torch.equal(made.latents[:, :, :1], pipe.encode(truth[:1]))
            errors[name].append(float(np.square(made.frames[1:].astype(float) - truth[1:]).mean()))
    assert all(np.array(errors["tiny"]) < errors["base"])
    assert np.mean(errors["tiny"]) < 0.85 * np.mean(errors["base"])


def test_a_photograph_moves_without_dissolving(tiny: Pipeline) -> None:
    """Held-out photographs under a moving camera, against repeating the first frame."""
    scenes = [
        world.CameraScene("coffee", "right", 112, 76.0, 56.0),
        world.CameraScene("coffee", "left", 112, 92.0, 56.0),
        world.CameraScene("chelsea", "down", 112, 84.0, 48.0),
    ]
    made, repeated = [], []
    for scene in scenes:
        truth = world.render(scene)
        clip = tiny.generate(scene.caption, [pusa.Image(truth[0])], seed=1).frames
        made.append(np.square(clip[1:].astype(float) - truth[1:]).mean())
        repeated.append(np.square(truth[:1].astype(float) - truth[1:]).mean())
        assert np.square(clip[0].astype(float) - truth[0]).mean() < 250  # the given frame: 24 dB
    assert np.mean(made) < 0.8 * np.mean(repeated)


def test_the_model_likes_what_its_world_is(tiny: Pipeline) -> None:
    assert (tiny.defaults.fps, tiny.defaults.frames, tiny.defaults.size) == (world.FPS, world.FRAMES, (64, 64))
