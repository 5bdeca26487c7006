"""A whole clip at true size on this machine, through the command line, beside what was predicted of it.

    python benchmarks/true_size.py --size 832x480 --frames 9 --steps 2 --json runs/benchmarks/true_size.json

Random weights of Wan2.1-1.3B's dimensions in bfloat16 and its autoencoder's in float32; of the text encoder, which is
four times as large as the rest, only one thin layer of the right width. The first pass tells which of bfloat16 and
float32 is faster here (one block each); the clip is then made by `pusa generate` in a process of its own, whose peak of
resident memory and time are read from the system. One block of 14B's dimensions runs as well: its share of the
machine's matrix rate, with the operations that the whole model takes on the meta device, gives what a GPU would need.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pusa.files import write_json

WAN_13B = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
H100 = 989e12
"""Operations per second of an H100 (and of an H200, which has more memory) in dense bfloat16, by its data sheet."""


def build(folder: Path, dims: dict[str, int] = WAN_13B) -> None:
    """The model's folder. dims: of the transformer.

    Weights are made in place in bfloat16, so that building takes little more than they do.
    """
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    from pusa import embedded

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder() / "tokenizer")
    config = UMT5Config(vocab_size=384, d_model=4096, d_kv=64, d_ff=128, num_layers=1, num_heads=4,
                        feed_forward_proj="gated-gelu")  # fmt: skip
    transformer = WanTransformer3DModel(**dims)
    for name, parameter in transformer.named_parameters():
        if not any(part in name for part in transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    parts = (tokenizer, UMT5EncoderModel(config), AutoencoderKLWan(), scheduler, transformer)
    WanPipeline(*parts).save_pretrained(folder)


def one_block(dims: dict[str, int], tokens: tuple[int, int, int], dtype: str) -> dict[str, float]:
    """Seconds of one block with a timestep per frame (the second of two runs), and the machine's matrix rate."""
    import torch

    from pusa.models.wan.text import TOKENS
    from pusa.models.wan.transformer import VectorWanTransformer3DModel
    from pusa.training.costs import matmul_rate

    kind = getattr(torch, dtype)
    frames, height, width = tokens
    model = VectorWanTransformer3DModel(**dims | {"num_layers": 1}).eval().requires_grad_(False)
    block, dim = model.blocks[0], dims["num_attention_heads"] * dims["attention_head_dim"]
    for name, parameter in block.named_parameters():
        if "norm" not in name and "scale_shift_table" not in name:
            parameter.data = parameter.data.to(kind)
    x = torch.randn(1, frames * height * width, dim).to(kind)
    text, rows = torch.randn(1, TOKENS, dim).to(kind), torch.randn(1, frames, 6, dim).to(kind)
    rope = model.rope(torch.empty(1, 16, frames, 2 * height, 2 * width))
    with torch.no_grad():
        for _ in range(2):
            started = time.perf_counter()
            block(x, text, rows, rope)
            seconds = time.perf_counter() - started
    return {"seconds": seconds, "rate": matmul_rate(torch.device("cpu"), kind)}


def clip(folder: Path, options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Predict and make the clip with the commands that a user has."""
    pusa = [sys.executable, "-m", "pusa"]
    shape = ["--size", options.size, "--frames", str(options.frames), "--guidance", "1", "--dtype", dtype, "--json"]
    command = [*pusa, "info", str(folder), "--memory", "cpu", *shape]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (plan,) = said["profiles"]
    command = [*pusa, "generate", "a boat on a lake", "--model", str(folder), "--steps", str(options.steps), *shape]
    command += ["--memory", "cpu", "--out", str(options.out), "--overwrite"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "predicted_bytes": plan["host"],
        "phases": plan["phases"]["host"],
        "measured_bytes": peak,
        "predicted_seconds_per_step": plan["seconds_per_step"],
        "flops_per_step": plan["flops_per_step"],
        "seconds": seconds,
        "made": json.loads(done.stdout)["clips"][0],
    }


def on_paper(size: str, frames: int, share: float) -> dict[str, Any]:
    """14B at `size`, planned on the meta device: operations of a step and memory on a GPU, and seconds at `share`."""
    import torch

    from pusa.models.memory import estimate, meta_networks
    from pusa.models.memory.profiles import PLAIN

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"transformer": {"_class_name": "WanTransformer3DModel", **WAN_14B},
                 "vae": {"_class_name": "AutoencoderKLWan"}, "text_encoder": meta_networks.UMT5_XXL}  # fmt: skip
        index: dict[str, Any] = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
        for part, config in parts.items():
            (folder / part).mkdir()
            (folder / part / "config.json").write_text(json.dumps(config))
        (folder / "model_index.json").write_text(json.dumps(index))
        width, height = (int(side) for side in size.split("x"))
        plan = estimate.Rehearsal.of(
            "14B", folder, size=(width, height), frames=frames, guidance=1, dtype=torch.bfloat16, on_cpu=False
        )
        needs = plan.needs(PLAIN)
    return {
        "size": size,
        "frames": frames,
        "flops_per_step": needs.flops,
        "device_bytes": needs.device_peak,
        "seconds_at_share": needs.flops / (share * H100),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--model", type=Path, help="keep the model in this folder, and use it if it is there")
    parser.add_argument("--out", type=Path, default=Path("outputs/true_size.mp4"))
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    width, height = (int(side) // 16 for side in options.size.split("x"))
    tokens = ((options.frames - 1) // 4 + 1, height, width)
    blocks = {dtype: one_block(WAN_13B, tokens, dtype) for dtype in ("bfloat16", "float32")}
    fastest = min(blocks, key=lambda dtype: blocks[dtype]["seconds"])
    print({dtype: f"{one['seconds']:.1f} s" for dtype, one in blocks.items()}, "a block of 1.3B", flush=True)
    large = one_block(WAN_14B, tokens, fastest)
    with tempfile.TemporaryDirectory() as name:
        folder = options.model or Path(name)
        if not (folder / "model_index.json").is_file():
            build(folder)
        made = clip(folder, options, fastest)
    planned = on_paper(options.size, options.frames, 1.0)
    share = planned["flops_per_step"] / WAN_14B["num_layers"] / large["seconds"] / large["rate"]
    result = {
        "size": options.size,
        "frames": options.frames,
        "steps": options.steps,
        "tokens": tokens[0] * tokens[1] * tokens[2],
        "dtype": fastest,
        "blocks": blocks,
        "clip": made,
        "block_14b": {**large, "flops": planned["flops_per_step"] / WAN_14B["num_layers"], "share": share},
        "on_paper": [on_paper(size, 81, share) for size in ("832x480", "1280x720")],
    }
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
