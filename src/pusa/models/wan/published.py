"""The configurations of Wan's published text-to-video models, which are part of the package.

They answer what a model can make and what it needs without a network. Weights are never read with them.
"""

from __future__ import annotations

from pathlib import Path

_OWNER, _DIFFUSERS = "Wan-AI/", "-Diffusers"
_FOLDER = Path(__file__).parent / "configurations"


def names() -> list[str]:
    """The hub ids of the models, in diffusers' layout and in Wan's own."""
    return [_OWNER + name + layout for name in sorted(p.name for p in _FOLDER.iterdir()) for layout in ("", _DIFFUSERS)]


def folder(hub_id: str) -> Path | None:
    """The folder with the configurations of a model, in the layout of diffusers; None for every other model."""
    if not hub_id.startswith(_OWNER):
        return None
    path = _FOLDER / hub_id.removeprefix(_OWNER).removesuffix(_DIFFUSERS)
    return path if (path / "model_index.json").is_file() else None


def is_published(path: Path) -> bool:
    """Whether a folder is one of those that `folder` returns, so that it has no weights."""
    return path.parent == _FOLDER
