"""A timestep matrix of the user's own, in any form in which people have one: an object, rows of σ, JSON, or a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.errors import InputError
from pusa.files import existing_file

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix


def own_matrix(value: Any) -> TimestepMatrix:
    """The matrix that `value` stands for.

    value: a `TimestepMatrix`; rows of σ as a tensor, array or nested list [S + 1, F]; the dictionary of
    `TimestepMatrix.to_dict`; or the path of a JSON file with either of the last two. A sidecar is such a file as well:
    its matrix is taken. Raises InputError for anything else.
    """
    if isinstance(value, str | Path):
        return _read(existing_file(value))
    import torch

    from pusa.core.timesteps import TimestepMatrix

    if isinstance(value, TimestepMatrix):
        return value
    if isinstance(value, Mapping):
        return TimestepMatrix.from_dict(dict(value))
    try:
        rows = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The matrix is not made of rows of equal length: {error}.") from error
    return TimestepMatrix.from_sigma(rows)


def _read(file: Path) -> TimestepMatrix:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} does not hold a timestep matrix: it is not JSON ({error}).") from error
    if isinstance(content, dict) and isinstance(content.get("matrix"), dict):
        content = content["matrix"]
    try:
        return own_matrix(content if isinstance(content, dict | list) else [])
    except InputError as error:
        raise InputError(f"{file} does not hold a timestep matrix: {error}") from error
