"""The commands on the pages: each is well formed, names no file that nobody wrote, and runs where the page says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pusa.cli import app, run
from pusa.cli.shared.flag_aliases import translate
from pusa.media.images import read_image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "training").glob("*.md"))]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"[\w./-]+\.(?:png|mp4|gif|jsonl?|txt|safetensors|pt|pth|gguf|csv|ya?ml|toml)\b")


def commands(page: Path) -> list[str]:
    """Every line `pusa ...` of the blocks of a page, with its continuations, and the commands of its tables."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in FENCE.findall(text) for line in block.splitlines() if line.startswith("pusa ")]
    lines += re.findall(r"^\|.*\| `(pusa [^`]*\"[^`]*)` \|$", text, re.M)
    return [re.sub(r"\s+#.*", "", line) for line in lines if "..." not in line]


ALL = [(page, command) for page in PAGES for command in commands(page)]


def called(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)[:60]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make demo` fills, in which the pages say to run the commands."""
    from pusa.cli.demo.tasks import tasks

    folder = tmp_path_factory.mktemp("demo") / "inputs"
    folder.mkdir()
    tasks(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random pipeline with the embedded model's clip size."""
    folder = tmp_path_factory.mktemp("model") / "tiny64"
    shutil.copytree(tiny_folder, folder)
    defaults = json.loads((folder / "pusa.json").read_text())
    (folder / "pusa.json").write_text(json.dumps(defaults | {"size": [64, 64]}))
    return folder


@pytest.mark.parametrize(("page", "command"), ALL, ids=called)
def test_a_command_is_well_formed_and_its_files_are_introduced(page: Path, command: str, inputs: Path) -> None:
    """A file is one of `make demo`, one that an earlier command writes, or one that the text of the page explains."""
    app.parse_args(translate(shlex.split(command)[1:]), exit_on_error=False, print_error=False)
    text = page.read_text(encoding="utf-8")
    explained = " ".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))
    written = [match for line in commands(page) for match in re.findall(r"--out (\S+)", line)]
    for name in FILE.findall(re.sub(r'"[^"]*"', "", command)):
        sidecar_of = str(Path(name).with_suffix(".mp4"))
        known = (
            (inputs / name).is_file()
            or name in written
            or sidecar_of in written
            or any(name.startswith(f"{out}/") for out in written)
        )
        assert known or Path(name).name in explained, f"{page.name} does not say where {name} comes from"


RUNNABLE = [
    command
    for command in commands(ROOT / "docs" / "generate.md")
    if not re.search(r"Wan-AI|--preset|--memory|--lora|--ray|torchrun", command)
]


def test_the_commands_of_the_page_of_tasks_run_in_their_order(
    model: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("--prompts clips.jsonl" in command for command in RUNNABLE)
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for command in RUNNABLE:
        verb, *tokens = shlex.split(command)[1:]
        extra = ["--overwrite", "--quiet"] if verb != "info" else []
        chosen = [] if verb == "info" or "--from" in tokens else ["--model", str(model)]
        report = run([verb, *tokens, *chosen, *extra])
        assert report is not None, command
        assert report.exit_code == 0, report.text


def test_the_page_of_your_own_matrix_runs(
    model: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files, its commands and its Python, in the folder that the demo fills."""
    page = ROOT / "docs" / "matrix.md"
    text = page.read_text(encoding="utf-8")
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (matrix,) = re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)
    Path("wave.json").write_text(matrix)
    drawn, made = commands(page)
    assert run(shlex.split(drawn)[1:]) is not None
    assert read_image("wave.png").tolist() == read_image(ROOT / "docs" / "images" / "own_matrix.png").tolist()
    assert run([*shlex.split(made)[1:], "--model", str(model), "--quiet"]) is not None
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    for block in blocks:
        exec(compile(block.replace('"tiny"', repr(str(model))), page.name, "exec"), {})
    assert all(Path(name).is_file() for name in ("circle.mp4", "curve.mp4", "both_ends.mp4"))
