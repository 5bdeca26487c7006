"""The files for containers and for systemd fit the project: their commands, extras, paths and addresses exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pusa.cli import app

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy" / "pusa.service").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PARTS = {name: service for name, service in SERVICES.items() if "command" in service}


def after(word: str, text: str) -> str:
    """The rest of the only instruction that begins with a word, its lines joined."""
    (found,) = re.findall(rf"^{word}[ =](.*)$", text.replace("\\\n", " "), re.M)
    return str(found).strip()


def filled(text: str) -> str:
    """A text with the defaults of its variables."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?[^}]*\}", lambda match: match[2] or match[1], text)


def commands() -> dict[str, list[str]]:
    """The command lines of all files, without the name of the program."""
    found = {"Dockerfile": json.loads(after("CMD", DOCKERFILE.split("ENTRYPOINT")[1]))}
    found |= {f"compose.yaml {name}": [filled(word) for word in part["command"]] for name, part in PARTS.items()}
    started = after("ExecStart", UNIT)
    (options,) = re.findall(r'"PUSA_OPTIONS=(.*)"', UNIT)
    program, *words = shlex.split(filled(started.replace("$PUSA_OPTIONS", options)))
    assert Path(program).name == "pusa"
    return found | {"pusa.service": words}


@pytest.mark.parametrize("name", commands())
def test_a_command_is_one_of_the_program(name: str) -> None:
    words = commands()[name]
    assert words[0] == "serve"
    function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert function.__name__ == "serve"
    serving = bound.arguments["serving"]
    assert serving.port == 8000
    assert serving.api_keys is not None


def test_the_image_installs_what_the_project_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.M)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = re.findall(r"^ARG PYTHON=3\.(\d+)$", DOCKERFILE, re.M)
    assert int(python) >= int(project["requires-python"].removeprefix(">=3."))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M) for word in line.split()]
    assert {"constraints.txt", "pyproject.toml", "src", project["readme"], *project["license-files"]} == set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_runs_as_nobody_who_may_do_much() -> None:
    last = DOCKERFILE.split("\nFROM ")[-1]
    number = after("USER", last)
    assert int(number) > 0
    assert f"--uid {number}" in last
    for folder in json.loads(after("VOLUME", last)):
        assert folder in after("RUN", last)


def test_the_parts_share_the_queue_and_the_files() -> None:
    stores = {next(word for word in part["command"] if word.startswith("--store")) for part in PARTS.values()}
    assert len(stores) == 1
    assert len({tuple(part["volumes"]) for part in PARTS.values()}) == 1
    assert sum("--workers=0" in part["command"] for part in PARTS.values()) == 1
    for service in SERVICES.values():
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_no_secret_is_written_down_or_in_a_list_of_processes() -> None:
    for part in PARTS.values():
        assert not re.search(r"//[^/@]*:[^/@]*@", " ".join(part["command"]))
        assert part["environment"]["PGPASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert SERVICES["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert COMPOSE["secrets"]["api_keys"] == {"environment": "PUSA_API_KEYS"}


def test_the_gpu_file_changes_services_that_exist() -> None:
    changed = yaml.safe_load((ROOT / "deploy" / "gpu.yaml").read_text(encoding="utf-8"))["services"]
    assert {"worker"} == set(changed) <= set(PARTS)  # one image is for all; only the worker needs a GPU


def test_the_health_check_asks_the_server() -> None:
    (path,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", DOCKERFILE)
    sources = (ROOT / "src" / "pusa" / "serving").glob("*.py")
    assert any(f'@app.get("{path}"' in source.read_text(encoding="utf-8") for source in sources)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if (systemd := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd is not installed")
    copy = tmp_path / "pusa.service"
    copy.write_text(UNIT.replace("ExecStart=/opt/pusa/bin/pusa", "ExecStart=/bin/true"))
    done = subprocess.run([systemd, "verify", str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(copy) not in done.stderr
