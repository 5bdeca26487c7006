"""Accept flag names of other programs, and former names of our own flags, by rewriting them before parsing.

The names come from diffusers, the Wan scripts, musubi-tuner, diffusion-pipe, LightX2V and the official Pusa scripts.
`--help` does not show them, because it shows one name for one option; `docs/generate.md` and
`docs/training/training.md` list them. Underscores need no entry:
`--negative_prompt` and `--negative-prompt` are the same flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SYNONYMS: dict[str, Sequence[str]] = {
    "--frames": ("--num-frames", "--frame-num", "--video-length"),
    "--size": ("--resolution",),
    "--steps": ("--num-inference-steps", "--infer-steps", "--sample-steps", "--sampling-steps"),
    "--guidance": ("--cfg", "--cfg-scale", "--guidance-scale", "--sample-guide-scale"),
    "--guidance-2": ("--guidance-scale-2", "--cfg-2"),
    "--boundary": ("--boundary-ratio", "--switch-DiT-boundary"),
    "--shift": ("--flow-shift", "--sample-shift", "--sigma-shift", "--discrete-flow-shift"),
    "--seed": ("--base-seed",),
    "--solver": ("--sample-solver", "--scheduler"),
    "--negative-prompt": ("--n-prompt",),
    "--image": ("--first-image", "--first-frame", "--start-image", "--image-path"),
    "--last-image": ("--end-image", "--last-frame"),
    "--video": ("--video-path",),
    "--count": ("--num-videos", "--num-outputs"),
    "--model": ("--base-dir", "--t2v-model-dir", "--ckpt-dir", "--model-path"),
    "--lora": ("--lora-path", "--lora-weight"),
    "--lora-high": ("--high-lora-path",),
    "--lora-low": ("--low-lora-path",),
    "--lora-scale": ("--lora-alpha", "--lora-strength", "--lora-multiplier"),
    "--out": ("--output", "--output-path", "--output-dir", "--save-file", "-o"),
}
TRAINING = ("train", "check", "prepare")
"""The commands whose options are settings of a training."""
TRAINING_SYNONYMS: dict[str, Sequence[str]] = {
    "--train.lr": ("--learning-rate",),
    "--train.steps": ("--max-train-steps",),
    "--train.batch": ("--batch-size", "--train-batch-size"),
    "--train.accumulate": ("--gradient-accumulation-steps",),
    "--train.schedule": ("--lr-scheduler",),
    "--train.warmup": ("--lr-warmup-steps",),
    "--train.optimiser": ("--optimizer", "--optimizer-type"),
    "--train.clip": ("--max-grad-norm",),
    "--train.precision": ("--mixed-precision",),
    "--train.seed": ("--seed",),
    "--lora.rank": ("--network-dim", "--lora-rank"),
    "--lora.alpha": ("--network-alpha", "--lora-alpha"),
    "--lora.init": ("--network-weights",),
    "--memory.swap": ("--blocks-to-swap",),
    "--save.every": ("--save-every-n-steps", "--checkpointing-steps"),
    "--out": SYNONYMS["--out"],
}
MEMORY_PROFILE = re.compile(r"all|auto|none|cpu|\d+ ?gb", re.IGNORECASE)
RENAMED: Mapping[str, Mapping[str, str]] = {
    "check": {
        "--buckets": "--data.buckets", "--fps": "--data.fps", "--cut": "--data.cut", "--model": "--model.source",
        "--steps": "--train.steps", "--batch": "--train.batch", "--rank": "--lora.rank",
    },
    "prepare": {
        "--buckets": "--data.buckets", "--fps": "--data.fps", "--cut": "--data.cut", "--cache": "--data.cache",
        "--model": "--model.source",
    },
    "train": {"--force": "--overwrite"},
    "evaluate": {"--jobs": "--workers"},
    "benchmark": {"--jobs": "--workers"},
    "physics-iq": {"--jobs": "--workers"},
    "reproduce": {"--jobs": "--workers"},
    "info": {"--profile": "--memory"},
}  # fmt: skip
"""Former names of our own flags, by command. They still work, and a note tells the present name."""


def translate(tokens: Sequence[str]) -> list[str]:
    """Replace flags of other programs by ours, and join `--width W --height H` into `--size WxH`.

    A training knows the flags of other trainers, also with a section before them, such as `--train.learning_rate`.
    """
    training = bool(tokens) and tokens[0] in TRAINING
    synonyms = TRAINING_SYNONYMS if training else SYNONYMS
    flag_of = {name: flag for flag, names in synonyms.items() for name in names}
    translated: list[str] = []
    remaining = iter(tokens)
    for token in remaining:
        if token == "--":
            translated += [token, *remaining]
            break
        flag, equals, value = token.partition("=")
        if flag.startswith("-"):
            name = flag.replace("_", "-")
            section, dot, setting = name.removeprefix("--").partition(".")
            ours = flag_of.get(name) or flag_of.get(f"--{setting}", "")
            flag = ours if name in flag_of or (dot and ours.startswith(f"--{section}.")) else flag
        translated.append(flag + equals + value)
    return translated if training else _join_size(translated)


def renamed(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace former names of our own flags and commands; return the tokens and a note for each replacement."""
    tokens = list(tokens)
    notes: list[str] = []
    if not tokens:
        return tokens, notes
    end = tokens.index("--") if "--" in tokens else len(tokens)
    worlds = [i for i, token in enumerate(tokens[:end]) if token.partition("=")[0] == "--world"]
    complete = all("=" in tokens[i] or (i + 1 < end and not tokens[i + 1].startswith("-")) for i in worlds)
    if tokens[0] == "evaluate" and worlds and complete:
        models = []
        while (at := next((i for i, x in enumerate(tokens) if x.partition("=")[0] == "--world"), None)) is not None:
            _, equals, value = tokens.pop(at).partition("=")
            models.append(value if equals or at >= len(tokens) else tokens.pop(at))
        tokens = ["benchmark", *models, *tokens[1:]]
        end = tokens.index("--") if "--" in tokens else len(tokens)
        notes.append("`pusa evaluate --world MODEL` is now `pusa benchmark MODEL`.")
    if tokens[0] == "info" and "--memory" in tokens[:end]:
        after = tokens.index("--memory") + 1
        if "--profile" in tokens[:end]:
            del tokens[after - 1]
            end -= 1
        elif after >= len(tokens) or not MEMORY_PROFILE.fullmatch(tokens[after]):
            tokens.insert(after, "all")
            notes.append("`pusa info --memory` without a value is now `--memory all`.")
            end += 1
    known = {} if tokens[:2] == ["physics-iq", "generate"] else RENAMED.get(tokens[0], {})
    for i, token in enumerate(tokens[:end]):
        flag, equals, value = token.partition("=")
        if new := known.get(flag.replace("_", "-")):
            tokens[i] = new + equals + value
            notes.append(f"{flag} is now {new}.")
    return tokens, notes


def _join_size(tokens: list[str]) -> list[str]:
    others: list[str] = []
    sides: dict[str, str] = {}
    end = tokens.index("--") if "--" in tokens else len(tokens)
    remaining = iter(tokens[:end])
    for token in remaining:
        flag, equals, value = token.partition("=")
        if flag in ("--width", "--height"):
            sides[flag] = value if equals else next(remaining, "?")
        else:
            others.append(token)
    if sides:
        others += ["--size", f"{sides.get('--width', '?')}x{sides.get('--height', '?')}"]
    return others + tokens[end:]
