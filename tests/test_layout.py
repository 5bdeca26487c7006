"""The layout in docs/architecture.md: each module has a line there and imports only from that line and lines above."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pusa"
FILES = sorted(SOURCE.rglob("*.py"))
CORE_MAY_IMPORT = {"torch", "pusa.core", "pusa.errors"} | sys.stdlib_module_names
ENTRY_POINTS = {("__init__",), ("__main__",)}
"""They lead into every folder, and no module imports them."""


def places() -> list[tuple[tuple[str, ...], int]]:
    """(module or folder as parts, line number) of every name in the list, in its order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"^src/pusa/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block, "docs/architecture.md has no layout"
    found: list[tuple[tuple[str, ...], int]] = []
    folder: tuple[str, ...] = ()
    for number, line in enumerate(block[1].splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        folder = folder[: depth - 1]
        found += [((*folder, name.rstrip("/")), number) for name in names]
        if len(names) == 1 and names[0].endswith("/"):
            folder = (*folder, names[0].rstrip("/"))
    return found


PLACES = places()


def parts_of(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts


def place_of(module: tuple[str, ...]) -> int | None:
    """The line of a module: its own, or the last one of the nearest listed folder; None when nothing lists it."""
    nearest = next((module[:n] for n in range(len(module), 0, -1) if module[:n] in dict(PLACES)), None)
    if nearest is None:
        return None
    return max(line for parts, line in PLACES if parts[: len(nearest)] == nearest)


MODULES = {parts_of(file) for file in FILES}


def imported(file: Path) -> set[tuple[str, ...]]:
    """The modules of this package that the file imports, anywhere in it, as parts."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute here"
            origin = tuple((node.module or "").split("."))
            for alias in node.names:
                full = (*origin, alias.name)
                found.add(full if full[1:] in MODULES else origin)
    return {name[1:] for name in found if name[0] == "pusa"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_module_has_a_place_and_imports_only_from_there_upwards(file: Path) -> None:
    module = parts_of(file)
    if module in ENTRY_POINTS:
        return
    place = place_of(module)
    assert place is not None, f"{file.name} has no place; add it to the list in docs/architecture.md"
    for other in imported(file) - {()}:  # () is pusa itself, of which only the version may be imported
        line = place_of(other)
        assert line is not None
        assert line <= place, f"{'.'.join(module)} may not import from {'.'.join(other)}, which stands below it"


def test_the_entry_point_is_imported_for_its_version_only() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "pusa" and parts_of(file) not in ENTRY_POINTS:
                names = {alias.name for alias in node.names}
                assert all((name,) in MODULES for name in names - {"__version__"}), f"{file}: {names}"
            elif isinstance(node, ast.Import):
                assert "pusa" not in {alias.name for alias in node.names}, f"{file}: import the module that is meant"


def test_everything_in_the_list_exists() -> None:
    for parts, _ in PLACES:
        path = SOURCE.joinpath(*parts)
        assert path.is_dir() or path.with_suffix(".py").is_file(), (
            f"docs/architecture.md lists {path}, which is not there"
        )


@pytest.mark.parametrize("file", sorted((SOURCE / "core").glob("*.py")), ids=lambda f: f.name)
def test_core_imports_torch_and_the_standard_library_only(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {".".join(name.split(".")[: 2 if name.startswith("pusa.") else 1]) for name in names}
    assert roots <= CORE_MAY_IMPORT
