from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pusa.cli.shared.flag_aliases import RENAMED, SYNONYMS, TRAINING_SYNONYMS, renamed, translate


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("--num_frames 81", "--frames 81"),
        ("--num-inference-steps=30", "--steps=30"),
        ("--cfg 3", "--guidance 3"),
        ("--guidance_scale 3", "--guidance 3"),
        ("--flow_shift 5", "--shift 5"),
        ("--switch_DiT_boundary 0.9 --high_lora_path a.pt", "--boundary 0.9 --lora-high a.pt"),
        ("--end_image b.png", "--last-image b.png"),
        ("--lora_alpha 1.4", "--lora-scale 1.4"),
        ("--height 480 --width 832", "--size 832x480"),
        ("--height=480 --width=832 --seed 1", "--seed 1 --size 832x480"),
        ("-o x.mp4", "--out x.mp4"),
    ],
)
def test_habitual_flags_become_ours(typed: str, ours: str) -> None:
    assert translate(typed.split()) == ours.split()


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("train --learning_rate 1e-4 --network_dim=16", "train --train.lr 1e-4 --lora.rank=16"),
        ("train --train.learning_rate 1e-4 --train.seed 3", "train --train.lr 1e-4 --train.seed 3"),
        ("check --seed 3 --lora_alpha 8 --blocks_to_swap 9", "check --train.seed 3 --lora.alpha 8 --memory.swap 9"),
        ("train --lora.learning_rate 1 --output_dir runs/x", "train --lora.learning_rate 1 --out runs/x"),
        ("train --resolution 512 --width 64", "train --resolution 512 --width 64"),
    ],
)
def test_flags_of_other_trainers_become_settings(typed: str, ours: str) -> None:
    assert translate(typed.split()) == ours.split()


def test_values_and_everything_after_the_delimiter_stay() -> None:
    assert translate(["generate", "num_frames cfg", "--", "--cfg", "--height"]) == [
        "generate",
        "num_frames cfg",
        "--",
        "--cfg",
        "--height",
    ]


def test_no_habit_stands_for_two_flags() -> None:
    for synonyms in (SYNONYMS, TRAINING_SYNONYMS):
        habits = [habit for names in synonyms.values() for habit in names]
        assert len(habits) == len(set(habits))
        assert not set(habits) & set(synonyms)


@pytest.mark.parametrize(("page", "synonyms"), [("generate.md", SYNONYMS), ("training/training.md", TRAINING_SYNONYMS)])
def test_the_documentation_lists_every_habit(page: str, synonyms: dict[str, Sequence[str]]) -> None:
    text = (Path(__file__).parents[3] / "docs" / page).read_text(encoding="utf-8")
    for flag, habits in synonyms.items():
        rows = [line for line in text.splitlines() if line.startswith(f"| `{flag}")]
        listed = [{word.strip("`,").replace("_", "-") for word in row.split("|")[2].split()} for row in rows]
        assert any(set(habits) <= words for words in listed), flag


@pytest.mark.parametrize(
    ("typed", "now"),
    [
        (
            "check clips --steps 9 --rank=4 --buckets 64x64x17",
            "check clips --train.steps 9 --lora.rank=4 --data.buckets 64x64x17",
        ),
        ("prepare clips --cache c --model m", "prepare clips --data.cache c --model.source m"),
        ("train --force", "train --overwrite"),
        ("evaluate a.mp4 --jobs 2", "evaluate a.mp4 --workers 2"),
        ("evaluate --world tiny --world=tiny-base --scenes 8", "benchmark tiny tiny-base --scenes 8"),
        ("evaluate --world tiny --jobs 2", "benchmark tiny --workers 2"),
        ("info tiny --memory", "info tiny --memory all"),
        ("info --memory --size 64x64", "info --memory all --size 64x64"),
        ("info tiny --profile 24gb", "info tiny --memory 24gb"),
        ("info tiny --memory --profile 24gb", "info tiny --memory 24gb"),
    ],
)
def test_former_spellings_work_with_a_note(typed: str, now: str) -> None:
    tokens, notes = renamed(typed.split())
    assert tokens == now.split()
    assert notes


@pytest.mark.parametrize(
    "typed",
    [
        "info tiny --memory 24gb",
        "generate x --steps 3",
        "train --train.steps 3",
        "",
        "check -- --steps",
        "info tiny --memory 6gb",
        "evaluate a.mp4 --world",
    ],
)
def test_present_spellings_stay(typed: str) -> None:
    assert renamed(typed.split()) == (typed.split(), [])


def test_a_former_spelling_is_not_a_present_one() -> None:
    from pusa.cli import VERBS

    assert RENAMED.keys() <= VERBS.keys()
    for flags in RENAMED.values():
        assert not flags.keys() & set(flags.values())
