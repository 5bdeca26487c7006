"""Reduction of a video encoder by what a clip shows (VA-RED²), and the same idea in a video diffusion transformer.

    python benchmarks/reduction.py --json docs/results/performance/reduction.json

An encoder with three convolutions tells the motion of shape clips of the synthetic world: static ones, slow ones and
fast ones. It is trained plainly, and then tuned in four ways for the same number of epochs: plainly; with gates; with
the fixed strides that need as many operations; and with gates that do not see the clip. Accuracies are of held-out
clips, with 95 % bootstrap intervals over trainings and clips.

The second part, `feed_forward.py`, merges frames of equal noise level in the feed-forward layers of the embedded model.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import feed_forward
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pusa.acceleration.reduction import SHARES, STRIDES, ReducedConv3d, computed_share, mean_stride, reduced_layers
from pusa.embedded import world
from pusa.evaluation.intervals import bootstrap_crossed
from pusa.files import write_json
from pusa.training.costs import device_name

FRAMES = 8
SPEEDS = {"static": 0.0, "slow": 1.0, "fast": 7.0}
"""times the speed of the world; a third of the clips each"""
LABELS = [motion for motion in world.MOTIONS if motion != "spin"]
"""A spinning shape hardly differs from a still one at this size."""
NOISE = 0.04
"""standard deviation of the noise in each value of a clip, whose values are in [0, 1]"""
WIDTHS = (1, 12, 16, 24)
KERNELS = (1, 1, 3)
"""frames that each convolution sees: the last one alone compares frames"""
BATCH = 32
RATES = (1.2e-2, 6e-3)
"""of the plain training, and of the tuning"""
GATE_RATE = 2e-2
Json = dict[str, Any]
ARMS = ("plain", "gated", "fixed strides", "gate without input")


@dataclass(frozen=True)
class Clips:
    """values: float32 [n, 1, FRAMES, 32, 32], without noise. labels: int64 [n]. The speeds follow each other."""

    values: Tensor
    labels: Tensor

    @classmethod
    def drawn(cls, count: int, split: world.Split) -> Clips:
        """The colours are taken away: a value is the saturation, in which the grey backgrounds are 0."""
        kinds = itertools.islice(itertools.cycle(SPEEDS), count)
        made = [_clip(1000 * i, split, kind) for i, kind in enumerate(kinds)]
        pixels = np.stack([frames for frames, _ in made]).astype(np.float32) / 255
        values = (pixels.max(-1) - pixels.min(-1)).reshape(count, FRAMES, 32, 2, 32, 2).mean((3, 5))
        return cls(torch.from_numpy(values)[:, None], torch.tensor([LABELS.index(label) for _, label in made]))

    def noisy(self, rng: torch.Generator, rows: Tensor | slice = slice(None)) -> Tensor:
        values = self.values[rows]
        return values + NOISE * torch.randn(values.shape, generator=rng)


def _clip(seed: int, split: world.Split, kind: str) -> tuple[np.ndarray, str]:
    """Frames [FRAMES, 64, 64, 3] in [0, 255] and the motion of the first scene from a seed on that fits its kind."""
    scenes = (world.sample(each, split, "shape") for each in itertools.count(seed))
    scene = next(each for each in scenes if kind == "static" or each.motion not in ("still", "spin"))
    times = [SPEEDS[kind] * t for t in range(1 if kind == "static" else FRAMES)]
    drawn = np.stack([_drawn(scene, t) for t in times])
    return np.repeat(drawn, FRAMES // len(drawn), 0), "still" if kind == "static" else scene.motion


def _drawn(scene: world.ShapeScene, t: float) -> np.ndarray:
    """The picture at a time. A shape that leaves it on one side comes back on the other, so no border turns it."""
    dx, dy = (world.SPEED * t * step for step in world.DIRECTIONS.get(scene.motion, (0, 0)))
    x, y = (scene.x + dx) % world.SIZE, (scene.y + dy) % world.SIZE
    _, _, radius, angle = world.pose(scene, t)
    sides = [(x + world.SIZE * i, y + world.SIZE * j) for i, j in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))]
    near = [(u, v) for u, v in sides if -radius < u < world.SIZE + radius and -radius < v < world.SIZE + radius]
    alpha = np.max([world.coverage(scene.shape, u, v, radius, angle) for u, v in near], axis=0)[..., None]
    return (1 - alpha) * world.background(scene.background) + alpha * np.array(world.COLOURS[scene.colour])


class Encoder(nn.Module):
    """From clips [B, 1, T, 32, 32] to logits of the motions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv3d(i, o, (t, 3, 3), stride=(1, 2, 2), padding=(t // 2, 1, 1))
                for (i, o), t in zip(itertools.pairwise(WIDTHS), KERNELS, strict=True)
            ]
        )
        self.norms = nn.ModuleList([nn.GroupNorm(4, width) for width in WIDTHS[1:]])
        self.logits = nn.Linear(WIDTHS[-1], len(LABELS))
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
        logits: Tensor = self.logits(x.mean((2, 3, 4)))
        return logits

    def reduced(self, gate: Callable[[int], nn.Module | None] = lambda layer: None) -> Encoder:
        """A copy whose convolutions are reduced. gate: of each layer, by its number."""
        copy = deepcopy(self)
        for i, convolution in enumerate(copy.convolutions):
            copy.convolutions[i] = ReducedConv3d(convolution, gate(i))
        return copy


class Constant(nn.Module):
    """A gate that does not see its input. logits: where it starts; learned if `learns`."""

    def __init__(self, logits: Tensor, learns: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)

    def operations(self, frames: int, height: int, width: int) -> int:
        return 0


def constant(layer: int) -> nn.Module:
    return Constant(torch.zeros(len(STRIDES) + len(SHARES)), learns=True)


def fixed(strides: Sequence[int]) -> Callable[[int], nn.Module]:
    """Gates that always choose these strides, and all channels."""

    def gate(layer: int) -> nn.Module:
        logits = torch.full((len(STRIDES) + len(SHARES),), -1e4)
        logits[[STRIDES.index(strides[layer]), len(STRIDES)]] = 1e4
        return Constant(logits, learns=False)

    return gate


def train(model: Encoder, clips: Clips, epochs: int, rate: float, price: float, seed: int) -> None:
    """Train a model. price: of all operations of its reduced layers, on the clips whose motion it tells."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    layers, model = reduced_layers(model), model.train()
    of_gates = {p for layer in layers for p in layer.gate.parameters() if p.requires_grad}
    others = [p for p in model.parameters() if p.requires_grad and p not in of_gates]
    optimiser = torch.optim.AdamW([{"params": others}, {"params": list(of_gates)}], weight_decay=0.01)
    steps = epochs * (len(clips.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [rate, GATE_RATE], total_steps=steps)
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(clips.labels), generator=rng)
        rows = order[:BATCH]
        order = order[BATCH:]
        for layer in layers:
            layer.temperature = 1.0 - 0.9 * step / steps
        x, labels = _flipped(clips.noisy(rng, rows), clips.labels[rows], rng)
        logits = model(x)
        loss = functional.cross_entropy(logits, labels)
        if price:
            right = (logits.argmax(1) == labels).float()
            loss = loss + price * (right * computed_share(layers)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _flipped(x: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips mirrored by chance, with the motions that they then show."""
    for axis, pair in ((4, ("left", "right")), (3, ("up", "down"))):
        if torch.rand((), generator=rng) < 0.5:
            a, b = (LABELS.index(name) for name in pair)
            x, labels = x.flip(axis), torch.where(labels == a, b, torch.where(labels == b, a, labels))
    return x, labels


@torch.no_grad()
def tested(model: Encoder, clips: Clips) -> dict[str, np.ndarray]:
    """For each clip: whether its motion is told, the share of the operations, and the mean stride of the layers."""
    model.eval()
    right = model(clips.noisy(torch.Generator().manual_seed(0))).argmax(1) == clips.labels
    layers = reduced_layers(model)
    ones = torch.ones(len(right))
    share, stride = (computed_share(layers), mean_stride(layers)) if layers else (ones, ones)
    found = {"right": right, "share": share, "stride": stride}
    return {name: each.double().numpy() for name, each in found.items()}


def nearest_strides(model: Encoder, share: float) -> tuple[int, ...]:
    """The strides of the layers that need a share of the operations, as nearly as possible."""
    sizes = [(FRAMES, side, side) for side in (32, 16, 8)]
    layers = reduced_layers(model)
    whole = sum(layer.operations(size, 0, 0) for layer, size in zip(layers, sizes, strict=True))

    def distance(chosen: tuple[int, ...]) -> float:
        rows = zip(layers, sizes, chosen, strict=True)
        return abs(sum(layer.operations(size, STRIDES.index(n), 0) for layer, size, n in rows) / whole - share)

    return min(itertools.product(STRIDES, repeat=len(layers)), key=distance)


def times(turns: int) -> list[list[str]]:
    """Rows of a table: what is timed, the share of its operations, and its time relative to the plain one.

    Each ratio is that of two neighbouring runs, reduced to plain, with the gate and the restoring.
    """
    found = []
    for channels in (16, 32, 64, 128):
        plain = nn.Conv3d(channels, channels, 3, padding=1)
        reduced = _choosing(ReducedConv3d(deepcopy(plain)), (1, 1))
        found.append((f"{channels} channels, 16 x 16", plain, reduced, torch.rand(2, channels, FRAMES, 16, 16)))
    encoder = Encoder()
    reduced = _choosing(encoder.reduced(), (1, 1), (1, 1), (2, 0))
    found.append(("the encoder, with the choices of most clips", encoder, reduced, torch.rand(64, 1, FRAMES, 32, 32)))
    rows = []
    for name, plain, reduced, x in found:
        with torch.inference_mode():
            reduced.eval()(x), plain.eval()(x)
            ratios = [_seconds(reduced, x) / _seconds(plain, x) for _ in range(turns)]
        share = float(computed_share(reduced_layers(reduced))[0])
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([name, f"{100 * share:.0f}", spread])
    return rows


def _choosing(model: nn.Module, *choices: tuple[int, int]) -> nn.Module:
    """The model, whose gates run and always make these choices."""
    for layer, choice in zip(reduced_layers(model), choices, strict=True):
        logits = layer.gate.logits
        nn.init.zeros_(logits.weight)
        wanted = {choice[0], len(STRIDES) + choice[1]}
        logits.bias.data = torch.tensor([float(i in wanted) for i in range(len(logits.bias))])
    return model


def _seconds(layer: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    layer(x)
    return time.perf_counter() - started


Results = dict[str, list[dict[str, np.ndarray]]]
"""{arm: what `tested` returned, for each training}"""


def trained(seeds: int, epochs: tuple[int, int], clips: tuple[int, int], price: float) -> Results:
    training, heldout = (Clips.drawn(n, split) for n, split in zip(clips, ("train", "heldout"), strict=True))
    found: Results = {arm: [] for arm in ARMS}
    for seed in range(seeds):
        torch.manual_seed(seed)
        base = Encoder()
        train(base, training, epochs[0], RATES[0], 0.0, seed)
        for arm in ARMS:
            if arm == "plain":
                model = deepcopy(base)
            elif arm == "gated":
                model = base.reduced()
            elif arm == "fixed strides":
                strides = nearest_strides(base.reduced(), float(found["gated"][seed]["share"].mean()))
                model = base.reduced(fixed(strides))
            else:
                model = base.reduced(constant)
            learns = arm in ("gated", "gate without input")
            train(model, training, epochs[1], RATES[1], price if learns else 0.0, seed)
            result = tested(model, heldout)
            found[arm].append(result)
            by_speed = {name: [round(float(each[i::3].mean()), 3) for i in range(3)] for name, each in result.items()}
            print(seed, arm, by_speed, flush=True)
    return found


def report(found: Results, merged: dict[str, Any], args: argparse.Namespace) -> Json:
    """A section of docs/performance.md."""
    rows = {arm: {key: np.stack([one[key] for one in each]) for key in each[0]} for arm, each in found.items()}
    intervals = {
        arm: {
            "accuracy": bootstrap_crossed(100 * each["right"]),
            "loss": bootstrap_crossed(100 * (rows["plain"]["right"] - each["right"])),
            "operations": bootstrap_crossed(100 * each["share"]),
            **{f"{key} {kind}": bootstrap_crossed(scale * each[key][:, i::3]) for key, scale in (("right", 100),
               ("share", 100), ("stride", 1)) for i, kind in enumerate(SPEEDS)},
        }
        for arm, each in rows.items()
    }  # fmt: skip
    gated = rows["gated"]
    more = {arm: bootstrap_crossed(100 * (gated["right"] - each["right"])) for arm, each in rows.items()}
    extra = bootstrap_crossed(100 * (gated["share"] - rows["gate without input"]["share"]))
    longer = bootstrap_crossed(gated["stride"][:, 0::3].mean(1, keepdims=True) - gated["stride"][:, 2::3])
    of = intervals["gated"]
    text = [
        "VA-RED² (arXiv 2102.07887): a gate at each convolution of a small video encoder chooses, for each clip, which "
        "frames and channels are computed. The encoder tells the motion of shape clips of the synthetic world: static "
        f"ones, slow ones at its own speed, and fast ones at {SPEEDS['fast']:g} times this speed. "
        f"It is trained plainly for {args.epochs[0]} epochs. Then each row of the table tunes it for {args.epochs[1]} "
        f"more, {args.seeds} times with other random numbers. The fixed strides are those, one for each layer, whose "
        "operations are nearest to those of the gates. A gate without input learns one choice for all clips. "
        "Operations are those of the convolutions, of the restoring, and of the gates.",
        "The speeds and the price of an operation were chosen on the held-out clips of the first training.",
        f"Goal 1, at least 20 % fewer operations at a loss of at most 1 point: the gates compute "
        f"{of['operations'].text(1)} % of them, and tell {more['plain'].text(1)} points more than the plain encoder: "
        f"{said(of['operations'].value <= 80 and of['loss'].value <= 1)}.",
        f"Goal 2, static clips take larger strides than fast ones: the difference of the mean strides is "
        f"{longer.text(2)}: {said(longer.value > 0)}.",
        f"Goal 3, fixed strides are worse at equal operations: the gates tell {more['fixed strides'].text(1)} points "
        f"more: {said(more['fixed strides'].value > 0)}.",
        "Fixed strides keep all channels, and gates need not. So the gate without input, which has the same choices, "
        "tells what looking at the clip is worth: the gates that look tell "
        f"{more['gate without input'].text(1)} points more, and compute {extra.text(1)} points more of the operations.",
    ]
    head = ["tuned with", "right (%)", "lost (points)", "operations (%)"]
    first = [[arm, *(each[key].text(1) for key in ("accuracy", "loss", "operations"))]
             for arm, each in intervals.items()]  # fmt: skip
    second = [
        [arm, *(each[f"{key} {kind}"].text(digits) for key, digits in (("stride", 2), ("right", 1)) for kind in SPEEDS)]
        for arm, each in intervals.items()
    ]
    tables = [
        {"title": "A video encoder that computes what a clip needs", "head": head, "rows": first,
         "text": ["In brackets: 95 % bootstrap intervals over trainings and held-out clips."]},
        {"title": "By the speed of the clips", "rows": second, "text": [],
         "head": ["", *(f"stride, {kind}" for kind in SPEEDS), *(f"right, {kind} (%)" for kind in SPEEDS)]},
    ]  # fmt: skip
    tables.append(
        {"title": "The time of a reduced layer", "rows": times(turns=3 if args.smoke else 25),
         "head": ["", "operations (%)", "time, reduced to plain"],
         "text": ["Convolutions of 3 x 3 x 3, of which every second frame and half of the channels are computed. Gate "
                  "and restoring read and write as many numbers as the plain layer, so fewer operations save time only "
                  "in wide layers. The encoder above is too narrow: its operations fall, and its time does not. Median "
                  "and range of pairs of runs."]}
    )  # fmt: skip
    text += [feed_forward.verdict(case, methods) for case, (methods, _) in merged.items()]
    for case, (methods, errors) in merged.items():
        tables.append(feed_forward.table(case, methods, errors))
    numbers = {arm: {key: each.record() for key, each in of.items()} for arm, of in intervals.items()}
    numbers |= {"merged frames": {case: methods for case, (methods, _) in merged.items()}}
    return {
        "title": "Computing what the clip needs",
        "command": "python benchmarks/reduction.py --json docs/results/performance/reduction.json",
        "machine": {
            "device": device_name("cpu"),
            "torch": torch.__version__,
            "threads": args.threads,
            "busy": os.getloadavg()[1] > args.threads + 0.5,
        },
        "text": text,
        "tables": tables,
        "plots": [],
        "numbers": numbers,
    }


def said(reached: bool) -> str:
    return "reached" if reached else "not reached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=(12, 8), help="of the plain training, and of the tuning")
    parser.add_argument("--clips", type=int, nargs=2, default=(1536, 768), help="for training, and held out")
    parser.add_argument("--made", type=int, default=8, help="clips of the embedded model")
    parser.add_argument("--steps", type=int, default=10, help="of the embedded model")
    parser.add_argument("--cases", nargs="*", default=["text to video"], help="also: image to video")
    parser.add_argument("--price", type=float, default=2.0, help="of all operations, in units of the loss")
    parser.add_argument("--smoke", action="store_true", help="run everything in seconds; the numbers mean nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.smoke:
        args.seeds, args.epochs, args.clips, args.made, args.steps = 1, (1, 1), (64, 24), 1, 2
    encoders = trained(args.seeds, args.epochs, args.clips, args.price)
    merged = {case: feed_forward.measured(args.made, args.steps, case) for case in args.cases}
    section = report(encoders, merged, args)
    for table in section["tables"]:
        print(table["title"], table["head"], *table["rows"], sep="\n")
    print(*section["text"], sep="\n")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, section)


if __name__ == "__main__":
    main()
