"""The error and the memory of the low-memory modes of a training, at the true width of Wan's 14B.

    python benchmarks/training_memory.py --blocks 4 --json runs/benchmarks/training_memory.json

A few blocks with 14B's dimensions and random weights take one training step of a LoRA of rank 32 whose B is not zero,
in mixed precision with gradient checkpointing, on a CPU. Each mode runs in a process of its own:

* *error*: of the loss, and of the gradient of all trained numbers (L2), relative to the bfloat16 base. The base in
  float32, computed in float32, is the control: it shows the error of bfloat16 itself.
* *memory*: the bytes of the stored base, and the peak of the temporary tensors of the step, read from the system and
  beside the prediction of `pusa.models.memory.step_estimate`.

`--predict` prints the predicted memory of whole models with each profile; nothing runs. `--trained` measures the
embedded model `tiny-base`, whose weights are trained, instead of random blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pusa.files import write_json

WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
WAN_5B = {"num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
MODELS = {"Wan2.1-14B": (WAN_14B | {"num_layers": 40}, 8), "Wan2.2-5B": (WAN_5B | {"num_layers": 30}, 16)}
"""{name: (configuration of the transformer, pixels per latent)}"""
PREDICTED = (
    ("Wan2.1-14B", "832x480x81", ("none", "48gb", "24gb", "16gb", "12gb")),
    ("Wan2.1-14B", "832x480x49", ("24gb", "16gb")),
    ("Wan2.1-14B", "512x288x49", ("24gb", "16gb", "12gb")),
    ("Wan2.2-5B", "1280x704x121", ("none", "24gb", "16gb", "12gb")),
    ("Wan2.2-5B", "832x480x121", ("12gb",)),
)
MODES = ("float32", "bf16", "bf16, swapped", "fp8", "int8", "nf4", "fp8, swapped", "bf16, no checkpointing")
RANK = 32


def one_step(mode: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Take a step in this process; write the gradients to `out` and return loss, bytes and peaks."""
    import torch
    from diffusers import WanTransformer3DModel

    from pusa.adapters.lora import Lora, casting_inputs
    from pusa.models.loading import checkpoints
    from pusa.models.memory import frozen_base
    from pusa.models.memory.step_estimate import StepRehearsal
    from pusa.models.wan.transformer import VectorWanTransformer3DModel
    from pusa.training.config.sections import TARGETS

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    exact = mode == "float32"
    if options.trained:
        model = checkpoints.load("tiny-base", device="cpu").transformer
    else:
        model = VectorWanTransformer3DModel.upgrade(WanTransformer3DModel(**WAN_14B, num_layers=options.blocks))
    if not exact:
        for name, parameter in model.named_parameters():
            if not any(part in name for part in WanTransformer3DModel._keep_in_fp32_modules):
                parameter.data = parameter.data.bfloat16()
    attached = Lora(RANK, TARGETS).attach(model, seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            if ".lora_B." in name:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=rng))
    storage: Any = next((kind for kind in ("fp8", "int8", "nf4") if kind in mode), None)
    swapped = len(model.blocks) if "swapped" in mode else 0
    if storage or swapped:
        frozen_base.place(model, model.blocks, torch.device("cpu"), storage=storage, swapped=swapped)
    checkpointing = "no checkpointing" not in mode
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    frames, height, width = options.latents
    latents = (1, model.config.in_channels, frames, height, width)
    x, text = torch.randn(latents, generator=rng), torch.randn(1, 512, model.config.text_dim, generator=rng)
    target, times = torch.randn(latents, generator=rng), 1000 * torch.rand(1, frames, generator=rng)
    stored = sum(
        layer.stored.nbytes for layer in model.modules() if isinstance(layer, frozen_base.FrozenLinear) and layer.stored
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    with casting_inputs(model, exact), torch.autocast("cpu", torch.bfloat16, enabled=not exact):
        predicted = model(x, times, text, return_dict=False)[0]
        loss = (predicted.float() - target).square().mean()
    with casting_inputs(model, exact):
        loss.backward()
    peak = _status("VmHWM") - before
    torch.save({name: p.grad for name, p in attached.parameters.items()}, out)
    if not swapped:
        stored = stored or sum(
            m.weight.nbytes for b in model.blocks for m in b.modules() if isinstance(m, torch.nn.Linear)
            and not any(p.requires_grad for p in m.parameters())
        )  # fmt: skip
    rehearsal = StepRehearsal.of(
        dict(model.config) | {"num_layers": len(model.blocks)}, latents, rank=RANK, targets=TARGETS, storage=storage,
        checkpointing=checkpointing, dtype=torch.float32 if exact else torch.bfloat16,
    )  # fmt: skip
    gradients = 4 * rehearsal.trained  # the rehearsed step has them in the type in which it computes
    return {"loss": float(loss.detach()), "base": stored, "peak": peak, "predicted_base": sum(rehearsal.blocks),
            "predicted_peak": rehearsal.peak + gradients * (0 if exact else 0.5)}  # fmt: skip


def predict() -> None:
    """Print the predicted memory of whole models, in gigabytes."""
    from pusa.errors import InputError
    from pusa.models.backbone import Geometry
    from pusa.training import fitting
    from pusa.training.config.tree import read
    from pusa.training.data.samples import Bucket

    print("| model | sample | profile | device | base | LoRA, gradients | optimiser | step | swapped | machine |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, bucket, profiles in PREDICTED:
        transformer, spatial = MODELS[name]
        for profile in profiles:
            plain = {"train.precision": "bf16", "train.gradient_checkpointing": True}
            config = read(None, None, {**plain, **({} if profile == "none" else {"memory": profile})})
            try:
                needs = fitting.needs_of(config, transformer, Geometry(4, spatial, (1, 2, 2)), [Bucket.parse(bucket)])
            except InputError:
                print(f"| {name} | {bucket} | {profile} | does not fit | | | | | | |")
                continue
            sizes = (needs.device, needs.weights, needs.adapter + needs.gradients, needs.optimiser, needs.activations)
            cells = " | ".join(f"{size / 1e9:.1f}" for size in sizes)
            print(f"| {name} | {bucket} | {profile} | {cells} | {needs.swapped} | {needs.host / 1e9:.1f} |")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compared(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """Add the errors relative to the bfloat16 base."""
    import torch

    vectors = {mode: torch.cat([g.flatten() for g in torch.load(folder / f"{i}.pt").values()])
               for i, mode in enumerate(MODES) if mode in results}  # fmt: skip
    for mode, result in results.items():
        base = results["bf16"]
        result["loss_error"] = abs(result["loss"] - base["loss"]) / base["loss"]
        result["gradient_error"] = float((vectors[mode] - vectors["bf16"]).norm() / vectors["bf16"].norm())
        result["same"] = bool(torch.equal(vectors[mode], vectors["bf16"]) and result["loss"] == base["loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--latents", type=int, nargs=3, default=(3, 32, 32), help="latent frames, height and width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trained", action="store_true", help="the embedded model instead of random blocks")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--predict", action="store_true", help="print the predicted memory of whole models, and exit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.predict:
        predict()
        return
    if options.mode:
        print(json.dumps(one_step(options.mode, options, options.gradients)))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for i, mode in enumerate(MODES):
            if mode not in options.modes:
                continue
            command = [sys.executable, __file__, "--mode", mode, "--gradients", f"{name}/{i}.pt"]
            command += ["--blocks", str(options.blocks), "--threads", str(options.threads)]
            command += ["--latents", *map(str, options.latents), *(["--trained"] if options.trained else [])]
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{mode}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            results[mode] = json.loads(done.stdout.strip().splitlines()[-1])
            print(mode, results[mode], file=sys.stderr)
        compared(Path(name), results)
    print(f"{'base':24} {'loss':>9} {'gradient':>9} {'base GB':>8} {'peak GB':>8} {'predicted':>9} {'ratio':>6}")
    for mode, one in results.items():
        errors = ["same", "same"] if one["same"] else [f"{one[key]:.2e}" for key in ("loss_error", "gradient_error")]
        print(f"{mode:24} {errors[0]:>9} {errors[1]:>9} {one['base'] / 1e9:>8.2f} {one['peak'] / 1e9:>8.3f} "
              f"{one['predicted_peak'] / 1e9:>9.3f} {one['predicted_peak'] / one['peak']:>6.2f}")  # fmt: skip
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, results)


if __name__ == "__main__":
    main()
