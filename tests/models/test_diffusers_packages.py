"""What is imported to make a clip: the models of diffusers that are used, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffusers

ROOT = Path(__file__).parents[2]
CODE = """
import sys
import pusa.generation.pipeline
models = [name for name in sys.modules if name.startswith("diffusers.models.")]
assert "diffusers.models.autoencoders.autoencoder_kl_wan" in models
assert "diffusers.models.transformers.transformer_wan" in models
print(*(name.rpartition(".")[2] for name in models))

assert "scipy.stats._stats_py" not in sys.modules
import scipy.stats
assert scipy.stats.beta.ppf(0.5, 1, 1) == 0.5
from scipy.stats import norm

import diffusers
from diffusers.models import autoencoders
from diffusers.models.transformers import FluxTransformer2DModel
assert diffusers.AutoencoderKL is autoencoders.AutoencoderKL
assert diffusers.FluxTransformer2DModel is FluxTransformer2DModel
assert not hasattr(autoencoders, "AutoencoderOfNobody")
star = {}
exec("from diffusers.models.unets import *", star)
assert "UNet2DModel" in star
"""


def test_models_that_are_not_used_stay_out_and_other_programs_still_find_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    folder = Path(diffusers.models.__path__[0])
    there = {path.stem for path in (*folder.glob("autoencoders/*.py"), *folder.glob("transformers/*.py"))}
    assert not imported & {"autoencoder_asym_kl", "autoencoder_kl_hunyuan_video", "transformer_sd3", "unet_2d"}
    assert len(imported & there) < len(there) / 3
