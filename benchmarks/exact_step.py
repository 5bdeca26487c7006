"""The time and memory of a denoising step beside stock diffusers, for the same result up to rounding.

    python benchmarks/exact_step.py --json docs/results/performance/exact_step.json

Four tables:

* A call of the network of the embedded model, and of a network with the dimensions of Wan2.1 1.3B, fewer blocks and
  random weights. Stock diffusers takes one timestep, or one per token; pusa takes one timestep, or one per frame.
* Each optimisation alone: what pusa needs without it, relative to what it needs with it.
* Both branches of guidance in one call instead of two.
* The denoising of a clip of the embedded model with guidance, 10 steps, with the adapter.

All variants of a table run in turn in one process, so whatever else the machine does meets all of them. Printed is the
median of the paired ratios with its range. On a CPU, times are CPU seconds of one thread; on a GPU they are those of
the clock. The peak of activations is computed on the meta device. A stock network is the same network with the classes
of diffusers put back.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanRotaryPosEmbed, WanTransformerBlock
from machine import facts
from section import Section, Table
from torch import Tensor

import pusa
from pusa.core import sigmas
from pusa.models.backbone import Text
from pusa.models.memory.tensor_tracker import rehearse
from pusa.models.wan import inference, per_clip
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.transformer import VectorWanTransformer3DModel

PROMPT = "a red circle moves left on a black background"
WORDS = 20
"""tokens of the prompt of the random network"""
STEPS = 10
Timings = Mapping[str, list[float]]


def stock_of(network: VectorWanTransformer3DModel, parts: str = "all") -> Any:
    """Return a copy of the network with the classes of diffusers.

    parts: "all", or only "gelu" or "rotation"; then the copy stays a network of pusa.
    """
    twin = copy.deepcopy(network)
    for block in twin.blocks:
        if parts in ("all", "rotation"):
            block.attn1.processor.__class__ = WanAttnProcessor
        if parts in ("all", "gelu"):
            block.ffn.net[0].__class__ = GELU
        if parts == "all":
            block.attn2.processor.__class__ = WanAttnProcessor
            block.__class__ = WanTransformerBlock
    if parts == "all":
        twin.__class__, twin.rope.__class__ = WanTransformer3DModel, WanRotaryPosEmbed
    return twin


def clock(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> Timings:
    """Return the seconds of each call, `rounds` times in turn, after one call of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = clock(device)
            call()
            if number:
                seconds[name].append(clock(device) - begin)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Return median, least and greatest of the paired ratios."""
    paired = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return statistics.median(paired), paired[0], paired[-1]


def shown(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


class Case:
    """A network with a clip and two texts. sigma: one level; rows: frame 0 is clean."""

    def __init__(self, name: str, network: VectorWanTransformer3DModel, text: Text, shape: tuple[int, ...]) -> None:
        self.name, self.network, self.text = name, network, text
        device = network.device
        self.latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, network.dtype)
        self.sigma = torch.full((1, shape[2]), 0.7, device=device)
        self.rows = self.sigma.clone()
        self.rows[:, 0] = 0
        _, p_h, p_w = network.config.patch_size
        self.per_frame = shape[3] // p_h * (shape[4] // p_w)
        self.prompt = text[:1]

    @property
    def tokens(self) -> int:
        return self.latents.shape[2] * self.per_frame

    def ours(self, sigma: Tensor, network: Any = None) -> Tensor:
        return WanBackbone.velocity(network or self.network, self.latents, sigma, self.prompt)

    def stock(self, network: Any, timestep: Tensor) -> Tensor:
        return network(self.latents, 1000 * timestep, self.prompt.tokens, return_dict=False)[0]


def embedded_case(device: torch.device) -> Case:
    pipe = pusa.load("tiny-base", device=device, dtype=torch.float32)
    geometry, own = pipe.backbone.geometry, pipe.defaults
    shape = geometry.latent_shape(pipe.backbone.channels, own.frames, own.size)
    return Case("embedded model", pipe.transformer, pipe.encode_text([PROMPT, ""]), shape)


def random_case(args: argparse.Namespace, device: torch.device) -> Case:
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=args.width // 128,
        attention_head_dim=128,
        ffn_dim=args.ffn,
        num_layers=args.blocks,
        in_channels=16,
        out_channels=16,
    )
    network = VectorWanTransformer3DModel.upgrade(network.eval().to(device, getattr(torch, args.dtype)))
    text = torch.randn(2, 512, 4096).to(device, network.dtype)
    text[0, WORDS:] = 0
    text[1, 1:] = 0
    width, height = args.size
    return Case(
        f"width {args.width}, {args.blocks} blocks", network, Text(text), (1, 16, args.frames, height // 8, width // 8)
    )


def step(case: Case, rounds: int) -> dict[str, Any]:
    """Measure a call beside stock diffusers; return seconds, ratios and the greatest difference."""
    twin = stock_of(case.network)
    scalar, tokens = case.sigma[:, 0], case.rows.repeat_interleave(case.per_frame, dim=1)
    calls = {
        "stock, one timestep": lambda: case.stock(twin, scalar),
        "stock, one per token": lambda: case.stock(twin, tokens),
        "pusa, one timestep": lambda: case.ours(case.sigma),
        "pusa, one per frame": lambda: case.ours(case.rows),
    }
    with per_clip.walk(case.network):
        one, many = calls["stock, one timestep"](), calls["stock, one per token"]()
        difference = max(
            float((calls["pusa, one timestep"]() - one).abs().max() / one.abs().max()),
            float((calls["pusa, one per frame"]() - many).abs().max() / many.abs().max()),
        )
        seconds = in_turn(calls, rounds, case.latents.device)
    return {
        "case": case.name,
        "tokens": case.tokens,
        "difference": difference,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "one timestep": ratios(seconds["stock, one timestep"], seconds["pusa, one timestep"]),
        "one per frame": ratios(seconds["stock, one per token"], seconds["pusa, one per frame"]),
        "peak": peaks(case),
    }


def peaks(case: Case) -> dict[str, int]:
    """Return the peaks of activations in bytes: one timestep in the stock network, one per token, one per frame."""
    network = copy.deepcopy(case.network).to("meta")
    twin = stock_of(network)
    latents, text, sigma, rows = (x.to("meta") for x in (case.latents, case.prompt.tokens, case.sigma, case.rows))
    tokens = rows.repeat_interleave(case.per_frame, dim=1)
    return {
        "stock, one timestep": rehearse(lambda: twin(latents, sigma[:, 0], text)).peak,
        "stock, one per token": rehearse(lambda: twin(latents, tokens, text)).peak,
        "pusa, one per frame": rehearse(
            lambda: network._forward_per_frame(latents, rows, text, None, return_dict=False, attention_kwargs=None)
        ).peak,
    }


def alone(case: Case, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return the time without each optimisation, relative to the time with all of them."""
    without = {part: stock_of(case.network, part) for part in ("gelu", "rotation")}
    whole = Text(case.prompt.tokens.clone())
    whole.tokens[:, -1] = 1e-6  # a text that ends with no zeros

    def unkept() -> Tensor:
        case.network.text_memory.forget()
        return case.ours(case.rows)

    calls = {
        "all": lambda: case.ours(case.rows),
        "keys and values of the text kept": unkept,
        "zeros of the text as one position": lambda: WanBackbone.velocity(case.network, case.latents, case.rows, whole),
        "GELU in place": lambda: case.ours(case.rows, without["gelu"]),
        "rotation in place": lambda: case.ours(case.rows, without["rotation"]),
    }
    with ExitStack() as walks:
        for network in (case.network, *without.values()):
            walks.enter_context(per_clip.walk(network))
        seconds = in_turn(calls, rounds, case.latents.device)
    return {name: ratios(values, seconds["all"]) for name, values in seconds.items() if name != "all"}


def branches(case: Case, frames: tuple[int, ...], rounds: int) -> dict[int, tuple[float, float, float]]:
    """Return {tokens: time of two calls relative to one call of both branches} for clips of these latent frames."""
    found = {}
    branch = [case.text[:1], case.text[1:]]
    for count in frames:
        latents, rows = case.latents[:, :, :count], case.rows[:, :count]
        twice, both = latents.repeat(2, 1, 1, 1, 1), rows.repeat(2, 1)

        def two(latents: Tensor = latents, rows: Tensor = rows) -> None:
            for text in branch:
                WanBackbone.velocity(case.network, latents, rows, text)

        def one(latents: Tensor = twice, rows: Tensor = both) -> None:
            WanBackbone.velocity(case.network, latents, rows, case.text)

        with per_clip.walk(case.network):
            seconds = in_turn({"two": two, "one": one}, rounds, case.latents.device)
        found[count * case.per_frame] = ratios(seconds["two"], seconds["one"])
    return found


def clip(rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure the denoising of a clip of the embedded model, with its adapter and guidance, beside a stock loop."""
    pipe = pusa.load("tiny", device=device, dtype=torch.float32)
    twin = stock_of(pipe.transformer)
    text = pipe.encode_text([PROMPT, ""])
    settings = {
        batch: pipe.limits.settings(steps=STEPS, guidance_batch=batch)  # type: ignore[arg-type]
        for batch in ("off", "auto")
    }
    matrix = pipe.matrix(settings["off"], {})
    levels = sigmas.grid(STEPS, settings["off"].shift).float().to(device)
    scale = settings["off"].guidance

    def stock() -> Tensor:
        x = pipe.noise(0, settings["off"]).to(device)
        for now, after in pairwise(levels):
            v, u = (twin(x, 1000 * now[None], text.tokens[i : i + 1], return_dict=False)[0] for i in (0, 1))
            x = x + (after - now) * (u + scale * (v - u))
        return x.cpu()

    def ours(batch: str) -> Tensor:
        return pipe.sample(matrix, (text[:1], text[1:]), settings[batch], known={})

    calls = {
        "stock diffusers": stock,
        "pusa, two calls per step": lambda: ours("off"),
        "pusa": lambda: ours("auto"),
    }
    reference = stock()
    seconds = in_turn(calls, rounds, device)
    return {
        "difference": float((ours("auto") - reference).abs().max() / reference.abs().max()),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": {name: ratios(seconds["stock diffusers"], seconds[name]) for name in list(calls)[1:]},
    }


def section_of(result: dict[str, Any], about: dict[str, Any]) -> Section:
    """Return the tables and what they say."""
    calls, memory = [], []
    for row in result["steps"]:
        stock = [f"{1000 * row['seconds'][f'stock, one {kind}']:.0f} ms" for kind in ("timestep", "per token")]
        speed = [shown(row[kind]) for kind in ("one timestep", "one per frame")]
        calls.append([f"{row['case']}, {row['tokens']:,} tokens", *stock, *speed, f"{row['difference']:.0e}"])
        memory.append([row["case"], *(f"{value / 1e6:.0f} MB" for value in row["peak"].values())])
    names = list(result["alone"])
    parts = [
        [name, *(shown(result["alone"][case][name]) for case in names)] for name in next(iter(result["alone"].values()))
    ]
    both = [
        [case, f"{tokens:,}", shown(ratio)]
        for case, found in result["branches"].items()
        for tokens, ratio in found.items()
    ]
    clips = [
        [name, f"{seconds:.2f} s", shown(result["clip"]["ratios"][name]) if name in result["clip"]["ratios"] else ""]
        for name, seconds in result["clip"]["seconds"].items()
    ]
    head = [
        "network",
        "stock, one timestep",
        "stock, per token",
        "gain, one timestep",
        "gain, one per frame",
        "apart by",
    ]
    return Section(
        "The exact step",
        "python benchmarks/exact_step.py --json docs/results/performance/exact_step.json",
        about,
        [
            "A denoising step beside stock diffusers, with the same result up to rounding. Ratios are the time of "
            "stock diffusers relative to that of pusa: medians of neighbouring pairs, with their range.",
            "What was tried and did not help: norms of queries and keys in place (0.3 %), a feed-forward layer in "
            "parts, a linear layer with GELU inside (slower than two operations), larger pages, and other settings of "
            "the allocator (within the noise). At 1,560 tokens of the width of 1.3B, matrix products and attention "
            "take 84 % of a block, so that no change of the other operations can give more than 1.19 there.",
        ],
        [
            Table(head, calls, "A call of the network"),
            Table(["network", *result["steps"][0]["peak"]], memory, "Peak of activations"),
            Table(["left out", *names], parts, "Time without one optimisation, relative to all"),
            Table(["network", "tokens", "two calls / one call"], both, "Both branches of guidance in one call"),
            Table(["", "time", "stock / pusa"], clips, f"A clip of the embedded model, {STEPS} steps with guidance"),
        ],
        numbers=result,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the random network")
    parser.add_argument("--width", type=int, default=1536, help="of the random network, a multiple of 128")
    parser.add_argument("--ffn", type=int, default=8960)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(320, 208), metavar="WxH")
    parser.add_argument("--frames", type=int, default=6, help="latent frames")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a small network and two rounds, to test this program")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.smoke:
        args.width, args.ffn, args.size, args.rounds = 256, 512, (64, 64), 2
    torch.set_num_threads(1)
    about = facts(args.device)
    quick = args.rounds if args.smoke else 4 * args.rounds
    with torch.no_grad():
        small, large = embedded_case(args.device), random_case(args, args.device)
        result = {
            "steps": [step(small, quick), step(large, args.rounds)],
            "alone": {small.name: alone(small, quick), large.name: alone(large, args.rounds)},
            "branches": {
                small.name: branches(small, (1, 3, 5), quick),
                large.name: branches(large, (1, 3), args.rounds),
            },
            "clip": clip(args.rounds, args.device),
            "rotation is exact": {str(width): inference.complex_is_exact(width) for width in (32, 128)},
        }
    section_of(result, about).write(args.json)


if __name__ == "__main__":
    main()
