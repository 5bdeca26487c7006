"""The rooms of docs/architecture.md from the ground up: a file imports from its own room and from those before it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "pusa"
ROOMS = (
    "errors", "files", "images", "videos", "film", "processes", "claims", "cluster",
    "core", "embedded", "models", "generation", "training", "evaluation", "serving", "cli",
)  # fmt: skip
CORE_MAY_IMPORT = {"torch", "pusa.core", "pusa.errors"} | sys.stdlib_module_names
OUTSIDE = {"__init__", "__main__"}  # the doors: they lead to every room and no room imports them

FILES = sorted(ROOT.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Dotted names of everything that the file imports, anywhere in it, relative ones resolved."""
    package = ("pusa", *file.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            origin = (base + (node.module or "")).strip(".")
            found |= {f"{origin}.{alias.name}" for alias in node.names} if origin == "pusa" else {origin}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_only_from_rooms_above_it(file: Path) -> None:
    room = room_of(file.relative_to(ROOT).parts)
    if room in OUTSIDE:
        return
    assert room in ROOMS, f"{file.name} stands in no room; add the room to this list and to docs/architecture.md"
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) | {"__version__"}
    inside = {room_of(tuple(name.split(".")[1:])) for name in imports(file) if name.startswith("pusa.")}
    assert inside <= allowed, f"{room} may not import from {sorted(inside - allowed)}"
    assert "pusa" not in imports(file), "import the room, not the front door"


@pytest.mark.parametrize("file", sorted((ROOT / "core").glob("*.py")), ids=lambda f: f.name)
def test_core_knows_torch_and_the_standard_library_only(file: Path) -> None:
    roots = {".".join(name.split(".")[: 2 if name.startswith("pusa.") else 1]) for name in imports(file)}
    assert roots <= CORE_MAY_IMPORT
