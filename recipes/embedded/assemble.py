"""Step 6 of the embedded base: put the parts into the folder that the package ships.

    python recipes/embedded/assemble.py --vae runs/embedded/decoder/vae --base runs/embedded/base/step_006000 \
        --adapter runs/embedded/adapter0/lora.safetensors --out src/pusa/embedded/tiny

Weights are stored as float16; stock `WanPipeline.from_pretrained(folder)` loads the result. `pusa.json` beside
`model_index.json` holds the defaults that a diffusers folder has no place for.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from pusa.embedded import world

DEFAULTS = {
    "fps": world.FPS,
    "frames": world.FRAMES,
    "size": [world.SIZE, world.SIZE],
    "steps": 10,
    "guidance": 2.0,
    "shift": 3.0,
}


def forget_sources(folder: Path) -> None:
    """Removes the folder that each part was loaded from, which diffusers notes in its configuration."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/pusa/embedded/tiny"))
    args = parser.parse_args()
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(args.base / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(args.base / "text_encoder").half(),
        transformer=WanTransformer3DModel.from_pretrained(args.base / "transformer", torch_dtype=torch.float16).half(),
        vae=AutoencoderKLWan.from_pretrained(args.vae).half(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    pipeline.save_pretrained(args.out)
    forget_sources(args.out)
    (args.out / "pusa.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
    (args.out / "pusa.safetensors").unlink(missing_ok=True)  # an adapter of another base
    if args.adapter is not None:
        shutil.copyfile(args.adapter, args.out / "pusa.safetensors")
    files = [path for path in args.out.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)  # safetensors makes its files private
    print(f"{args.out}: {sum(path.stat().st_size for path in files) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
