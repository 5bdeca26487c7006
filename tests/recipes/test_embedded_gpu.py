"""The recipe for one GPU: torch renders the world, the closed form is what it says, and the whole runs small."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image

from pusa.embedded import world
from pusa.models.lora import runtime

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "embedded"
MODULES = ("adapter", "base", "data", "decoder", "encode", "gpu", "linear", "loop", "muon", "pictures", "torch_world")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)


def _shapes(scenes: list[world.ShapeScene]) -> dict[str, torch.Tensor]:
    import torch_world as tw

    lists = {"shape": tw.SHAPE_NAMES, "colour": tw.COLOURS, "background": tw.BACKGROUNDS, "motion": tw.MOTIONS}
    told = {key: torch.tensor([names.index(getattr(s, key)) for s in scenes]) for key, names in lists.items()}
    return told | {key: torch.tensor([getattr(s, key) for s in scenes]) for key in ("x", "y", "radius")}


def test_shapes_in_torch_are_those_of_the_world() -> None:
    import torch_world as tw

    scenes = [s for seed in range(48) if isinstance(s := world.sample(seed, "train", "shape"), world.ShapeScene)]
    told = _shapes(scenes)
    made = tw.render_shapes(told).permute(0, 2, 3, 4, 1).numpy()
    truth = np.stack([world.render(s) for s in scenes]).astype(float)
    assert np.abs(made - truth).max() <= 1
    assert (made != truth).mean() < 1e-4
    none = {"photograph": torch.zeros(0, dtype=torch.bool), "motion": torch.zeros(0, dtype=torch.long)}
    assert [tw.captions()[i] for i in tw.caption_index(told, none)] == [s.caption for s in scenes]


def test_cameras_in_torch_are_those_of_the_world() -> None:
    import torch_world as tw

    scenes = [
        world.CameraScene(f"texture{index}", motion, (112, 120, 128)[index % 3], x, y)
        for index, motion in enumerate(world.CAMERA_MOTIONS)
        for x, y in ((48.25, 48.5), (49.9, 50.0))
    ]
    atlas = tw.Atlas([world._scaled(s.picture, s.scale) for s in scenes], [], torch.device("cpu"))
    told = {
        "picture": torch.arange(len(scenes)),
        "photograph": torch.zeros(len(scenes), dtype=torch.bool),
        "motion": torch.tensor([tw.CAMERA_MOTIONS.index(s.motion) for s in scenes]),
        "x": torch.tensor([s.x for s in scenes]),
        "y": torch.tensor([s.y for s in scenes]),
    }
    made = tw.render_cameras(told, atlas).permute(0, 2, 3, 4, 1).numpy()
    truth = np.stack([world.render(s) for s in scenes]).astype(float)
    assert np.abs(made - truth).max() <= 1
    assert (made != truth).mean() < 1e-3


def test_scenes_drawn_in_torch_stay_inside_the_picture() -> None:
    import torch_world as tw

    rng = torch.Generator().manual_seed(0)
    atlas = tw.Atlas([tw.texture(0, 96)], [world._scaled("texture1", 128)], torch.device("cpu"))
    cameras = tw.sample_cameras(400, atlas, 0.5, rng)
    side = atlas.sizes[cameras["picture"], 1]
    left = cameras["motion"] == tw.CAMERA_MOTIONS.index("left")
    right = cameras["motion"] == tw.CAMERA_MOTIONS.index("right")
    assert (cameras["x"] - 16 * left - 32).min() >= 0
    assert (cameras["x"] + 16 * right + 32 - side).max() <= 1e-3
    shapes = tw.sample_shapes(400, rng)
    spin = shapes["motion"] == tw.MOTIONS.index("spin")
    assert not (spin & (shapes["shape"] == tw.SHAPE_NAMES.index("circle"))).any()
    clips, which = tw.batch(20, atlas, rng)
    assert clips.shape == (20, 3, 17, 64, 64)
    assert sum(tw.captions()[i].startswith("a ") for i in which) == 7


def test_the_stock_encoder_is_the_closed_form(tmp_path: Path) -> None:
    """And the decoder without chunks is the stock decoder, after training has given it all its branches."""
    from decoder import decode
    from linear import CHANNELS, CONFIG, Linear, silence, tensor, write_decoder, write_encoder

    x = tensor(np.stack([world.render(world.sample(seed, "train", "shape")) for seed in range(10)]))
    linear = Linear(x, CHANNELS, 0.5)
    vae = AutoencoderKLWan(**CONFIG, z_dim=CHANNELS, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS).eval()
    silence(vae.encoder)
    write_encoder(vae, linear)
    write_decoder(vae, linear, x)
    with torch.no_grad():
        z = vae.encode(x[:2]).latent_dist.mode()
        assert (z - linear.encode(x[:2])).abs().max() < 0.02
        assert (vae.encode(x[:1, :, :1]).latent_dist.mode() - linear.encode(x[:1, :, :1])).abs().max() < 0.02
        back = vae.decode(z).sample
        assert -10 * torch.log10(((back - x[:2]) / 2).square().mean()) > 22
        for p in vae.decoder.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        whole, chunks = decode(vae, z), vae.decode(z).sample
    assert 0.01 < float(whole.std()) < 3
    assert (whole.clamp(-1, 1) - chunks).abs().max() < 1e-3 < float((chunks.abs() < 1).float().mean())


def test_muon_together_is_muon() -> None:
    from gpu import BatchedMuon
    from muon import Muon

    parameters = [torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    one, other = Muon(parameters, 0.1), BatchedMuon(copies, 0.1)
    for step in range(3):
        for p, q in zip(parameters, copies, strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        one.step()
        other.step()
    assert all((p - q).abs().max() < 0.02 for p, q in zip(parameters, copies, strict=True))


def test_levels_of_the_adapter_are_rows_of_their_tasks() -> None:
    from adapter import levels

    rng = torch.Generator().manual_seed(0)
    ends = levels(64, {"start-end": 1.0}, rng)
    assert (ends[:, [0, 4]] == 0).all()
    assert (ends[:, 1] == ends[:, 3]).all()
    half = levels(64, {"independent": 0.5, "image-to-video": 0.5}, rng)
    assert ((half[:, 0] == 0) == (half[:, 1] == half[:, 4])).all()
    assert int((half[:, 0] == 0).sum()) == 32


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    environment = os.environ | {"OUT": str(out), "PICTURES": str(out / "none.zip"), "PYTHON": sys.executable}
    command = ["bash", str(RECIPES / "gpu.sh"), "--smoke", "--threads", "1"]
    subprocess.run(command, env=environment, check=True, timeout=3000, capture_output=True)
    return out


@pytest.mark.slow
def test_the_whole_recipe_runs_at_toy_size(smoke: Path) -> None:
    numbers = json.loads((smoke / "numbers.json").read_text())
    assert numbers["shape"]["autoencoder"] > 18
    assert {"adapted", "base", "repeated", "start_end", "extension"} <= set(numbers["camera"])
    for name in ("sheet.png", "parts.tar", "transformer.tar", "state_base.pt", "gpu.log"):
        assert (smoke / name).stat().st_size > 0, name


@pytest.mark.slow
def test_its_folder_is_stock_and_its_adapter_loads(smoke: Path) -> None:
    transformer = WanTransformer3DModel.from_pretrained(smoke / "model" / "transformer")
    loaded = runtime.load(transformer, smoke / "model" / "pusa.safetensors")
    assert loaded.modules == 2 * 10
    AutoencoderKLWan.from_pretrained(smoke / "model" / "vae")


def test_a_pack_stands_in_for_scikit_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pictures

    pack = tmp_path / "pack.zip"
    whole, cut = Image.new("RGB", (160, 170), (10, 20, 30)), Image.new("RGB", (96, 144), (40, 50, 60))
    with zipfile.ZipFile(pack, "w") as file:
        for name, picture, kind in (("0000.jpg", whole, "JPEG"), ("world/coffee_96.png", cut, "PNG")):
            data = io.BytesIO()
            picture.save(data, kind)
            file.writestr(name, data.getvalue())
    assert [picture.size for picture in pictures.load(pack)] == [(160, 170)]
    monkeypatch.setattr(world, "_scaled", world._scaled)
    pictures.install(pack)
    assert world._scaled("coffee", 96).size == (96, 144)
    assert world._scaled("texture0", 96).size == (96, 96)


def test_pictures_inside_a_resource_file_are_found() -> None:
    import pictures

    data = io.BytesIO()
    Image.effect_noise((300, 300), 60).convert("RGB").save(data, "JPEG")
    blob = b"qres" + len(data.getvalue()).to_bytes(4, "big") + data.getvalue() + b"tail"
    assert list(pictures.inside(blob)) == [data.getvalue()]
