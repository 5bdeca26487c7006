"""The parts of `gpu.py`: each measures one thing on the device that it is given, with random weights.

At toy size a part runs on a CPU too, which tests that it runs at all.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
import workloads
from section import Section, Table
from true_size import H100, WAN_13B, WAN_14B, build

from pusa.training.costs import scaled

ROOT = Path(__file__).absolute().parents[1]
CLIP = (21, 60, 104)
"""81 frames of 832x480, in latents"""
SHORT = (5, 60, 104)
"""17 frames of 832x480"""
TOY: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 2}
TOY_CLIP = (3, 8, 8)
ATTENTION = (
    "native",
    "_native_flash",
    "_native_cudnn",
    "_native_efficient",
    "flash",
    "_flash_3",
    "flex",
    "sage",
    "xformers",
)
ACCELERATIONS = ("uniform,every=2", "steps,threshold=0.1", "held,every=4")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part runs. smoke: toy size on the CPU."""

    device: torch.device
    smoke: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.smoke else torch.bfloat16

    def shape(self, shape: workloads.Shape) -> workloads.Shape:
        return TOY_CLIP if self.smoke else shape

    def model(self, dims: dict[str, Any], blocks: int) -> Any:
        chosen = TOY if self.smoke else dims | {"num_layers": blocks}
        return workloads.transformer(chosen, self.dtype, self.device)

    def matrix_rate(self) -> float:
        return machine.matrix_rate(self.device, self.dtype, 256 if self.smoke else 8192)

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        """The most memory since `forget_peak`, as text."""
        if self.device.type != "cuda":
            return "–"
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def described(place: Place, model: Any, shape: workloads.Shape) -> str:
    """The model and the clip of a table."""
    config = model.config
    width = config.num_attention_heads * config.attention_head_dim
    frames, height, width_of_clip = shape
    return (
        f"{config.num_layers} blocks of width {width}, {4 * (frames - 1) + 1} frames of "
        f"{8 * width_of_clip}x{8 * height} ({workloads.tokens(model, shape):,} tokens), {str(place.dtype)[6:]}"
    )


def step(place: Place) -> Section:
    """A denoising step at true size: a timestep per frame, and the stock forward per clip and per token."""
    section = Section("A step on a GPU", "bash benchmarks/gpu.sh --parts step")
    section.text.append(
        "One call of the transformer. The three kinds take turns on one model. Per clip and per token are the stock "
        "forward of diffusers. The operations are those of the per-frame step, for all kinds."
    )
    for name, dims, turns in (("1.3B", WAN_13B, 3), ("14B", WAN_14B, 2)):
        _add_size(section, place, name, dims, turns)
        place.forget_peak()
    return section


def _add_size(section: Section, place: Place, name: str, dims: dict[str, int], turns: int) -> None:
    """Measure a step with the dimensions of one model, and add it to the section."""
    blocks = dims["num_layers"] if place.smoke else fitting(dims)
    model, shape = place.model(dims, blocks), place.shape(CLIP)
    flops, runs = kinds_of_timestep(model, shape)
    rate, peaks = place.matrix_rate(), {}
    for kind, run in runs.items():  # also the warm-up
        place.forget_peak()
        run()
        peaks[kind] = place.peak()
    seconds = machine.in_turns(runs, turns, place.device, warm_up=False)
    rows = []
    for kind, taken in seconds.items():
        achieved = flops / statistics.median(taken)
        ratio = machine.ratio_text(machine.ratio(taken, seconds["per frame, pusa"]))
        measured = [machine.durations(taken), peaks[kind], scaled(achieved, "FLOP/s"), f"{achieved / rate:.0%}"]
        rows.append([kind, *measured, ratio])
    head = ["timestep", "time of a step", "peak memory", "rate", "of the matrix rate", "time / per frame"]
    section.tables.append(Table(head, rows, f"{name}: {described(place, model, shape)}"))
    section.text.append(
        f"{name}: {blocks} of {dims['num_layers']} blocks, {scaled(flops, 'FLOP')} a step. The card multiplies "
        f"{scaled(rate, 'FLOP/s')}, {rate / H100:.0%} of the peak of an H100 by its data sheet."
    )
    section.numbers[name] = {"blocks": blocks, "flops": flops, "rate": rate, "seconds": seconds}


def kinds_of_timestep(model: Any, shape: workloads.Shape) -> tuple[int, dict[str, Callable[[], Any]]]:
    """The operations of a step, and the step with each kind of timestep."""
    latents, times, text = workloads.inputs(model, shape)
    per_token = times.repeat_interleave(workloads.tokens(model, shape) // shape[0], dim=1)
    told = {"per frame, pusa": times, "per clip, diffusers": times[:, -1], "per token, diffusers": per_token}

    def run(timestep: torch.Tensor) -> Any:
        with torch.no_grad():
            return model(latents, timestep, text, return_dict=False)[0]

    return forward_flops(model, shape), {kind: partial(run, timestep) for kind, timestep in told.items()}


def forward_flops(model: Any, shape: workloads.Shape, text: int = 512) -> int:
    """The operations of the linear layers and of attention in a call, with a timestep per frame.

    As `pusa.models.wan.operations.StepCounter`, which needs peft.
    """
    tokens, frames = workloads.tokens(model, shape), shape[0]
    total = 2 * tokens * model.patch_embedding.weight.numel()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            of_text = "text_embedder" in name or name.endswith(("attn2.to_k", "attn2.to_v"))
            rows = text if of_text else frames if "time" in name else tokens
            total += 2 * rows * module.in_features * module.out_features
    width = model.config.num_attention_heads * model.config.attention_head_dim
    return int(total + model.config.num_layers * 4 * tokens * (tokens + text) * width)


def fitting(dims: dict[str, int]) -> int:
    """The blocks that fit: 30 GiB are left for the activations of the per-token step."""
    width = dims["num_attention_heads"] * dims["attention_head_dim"]
    one = 2 * (8 * width * width + 2 * width * dims["ffn_dim"])
    return min(dims["num_layers"], max(1, int((torch.cuda.mem_get_info()[0] - 30 * 2**30) / one)))


def attention(place: Place) -> Section:
    """Two blocks of 14B with each attention function that diffusers finds here."""
    model = place.model(WAN_14B, 2)
    shape = place.shape(CLIP)
    plain = workloads.denoising_step(model, shape)
    runs: dict[str, Callable[[], Any]] = {}
    left_out, results = [], {}

    def chosen(name: str) -> Any:
        model.set_attention_backend(name)
        return plain()

    for name in ("native",) if place.smoke else ATTENTION:
        try:
            results[name] = chosen(name)
            runs[name] = partial(chosen, name)
        except Exception as error:  # a missing package, an unknown name, or a card that it does not support
            left_out.append([name, f"{type(error).__name__}: {error}".splitlines()[0][:120]])
    seconds = machine.in_turns(runs, 3, place.device)
    rows = [
        [name, machine.durations(taken), machine.ratio_text(machine.ratio(taken, seconds["native"])),
         f"{float((results[name] - results['native']).abs().max() / results['native'].abs().max()):.1e}"]
        for name, taken in seconds.items()
    ]  # fmt: skip
    tables = [
        Table(["function", "time of a step", "time / native", "difference"], rows, described(place, model, shape))
    ]
    if left_out:
        tables.append(Table(["not available here", "why"], left_out))
    return Section(
        "Attention on a GPU", "bash benchmarks/gpu.sh --parts attention", tables=tables, numbers={"seconds": seconds}
    )


def compiled(place: Place) -> Section:
    """Blocks of 14B, compiled and plain."""
    plain, fast = (place.model(WAN_14B, 4) for _ in range(2))
    shape = place.shape(CLIP)
    fast.compile_repeated_blocks(fullgraph=True, **({"backend": "eager"} if place.smoke else {}))
    runs = {"plain": workloads.denoising_step(plain, shape), "compiled": workloads.denoising_step(fast, shape)}
    first = machine.seconds(runs["compiled"], place.device)
    apart = float((runs["plain"]() - runs["compiled"]()).abs().max() / runs["plain"]().abs().max())
    seconds = machine.in_turns(runs, 3, place.device)
    ratio = machine.ratio(seconds["plain"], seconds["compiled"])
    rows = [[name, machine.durations(taken)] for name, taken in seconds.items()]
    rows += [["first step, with compiling", machine.duration(first)], ["plain / compiled", machine.ratio_text(ratio)],
             ["difference", f"{apart:.1e}"]]  # fmt: skip
    table = Table(["", "time of a step"], rows, described(place, plain, shape))
    return Section("Compiled blocks on a GPU", "bash benchmarks/gpu.sh --parts compile", tables=[table],
                   numbers={"seconds": seconds, "first": first, "ratio": ratio})  # fmt: skip


def fp8(place: Place) -> Section:
    """Blocks of 14B whose linear layers are stored as fp8, beside bfloat16."""
    from diffusers.hooks import apply_layerwise_casting

    from pusa.models.memory.profiles import FP8, KEPT_OF_WAN

    shape, seconds, rows, numbers = place.shape(CLIP), {}, [], {}
    models = {"as it computes": place.model(WAN_14B, 10), "fp8": place.model(WAN_14B, 10)}
    apply_layerwise_casting(models["fp8"], FP8, place.dtype, KEPT_OF_WAN)
    runs = {name: workloads.denoising_step(model, shape) for name, model in models.items()}
    seconds = machine.in_turns(runs, 3, place.device)
    for name, model in models.items():
        stored = sum(p.nbytes for p in model.parameters())
        ratio = machine.ratio(seconds[name], seconds["as it computes"])
        rows.append([name, scaled(stored, "B"), machine.durations(seconds[name]), machine.ratio_text(ratio)])
        numbers[name] = {"stored": stored, "seconds": seconds[name], "ratio": ratio}
    apart = float((runs["fp8"]() - runs["as it computes"]()).abs().max() / runs["as it computes"]().abs().max())
    table = Table(["weights", "stored", "time of a step", "ratio"], rows,
                  described(place, models["fp8"], shape))  # fmt: skip
    text = [f"The largest difference of a velocity is {apart:.1e} of the largest value."]
    return Section(
        "Weights as fp8 on a GPU", "bash benchmarks/gpu.sh --parts fp8", text=text, tables=[table], numbers=numbers
    )


def acceleration(place: Place) -> Section:
    """The seconds of a walk through the steps, with the accelerations that `pusa generate` has."""
    import pusa
    from pusa.generation.request import Generate

    if "accelerate" not in {field.name for field in dataclasses.fields(Generate)}:
        raise Unavailable("this version of pusa has no option accelerate")
    picture = pusa.Image(ROOT / "src" / "pusa" / "embedded" / "assets" / "photo.png")

    def walk(chosen: str | None) -> float:
        """Seconds from the end of the first step to the end of the last one."""
        ends: list[float] = []

        def note(_: Any) -> None:
            machine.finish(place.device)
            ends.append(time.perf_counter())

        told = options | {"seed": 1, "accelerate": chosen, "callback": note}
        pipe.generate("a boat on a lake", [picture], **told)
        return ends[-1] - ends[0]

    with tempfile.TemporaryDirectory() as name:
        if place.smoke:
            pipe = pusa.load("tiny", device="cpu")
            options: dict[str, Any] = {"steps": 4}
        else:
            build(Path(name), WAN_13B | {"num_layers": 10})
            pipe = pusa.load(name, device=place.device, dtype=torch.bfloat16)
            options = {"steps": 10, "size": (480, 320), "frames": 81, "guidance": 3.0}
        walk(None)
        plain, rows, numbers = [walk(None)], [], {}
        for chosen in ACCELERATIONS:
            try:
                taken = walk(chosen)
            except pusa.InputError as error:
                rows.append([chosen, "–", "–", str(error)[:100]])
                continue
            plain.append(walk(None))
            rows.append([chosen, machine.duration(taken), f"{plain[-1] / taken:.2f}", ""])
            numbers[chosen] = {"seconds": taken, "plain": plain[-1]}
    rows.insert(0, ["none", machine.durations(plain), "1", ""])
    text = [f"A clip from a picture, {options}; a plain walk runs after each. The first step is not in the time. With "
            "random weights, how much a threshold lets through says nothing about a real model."]  # fmt: skip
    table = Table(["acceleration", "time of the walk", "plain / accelerated", ""], rows)
    return Section("Accelerations on a GPU", "bash benchmarks/gpu.sh --parts acceleration", text=text, tables=[table],
                   numbers=numbers)  # fmt: skip


def lora(place: Place) -> Section:
    """A LoRA step at 1.3B, with and without gradient checkpointing."""
    shape, rows, numbers = place.shape(SHORT), [], {}
    for checkpointing in (False, True):
        model = place.model(WAN_13B, 30)
        run = workloads.lora_step(model, shape, checkpointing=checkpointing)
        run()
        place.forget_peak()
        seconds = [machine.seconds(run, place.device) for _ in range(3)]
        name = "with checkpointing" if checkpointing else "without checkpointing"
        rows.append([name, machine.durations(seconds), place.peak()])
        numbers[name] = {"seconds": seconds, "peak": place.peak()}
        title = described(place, model, shape)
        del model, run
        place.forget_peak()
    table = Table(["rank 32", "time of a step", "peak memory"], rows, title)
    return Section("A LoRA step on a GPU", "bash benchmarks/gpu.sh --parts lora", tables=[table], numbers=numbers)


def tests(place: Place) -> Section:
    """`pytest -m gpu`; in a smoke run, one quick file of tests."""
    wanted = ["tests/test_errors.py"] if place.smoke else ["-m", "gpu"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *wanted]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = [line for line in done.stdout.splitlines() if line.strip()][-1:] or [done.stderr.strip()[-200:]]
    if done.returncode:
        raise Unavailable(f"pytest ended with {done.returncode}: {last[0]}")
    return Section("Tests on a GPU", "python -m pytest -m gpu", text=[last[0].strip("= ")])


class Unavailable(Exception):
    """A part cannot run here; the message says why."""


PARTS: dict[str, tuple[int, Callable[[Place], Section]]] = {
    "step": (120, step),
    "attention": (50, attention),
    "compile": (70, compiled),
    "fp8": (40, fp8),
    "lora": (60, lora),
    "acceleration": (75, acceleration),
    "tests": (60, tests),
}
"""{name: (the most seconds, the part)}; together 475 seconds"""
