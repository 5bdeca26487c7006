"""What the project says about itself stays true: its version, its make targets, the commands and links of its pages."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

import pusa
from pusa import embedded
from pusa.cli import app
from pusa.cli.shared.flag_aliases import renamed, translate

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "recipes/**/*.md")
    for path in ROOT.glob(pattern)
    if "generated" not in path.parts
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pusa.__version__"}
    assert str(yaml.safe_load(read("CITATION.cff"))["version"]) == pusa.__version__
    assert pusa.__version__ in read("CHANGELOG.md")


def test_make_help_lists_every_target() -> None:
    text = read("Makefile")
    phony = text.split(".PHONY:")[1].split("\n")[0].split()
    assert re.findall(r"^([a-z]+):.*## ", text, re.M) == phony
    assert ".DEFAULT_GOAL := help" in text


def test_the_workflow_runs_what_everybody_runs() -> None:
    steps = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    for form in ("bug", "feature"):
        fields = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{form}.yml"))
        assert {"name", "description", "body"} <= set(fields)


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for index in sorted((ROOT / "docs").rglob("index.md")):
        lines = re.findall(r"^([\w/]+)$", index.read_text(encoding="utf-8"), re.M)
        listed |= {str((index.parent / line).relative_to(ROOT)) + ".md" for line in lines}
    assert {name for name in NAMES if name.startswith("docs/")} - {"docs/index.md"} <= listed


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name: str) -> None:
    text = re.sub(r"```.*?```", "", read(name), flags=re.S)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        drawn_by_the_embedded_model = "images/" in target and not embedded.folder().is_dir()
        assert (ROOT / name).parent.joinpath(target).exists() or drawn_by_the_embedded_model, target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name: str) -> None:
    for path in re.findall(
        r"\b(?:tests|src|recipes|benchmarks|docs|examples)/[\w/.-]+\.(?:py|md|yaml|sh|json)\b", read(name)
    ):
        assert (ROOT / path).exists(), path


def commands() -> list[str]:
    """Every `pusa VERB ...` in the code blocks of the pages, with continued lines joined and comments removed."""
    found: list[str] = []
    for name in NAMES:
        for block in re.findall(r"```(?:bash|shell)?\n(.*?)```", read(name), re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if re.match(r"(torchrun .* -m )?pusa ", line)]
    found += re.findall(r"^\|[^|]*\| `(pusa [^`]*)` \|$", read("docs/generate.md"), re.M)
    return list(dict.fromkeys(re.sub(r"^.*-m (?=pusa )", "", line) for line in found))


@pytest.mark.parametrize("command", commands())
def test_the_command_is_well_formed(command: str) -> None:
    tokens = shlex.split(command.replace("--model.source ...", ""), comments=True)[1:]
    assert not renamed(tokens)[1], "a former spelling"
    app.parse_args(translate(tokens), exit_on_error=False, print_error=False)


def test_the_tasks_of_the_demo_are_on_the_page_about_making_clips(tmp_path: Path) -> None:
    from pusa.cli.demo.tasks import tasks

    listed = {tuple(shlex.split(command)[1:]) for command in commands()}
    for task in tasks(tmp_path):
        tokens = tuple(token.replace(f"{tmp_path}/", "") for token in task.tokens)
        assert tokens in listed or "," in task.title, task.title
