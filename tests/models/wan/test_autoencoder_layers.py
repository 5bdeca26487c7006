"""The layers for a CPU: the values of diffusers within rounding, and exactly diffusers wherever they do not apply."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pusa import embedded
from pusa.models.loading import checkpoints
from pusa.models.wan import autoencoder, autoencoder_layers
from pusa.models.wan.autoencoder_layers import CPUConvolution, CPUNorm

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="the layers of diffusers are kept on this CPU",
)

WAN21 = {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 1, 1], "num_res_blocks": 1}
WAN22 = WAN21 | {"z_dim": 48, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
                 "decoder_base_dim": 16, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
                 "latents_std": [1.0] * 48}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """PyTorch chooses other algorithms for several threads, and tensors this small only lose time to them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def both(config: dict[str, Any]) -> tuple[AutoencoderKLWan, AutoencoderKLWan]:
    """A stock autoencoder and an upgraded copy."""
    torch.manual_seed(0)
    stock = AutoencoderKLWan(**config).eval().requires_grad_(False)
    return stock, autoencoder_layers.upgrade(copy.deepcopy(stock))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Operations(TorchDispatchMode):
    """Record the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_layers_are_those_of_diffusers() -> None:
    stock, upgraded = both(WAN21)
    classes = {WanCausalConv3d: CPUConvolution, WanRMS_norm: CPUNorm}
    for theirs, ours in zip(stock.modules(), upgraded.modules(), strict=True):
        assert type(ours) is classes.get(type(theirs), type(theirs))
    assert {type(layer) for layer in stock.modules()} > set(classes)


def test_a_loaded_model_decodes_small_clips_with_onednn() -> None:
    vae = checkpoints.load_encoders(device="cpu").vae
    with Operations() as seen:
        autoencoder.decode(vae, draw(1, 12, 2, 16, 16))
    assert "mkldnn_convolution" in seen.names
    assert "linalg_vector_norm" not in seen.names


def test_the_embedded_model_has_the_pixels_of_diffusers_within_rounding() -> None:
    stock = AutoencoderKLWan.from_pretrained(embedded.folder() / "vae", torch_dtype=torch.float32).eval()
    vae = checkpoints.load_encoders(device="cpu").vae
    with torch.no_grad():
        z = stock.encode(draw(1, 3, 9, 64, 64).clamp(-1, 1)).latent_dist.mode()
        assert (vae.encode(draw(1, 3, 9, 64, 64).clamp(-1, 1)).latent_dist.mode() - z).abs().max() <= 1e-5
        assert (vae.decode(z).sample - stock.decode(z).sample).abs().max() <= 1e-5


@pytest.mark.parametrize("config", [WAN21, WAN22], ids=["Wan2.1", "Wan2.2"])
@pytest.mark.parametrize("tiled", [False, True])
@torch.no_grad()
def test_other_autoencoders_within_rounding(config: dict[str, Any], tiled: bool) -> None:
    stock, upgraded = both(config)
    x = draw(1, 3, 9, 64, 64).clamp(-1, 1)
    results = []
    for vae in (stock, upgraded):
        if tiled:
            vae.enable_tiling(32, 32, 24, 24)
        results.append((vae.encode(x).latent_dist.parameters, vae.decode(draw(1, config["z_dim"], 3, 4, 4)).sample))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiled", [False, True])
@torch.no_grad()
def test_slot_by_slot_is_bit_identical_to_the_whole(tiled: bool, noise_frames: Any) -> None:
    vae = checkpoints.load_encoders(device="cpu").vae
    if tiled:
        vae.enable_tiling(32, 32, 24, 24)
    frames = noise_frames(9, size=(64, 64))
    z = autoencoder.encode(vae, frames)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    assert torch.equal(z, vae.encode(pixels).latent_dist.mode())
    whole = ((vae.decode(z).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(torch.from_numpy(autoencoder.decode(vae, z)), whole[0].permute(1, 2, 3, 0))


@pytest.mark.parametrize("cached", [None, 1, 2])
@pytest.mark.parametrize("frames", [1, 2, 4])
@torch.no_grad()
def test_convolution_after_every_number_of_frames(cached: int | None, frames: int) -> None:
    torch.manual_seed(0)
    stock = WanCausalConv3d(3, 5, 3, padding=1)
    ours = copy.deepcopy(stock)
    ours.__class__ = CPUConvolution
    x = draw(1, 3, frames, 9, 7)
    before = None if cached is None else draw(1, 3, cached, 9, 7, seed=1)
    exact = copy.deepcopy(stock).double()(x.double(), None if before is None else before.double())
    torch.testing.assert_close(ours(x, before).double(), exact, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_picture_is_not_multiplied_with_the_kernel_of_the_frames_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = checkpoints.load_encoders(device="cpu").vae
    kernels, convolve = set(), torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *args: (kernels.add(args[1].shape[2]), convolve(*args))[1])
    vae.encode(draw(1, 3, 1, 32, 32))
    assert kernels == {1}
    vae.encode(draw(1, 3, 5, 32, 32))
    assert kernels == {1, 2, 3}


@torch.no_grad()
def test_norm_is_as_exact_as_that_of_diffusers() -> None:
    stock = WanRMS_norm(48, images=False)
    stock.gamma.copy_(draw(48, 1, 1, 1))
    ours = copy.deepcopy(stock)
    ours.__class__ = CPUNorm
    x = draw(2, 48, 2, 8, 8) * torch.logspace(-3, 3, 8)
    x[:, :, :, 0] = 0
    torch.testing.assert_close(ours(x).double(), copy.deepcopy(stock).double()(x.double()), rtol=1e-6, atol=0)
    assert not ours(x)[:, :, :, 0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_types_are_bit_identical_to_diffusers(dtype: torch.dtype) -> None:
    stock, upgraded = (vae.to(dtype) for vae in both(WAN21))
    z = draw(1, 16, 2, 4, 4).to(dtype)
    assert torch.equal(upgraded.decode(z).sample, stock.decode(z).sample)


@pytest.mark.filterwarnings("ignore:TF32")
@torch.no_grad()
def test_without_onednn_the_convolution_is_that_of_diffusers() -> None:
    stock = WanCausalConv3d(3, 5, 3, padding=1)
    ours = copy.deepcopy(stock)
    ours.__class__ = CPUConvolution
    x = draw(1, 3, 4, 8, 8)
    with torch.backends.mkldnn.flags(enabled=False), Operations() as seen:
        assert torch.equal(ours(x), stock(x))
    assert "mkldnn_convolution" not in seen.names


@pytest.mark.parametrize("trained", ["latents", "weights"])
def test_gradients_are_bit_identical_to_diffusers(trained: str) -> None:
    gradients = []
    for vae in both(WAN21):
        z = draw(1, 16, 2, 4, 4).requires_grad_(trained == "latents")
        vae.decoder.requires_grad_(trained == "weights")
        vae.decode(z).sample.square().sum().backward()
        leaf = z if trained == "latents" else vae.decoder.mid_block.resnets[0].conv1.weight
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@torch.no_grad()
def test_compiled_layers_are_those_of_diffusers() -> None:
    stock, upgraded = both(WAN21)
    x = draw(1, 16, 2, 8, 8)
    block, theirs = upgraded.decoder.mid_block.resnets[0], stock.decoder.mid_block.resnets[0]
    assert torch.equal(torch.compile(block, backend="eager", fullgraph=True)(x), theirs(x))


def test_the_saved_folder_is_that_of_diffusers(tmp_path: Path) -> None:
    stock, upgraded = both(WAN21)
    for name, vae in (("stock", stock), ("upgraded", copy.deepcopy(upgraded))):
        vae.save_pretrained(tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "stock").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "upgraded").iterdir())
    for file in files:
        assert (tmp_path / "upgraded" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()
