"""Predicted beside measured memory: random weights of Wan2.1-1.3B's width, on a CPU.

    python benchmarks/memory.py --blocks 4 --sizes 832x480x9 256x256x17 --json

Each size runs in a process of its own, which loads the model, encodes a prompt, samples and decodes as `pusa generate`
does, and reads the peak of its resident memory in each phase from the system (Linux only). A share is predicted over
measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PHASES = ("load", "text", "sample", "decode")


def build(folder: Path, blocks: int, base: int) -> None:
    """A model with the embedded one's tokenizer and text encoder, 1.3B's width, and an autoencoder of `base` channels
    at full size (96 in Wan2.1's)."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    from pusa import embedded

    torch.manual_seed(0)
    encoder = UMT5EncoderModel.from_pretrained(embedded.folder() / "text_encoder", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder() / "tokenizer")
    transformer = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=blocks, text_dim=encoder.config.d_model
    )
    vae = AutoencoderKLWan(base_dim=base)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    WanPipeline(tokenizer, encoder, vae, scheduler, transformer).save_pretrained(folder)


def measure(folder: str, width: int, height: int, frames: int, steps: int, profile: str | None) -> dict[str, float]:
    """The peak of this process in each phase, in bytes."""
    from pusa.generation.pipeline import load

    peaks = {"runtime": peak()}
    restart()
    pipe = load(folder, device="cpu", memory=profile)
    peaks["load"] = peak()
    restart()
    texts = pipe.encode_text(["a prompt"])
    peaks["text"] = peak()
    restart()
    settings = pipe.limits.settings(frames=frames, size=(width, height), steps=steps, guidance=1.0)
    known = {0: (pipe.noise(1, settings)[:, :, :1], 0.0)}  # so that the frames' timesteps differ
    z = pipe.sample(pipe.matrix(settings, known), (texts, texts), settings, known=known)
    peaks["sample"] = peak()
    restart()
    pipe.decode(z)
    peaks["decode"] = peak()
    return peaks


def peak() -> float:
    """The most that this process held since `restart`, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return float(line.split()[1]) * 1024


def restart() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def predict(folder: Path, width: int, height: int, frames: int, profile: str | None) -> dict[str, float]:
    """What `pusa info --memory` predicts for the same."""
    from pusa.models.memory.estimate import Rehearsal
    from pusa.models.memory.profiles import PLAIN, named

    rehearsal = Rehearsal.of(str(folder), folder, size=(width, height), frames=frames, on_cpu=True)
    return dict(rehearsal.needs(PLAIN if profile is None else named(profile)).host)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4, help="of the 30 of Wan2.1-1.3B")
    parser.add_argument("--base", type=int, default=32, help="channels of the autoencoder at full size; Wan2.1 has 96")
    parser.add_argument("--sizes", nargs="+", default=["832x480x9"], metavar="WxHxF")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--profile", default=None, help="a memory profile, 80gb if not given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sizes = [tuple(int(side) for side in size.split("x")) for size in asked.sizes]
    if asked.child:
        print(json.dumps(measure(asked.child, *sizes[0], asked.steps, asked.profile)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, asked.blocks, asked.base)
        for text, (width, height, frames) in zip(asked.sizes, sizes, strict=True):
            command = [sys.executable, __file__, "--child", name, "--sizes", text, "--steps", str(asked.steps)]
            command += [] if asked.profile is None else ["--profile", asked.profile]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            predicted = predict(folder, width, height, frames, asked.profile)
            top = [max(found[phase] for phase in PHASES) for found in (predicted, measured)]
            rows.append({"size": text, "predicted": predicted, "measured": measured, "share": top[0] / top[1]})
    if asked.json:
        print(json.dumps(rows))
        return
    print(f"{'size':14} {'phase':8} {'predicted':>10} {'measured':>10} {'share':>6}")
    for row in rows:
        for phase in PHASES:
            said, was = row["predicted"][phase], row["measured"][phase]
            print(f"{row['size']:14} {phase:8} {said / 1e9:>7.2f} GB {was / 1e9:>7.2f} GB {said / was:>6.2f}")


if __name__ == "__main__":
    main()
