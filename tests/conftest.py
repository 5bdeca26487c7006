"""A complete random Wan pipeline in the diffusers layout, small enough to be made anew for every test session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from pusa.generation.pipeline import Pipeline

# A shell that starts the tests in the background makes them ignore Ctrl-C, which some of them send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _gradients_stay_on() -> Iterator[None]:
    """A test that leaves gradients switched off would break others far away."""
    yield
    torch = sys.modules.get("torch")
    assert torch is None or torch.is_grad_enabled()


PROMPTS = (
    "a red circle moves left on a black background",
    "a blue square grows on a white background",
    "the camera pans right over a photograph of a cat",
    "the quick brown fox jumps over the lazy dog, 0123456789.",
)


def build_tiny(folder: Path) -> Path:
    """Write a random text-to-video pipeline (17 frames of 32x32 pixels are 5 slots of 4x4 latents)."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

    text = Tokenizer(models.Unigram())
    text.pre_tokenizer = pre_tokenizers.Metaspace()
    text.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    text.train_from_iterator(PROMPTS, trainer)
    end = text.token_to_id("</s>")
    text.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    tokenizer = T5TokenizerFast(
        tokenizer_object=text, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0
    )

    torch.manual_seed(0)
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=256,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=32,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=64,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=64,
    ).eval()
    vae = AutoencoderKLWan(
        base_dim=16, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    WanPipeline(tokenizer, encoder, vae, scheduler, transformer).save_pretrained(folder)
    defaults = {"fps": 8, "frames": 17, "size": [32, 32], "steps": 2, "guidance": 2.0}
    (folder / "pusa.json").write_text(json.dumps(defaults))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `build_tiny` wrote; treat it as read-only."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def experts_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a second transformer of other weights, as Wan2.2 A14B has one; treat it as read-only."""
    import torch
    from diffusers import WanTransformer3DModel

    folder = tmp_path_factory.mktemp("experts") / "a14b"
    shutil.copytree(tiny_folder, folder)
    torch.manual_seed(5)
    second = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder / "transformer"))
    second.save_pretrained(folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def tiny_pipe(tiny_folder: Path) -> Pipeline:
    """The loaded pipeline, shared: a test that changes its weights or adapters loads its own."""
    from pusa.generation.pipeline import load

    return load(str(tiny_folder), device="cpu")


@pytest.fixture
def noise_frames() -> Callable[..., NDArray[np.uint8]]:
    """noise_frames(count, seed=0, size=(32, 32)) -> uint8 [count, H, W, 3]: smooth random colours, slowly changing."""

    def make(count: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        corners = rng.integers(0, 256, (2, 2, 2, 3))
        t, y, x = (np.linspace(0, 1, n) for n in (count, size[1], size[0]))
        for along, axis in ((t, 0), (y, 1), (x, 2)):
            first, last = np.take(corners, [0], axis), np.take(corners, [1], axis)
            shape = [1, 1, 1, 1]
            shape[axis] = -1
            corners = first + (last - first) * along.reshape(shape)
        return corners.round().astype(np.uint8)

    return make
