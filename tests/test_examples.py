"""Every script of examples/ runs as it stands, in an empty folder, on the embedded model."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

from pusa import embedded

EXAMPLES = Path(__file__).parents[1] / "examples"
MAKES = {
    "image_to_video": "circle.mp4",
    "own_matrix": "staircase.mp4",
    "extend_a_clip": "longer.mp4",
    "watch_the_steps": "preview_05.png",
    "compare_seeds": "seeds.png",
}
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def test_every_example_is_listed_and_run() -> None:
    names = {script.stem for script in SCRIPTS}
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert names == set(MAKES)
    assert all(f"]({name}.py)" in text for name in names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_example_says_what_it_shows_and_uses_public_names_only(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name.startswith("pusa")} <= {"pusa", "pusa.core"}


@pytest.mark.skipif(not embedded.folder().is_dir(), reason="the embedded model is not in this checkout")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_example_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    assert (tmp_path / MAKES[script.stem]).is_file()
