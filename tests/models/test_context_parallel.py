"""What several processes can share, and the sentence where they cannot. tests/cli/shared/test_ranks.py shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from pusa.errors import InputError
from pusa.generation.pipeline import load
from pusa.models import context_parallel
from pusa.models.wan.geometry import GEOMETRIES

WAN = GEOMETRIES[16]


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_what_real_models_share(processes: int) -> None:
    """Wan 14B at 81 frames of 832x480, and the 5B model at 121 frames of 1280x704."""
    context_parallel.check_tokens(21, 30 * 52, 40, processes, WAN)
    context_parallel.check_tokens(31, 22 * 40, 24, processes, WAN)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(InputError, match=r"12 attention heads.*by 8 processes: use 2, 3, 4, 6 or 12 processes\.$"):
        context_parallel.check_heads(12, 8)
    with pytest.raises(InputError, match=r"6 attention heads.*by 4 processes: use 2 processes\.$"):
        context_parallel.check_tokens(5, 16, 6, 4, WAN)


def test_tokens_that_do_not_divide() -> None:
    with pytest.raises(
        InputError,
        match=r"80 tokens of 17 frames.*3 processes: use 2 processes, 9 or 21 frames \(8 fewer or 4 more\)",
    ):
        context_parallel.check_tokens(5, 16, 6, 3, WAN)
    with pytest.raises(
        InputError, match=r"25 tokens of 17 frames.*2 processes: use 13 or 21 frames \(4 fewer or 4 more\), or another"
    ):
        context_parallel.check_tokens(5, 5, 6, 2, WAN)
    for frames in (13, 21):
        context_parallel.check_tokens((frames + 3) // 4, 5, 6, 2, WAN)
    with pytest.raises(InputError, match=r"5 tokens of 1 frame,.*use 5 frames \(4 more\), or"):
        context_parallel.check_tokens(1, 5, 6, 2, WAN)


def test_a_clip_is_refused_from_configurations_alone(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "model_index.json").symlink_to(tiny_folder / "model_index.json")
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").symlink_to(tiny_folder / part / "config.json")
    context_parallel.check_clip(tmp_path, {}, (64, 64), 17, 2)
    with pytest.raises(InputError, match=r"25 tokens of 17 frames"):
        context_parallel.check_clip(tmp_path, {}, (80, 16), 17, 2)
    with pytest.raises(InputError, match=r"2 attention heads cannot be shared by 3 processes: use 2 processes"):
        context_parallel.check_model(tmp_path, 3)


def test_one_process_cannot_share() -> None:
    with pytest.raises(InputError, match="needs several processes: start them with torchrun"):
        load("tiny", share_tokens=True)
