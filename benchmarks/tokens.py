"""Token-wise reuse: what its score, its keys and its budget are worth, each against a control.

    python benchmarks/tokens.py --json docs/results/performance/tokens.json

The embedded model samples held-out clips plainly, and then with a share of the tokens. Nothing is decoded: the
distance is that of the latents, over the frames that the sampler changes, in dB below their variance. Differences are
paired, and their intervals are bootstrapped over the clips.

The searches for a budget see clips of the training split. Their budgets are compared on the held-out clips.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workloads
from machine import facts, in_turns, ratio
from section import Section, Table
from torch import Tensor

from pusa import Clip, load
from pusa.acceleration import running
from pusa.acceleration.executor import Executor
from pusa.acceleration.policy import Place, Tokens
from pusa.acceleration.search import Found, evolve, greedy
from pusa.acceleration.tokens import TokenReuse, astraea
from pusa.embedded import world
from pusa.evaluation.acceleration.budgets import named, searched
from pusa.evaluation.acceleration.repeated import Repeated
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.files import write_json
from pusa.generation.pipeline import Pipeline
from pusa.models.backbone import BlockCall

TEXT, EXTENSION = "text to video", "extension"
TASKS = (TEXT, EXTENSION)
KNOWN = 9
"""pixel frames of an extension that are given: 3 of 5 latent frames"""
SHARES = (0.4, 0.5)
GUIDANCE = 3.0
TRAINING_SEED = 1000
ONE_BLOCK = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 1}
"""of Wan2.1 1.3B, which has 30 of them"""
Point = tuple[float, float]
"""the share of the operations of the blocks, and the closeness in dB"""
Points = dict[str, dict[str, Point]]
"""by task, and by arm and setting"""


def by_change(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    return astraea(change, torch.ones_like(attention), waited)


def by_chance(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    seed = int(waited.sum()) + 1000 * int((waited * torch.arange(len(waited))).sum())
    return torch.rand(len(change), generator=torch.Generator().manual_seed(seed))


def always_the_same(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    """The same tokens in every step, spread over the clip by a fixed permutation."""
    return torch.randperm(len(change), generator=torch.Generator().manual_seed(0)).float()


class OwnKeys:
    """A call of a block of Wan whose chosen tokens see each other only, and not the tokens that are left out."""

    def __init__(self, block: Any) -> None:
        self.index, self.count, self.hidden, self._block = block.index, block.count, block.hidden, block

    def whole(self) -> Tensor:
        return self._block.whole()

    def some(self, tokens: Tensor) -> Tensor:
        text, temb, (cos, sin), *_ = self._block._arguments
        rows = temb.repeat_interleave(self.hidden.shape[1] // temb.shape[1], 1)[:, tokens] if temb.ndim == 4 else temb
        arguments = text, rows, (cos[:, tokens], sin[:, tokens])
        return replace(self._block, hidden=self.hidden[:, tokens], _arguments=arguments).whole()

    def some_with_attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.some(tokens), self._block.some_with_attention(tokens)[1]


class OwnKeysExecutor(Executor):
    """Selects keys and values too. It counts the operations as if all keys were computed."""

    def _run(self, network: Any, block: BlockCall) -> Tensor:
        return super()._run(network, OwnKeys(block))


ASTRAEA = "Astraea"
RANKINGS = {
    ASTRAEA: astraea,
    "change alone": by_change,
    "at random": by_chance,
    "always the same": always_the_same,
}
OWN_KEYS = "keys of chosen tokens only"
STEPS_ARM = [f"steps,threshold={threshold:g}" for threshold in (0.02, 0.05, 0.1, 0.2, 0.3)]
UNIFORM_ARM = [f"uniform,every={every}" for every in (2, 3, 4)]
BY_FRAME = {"10 % of given frames": "tokens,share=0.1:0.1:0.1:0.85:0.85", "no given frames": "tokens,share=0:0:0:1:1"}
"""a mean share of 40 %, for an extension"""
COMPARED = (
    (ASTRAEA, "at random"),
    ("at random", "always the same"),
    (ASTRAEA, "always the same"),
    (ASTRAEA, "change alone"),
    (ASTRAEA, OWN_KEYS),
)


@contextmanager
def ranked_by(name: str) -> Iterator[None]:
    """Inside the context, token reuse has the ranking of a name, or selects keys too."""
    policy, executor = running.policy_of, running.Executor
    ranking = RANKINGS.get(name, astraea)
    running.policy_of = lambda acceleration, matrix: TokenReuse(acceleration.parts[0][1]["share"], ranking)
    running.Executor = OwnKeysExecutor if name == OWN_KEYS else executor
    try:
        yield
    finally:
        running.policy_of, running.Executor = policy, executor


@lru_cache
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    return load("tiny", device="cpu")


def repeated(task: str, seed: int, steps: int, split: world.Split = "heldout") -> Repeated:
    """A clip of a task, ready to be sampled."""
    scene = world.sample(seed, split, "shape" if seed % 2 == 0 else "camera")
    given = [Clip(world.render(scene)[:KNOWN])] if task == EXTENSION else []
    return Repeated(pipeline(), scene.caption, given, steps=steps, guidance=GUIDANCE, seed=seed)


def point(clip: Repeated, accelerate: str) -> Point:
    latents, accounting = clip.sample(accelerate)
    return accounting.operations_fraction, -10 * float(np.log10(clip.error(latents)))


def stored(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds; it is made first if the file is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
        print(path.stem, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def measured(seed: int, folder: Path, steps: int) -> Points:
    """The points of a clip, from its file if it is there."""

    def make() -> Points:
        found: Points = {}
        for task in TASKS:
            clip, row = repeated(task, seed, steps), found.setdefault(task, {})
            for name in (*RANKINGS, OWN_KEYS):
                with ranked_by(name):
                    for share in SHARES:
                        row[f"{name} {share:g}"] = point(clip, f"tokens,share={share:g}")
            for text in (*STEPS_ARM, *UNIFORM_ARM, *(BY_FRAME.values() if task == EXTENSION else ())):
                row[text] = point(clip, text)
        return found

    return stored(folder / f"clip_{seed:03d}.json", make)


FIRST_FIFTH = "first fifth complete"
SEARCHES: dict[str, Callable[..., Found]] = {
    "evolutionary": partial(evolve, population=8, born=4, generations=4),
    "greedy": partial(greedy, changes=(0.3,)),
}


def budget(name: str, folder: Path, steps: int, clips: int, short: bool) -> dict[str, Any]:
    """The budget that a search finds on clips of the training split, and its cost, from its file if it is there."""

    def make() -> dict[str, Any]:
        search = SEARCHES[name]
        if short:
            search = (
                partial(greedy, changes=(0.4,)) if name == "greedy" else partial(evolve, population=3, generations=0)
            )
        own = [repeated(task, TRAINING_SEED + i, steps, "train") for task in TASKS for i in range(clips)]
        started = time.perf_counter()
        found = searched(own, SHARES[0], search=search)
        return {
            "accelerate": named(found.budget),
            "gain": 10 * float(np.log10(found.uniform / found.error)),
            "tried": found.tried,
            "seconds": round(time.perf_counter() - started),
        }

    return stored(folder / f"search_{name}.json", make)


def first_fifth(steps: int) -> dict[str, Any]:
    """A budget by hand: the first fifth of the steps is complete, as in reuse of steps; the others share the rest."""
    complete = math.ceil(0.2 * steps)
    share = (SHARES[0] * (steps - 1) - (complete - 1)) / (steps - complete)
    shares = np.array([1.0] * complete + [share] * (steps - complete))
    return {"accelerate": named(shares[:, None]), "gain": None, "tried": 0}


def with_budgets(seed: int, folder: Path, steps: int, budgets: dict[str, dict[str, Any]]) -> Points:
    """The points of a held-out clip with budgets that were searched on others."""

    def make() -> Points:
        found: Points = {}
        for task in TASKS:
            clip = repeated(task, seed, steps)
            found[task] = {name: point(clip, one["accelerate"]) for name, one in budgets.items()}
        return found

    return stored(folder / f"budgets_{seed:03d}.json", make)


def at(points: Sequence[Point], share: float) -> float:
    """The closeness at a share of the operations, interpolated along a clip's curve; its end outside of it."""
    x, y = zip(*sorted(map(tuple, points)), strict=True)
    return float(np.interp(share, x, y))


def decibels(values: Sequence[float]) -> str:
    return bootstrap(values).text(1)


def gain(values: Sequence[float]) -> str:
    """A paired difference, and whether its interval is on one side of 0."""
    found: Interval = bootstrap(values)
    certain = found.low > 0 or found.high < 0
    return f"{found.text(1)} dB{'' if certain else ', not certain'}"


def tables(clips: Sequence[Points]) -> list[Table]:
    head = ["", *(f"{task}, {100 * share:g} %" for task in TASKS for share in SHARES)]
    rows = [
        [
            name,
            *(decibels([clip[task][f"{name} {share:g}"][1] for clip in clips]) for task in TASKS for share in SHARES),
        ]
        for name in (*RANKINGS, OWN_KEYS)
    ]
    differences = [
        [
            f"{ours} − {control}",
            *(
                gain([clip[task][f"{ours} {share:g}"][1] - clip[task][f"{control} {share:g}"][1] for clip in clips])
                for task in TASKS
                for share in SHARES
            ),
        ]
        for ours, control in COMPARED
    ]
    for label, arm in (("steps", STEPS_ARM), ("uniform", UNIFORM_ARM)):
        row = [f"{ASTRAEA} − {label}, equal operations"]
        for task in TASKS:
            for share in SHARES:
                pairs = [(clip[task][f"{ASTRAEA} {share:g}"], [clip[task][text] for text in arm]) for clip in clips]
                row.append(gain([ours[1] - at(curve, ours[0]) for ours, curve in pairs]))
        differences.append(row)
    operations = {share: np.mean([clip[TEXT][f"{ASTRAEA} {share:g}"][0] for clip in clips]) for share in SHARES}
    costs = " and ".join(f"{100 * share:g} % of the tokens are {100 * operations[share]:.0f} %" for share in SHARES)
    by_frame = [
        [name, gain([clip[EXTENSION][text][1] - clip[EXTENSION][f"{ASTRAEA} 0.4"][1] for clip in clips])]
        for name, text in BY_FRAME.items()
    ]
    return [
        Table(head, differences, "Differences in dB at the same share of the tokens", [f"Of the operations, {costs}."]),
        Table(head, rows, "Closeness to the plain latents in dB"),
        Table(["an extension", f"against {ASTRAEA}, 40 %"], by_frame, "Shares by frame at the same mean"),
    ]


def budget_tables(
    clips: Sequence[Points], found: Sequence[Points], budgets: dict[str, dict[str, Any]], training: int
) -> list[Table]:
    plain, rows, against = f"{ASTRAEA} {SHARES[0]:g}", [], []
    for name, one in budgets.items():
        gains = [
            [new[task][name][1] - old[task][plain][1] for new, old in zip(found, clips, strict=True)] for task in TASKS
        ]
        sampled = str(one["tried"] * training * len(TASKS))
        rows.append([name, sampled, f"{one['gain']:.1f} dB" if one["tried"] else "–", *map(gain, gains)])
        for label, arm in (("steps", STEPS_ARM), ("uniform", UNIFORM_ARM)):
            gains = [
                [
                    new[task][name][1] - at([old[task][text] for text in arm], new[task][name][0])
                    for new, old in zip(found, clips, strict=True)
                ]
                for task in TASKS
            ]
            against.append([f"{name} − {label}", *map(gain, gains)])
    for ours, control in (("evolutionary", "greedy"), ("greedy", FIRST_FIFTH)):
        pairs = [[clip[task][ours][1] - clip[task][control][1] for clip in found] for task in TASKS]
        rows.append([f"{ours} − {control}", "", "", *map(gain, pairs)])
    held_out = [f"{task}, held out" for task in TASKS]
    return [
        Table(
            ["budget", "clips sampled", "gain on its own clips", *held_out],
            rows,
            f"Budgets against the same share of {100 * SHARES[0]:g} % in every step",
            [
                f"The searches saw {training} clips of each task. Every budget has the same mean share of the tokens; "
                "the first step is complete in all of them."
            ],
        ),
        Table(["", *held_out], against, "Budgets against reuse of whole steps, equal operations"),
    ]


def overhead(tokens: int = 1560, turns: int = 5) -> Table:
    """The time of the selection at the size of Wan2.1 1.3B, as a share of the time of a block."""
    model = workloads.transformer(ONE_BLOCK)
    shape = (1, *_grid(tokens))
    step = workloads.denoising_step(model, shape)
    policy, one_frame = TokenReuse((0.5,)), Tokens(1, torch.zeros(tokens, dtype=torch.int64))
    hidden = [torch.randn(1, tokens, 1536, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    steps = itertools.count()

    def select() -> None:
        at_step = next(steps)
        place = Place(0, "cond", at_step, turns, (0,), torch.zeros(1, dtype=torch.bool))
        policy.choose(place, 0, hidden[at_step % 2], one_frame)

    times = in_turns({"selection": select, "one block": step}, turns)
    found = ratio(times["selection"], times["one block"])
    return Table(
        ["selection / one block", "selection / 30 blocks"],
        [[f"{found['median']:.1%} ({found['least']:.1%} to {found['most']:.1%})", f"{found['median'] / 30:.2%}"]],
        "The cost of the selection",
        [f"Dimensions of Wan2.1 1.3B, {tokens} tokens. The policy selects once in a step, for all blocks."],
    )


def _grid(tokens: int) -> tuple[int, int]:
    """A height and a width in latents that have so many tokens of two by two."""
    height = next(h for h in range(int(tokens**0.5), 0, -1) if tokens % h == 0)
    return 2 * height, 2 * tokens // height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--search-clips", type=int, default=2, help="of each task")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokens"), help="a file for each clip, to resume")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two clips with 5 steps, and short searches")
    args = parser.parse_args()
    if args.smoke:
        args.clips, args.steps, args.search_clips = 2, 5, 1
    about = facts("cpu")
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        clips = list(pool.map(partial(measured, folder=args.runs, steps=args.steps), range(args.clips)))
        search = partial(budget, folder=args.runs, steps=args.steps, clips=args.search_clips, short=args.smoke)
        budgets = {FIRST_FIFTH: first_fifth(args.steps), **dict(zip(SEARCHES, pool.map(search, SEARCHES), strict=True))}
        apply = partial(with_budgets, folder=args.runs, steps=args.steps, budgets=budgets)
        found = list(pool.map(apply, range(args.clips)))
    section = Section(
        "Token-wise reuse",
        "python benchmarks/tokens.py --json docs/results/performance/tokens.json",
        about,
        [
            f"The embedded model, {args.clips} held-out clips (shapes and photographs), {args.steps} steps, guidance "
            f"{GUIDANCE:g}. The numbers compare latents, not pixels: the squared error to the plain latents over the "
            "frames that the sampler changes, in dB below their variance, with 95 % bootstrap intervals over the "
            f"clips. An extension has {KNOWN} of 17 frames given. A difference is “not certain” if its interval has 0 "
            "in it."
        ],
        [
            *tables(clips),
            *budget_tables(clips, found, budgets, args.search_clips),
            overhead(60 if args.smoke else 1560),
        ],
        numbers={"clips": clips, "budgets": budgets, "with budgets": found},
    )
    section.write(args.json)


if __name__ == "__main__":
    main()
