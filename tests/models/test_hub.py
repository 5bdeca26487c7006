"""Downloads, against a hub on this machine: whole, broken off, damaged, offline, private."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pusa.errors import InputError
from pusa.models import hub
from pusa.models.lora import header
from tests.models.hub_server import Hub, serving

NAME = "someone/wan"
SIZE = 21_000_000  # huggingface_hub writes pieces of ten million bytes and goes on after the last of them
CODE = """
import sys
from pusa.errors import InputError
from pusa.models.hub import snapshot
try:
    print(snapshot(sys.argv[1], sys.argv[2:]))
except InputError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "repository"
    (folder / "transformer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "transformer" / "a.safetensors").write_bytes(os.urandom(SIZE))
    (folder / "transformer" / "b.safetensors").write_bytes(os.urandom(1000))
    with serving(folder, NAME) as running:
        yield running


@pytest.fixture
def fetch(server: Hub, tmp_path):
    """Fetch in a process of its own, since huggingface_hub reads its environment once; the folder, or the sentence."""

    def run(*patterns: str, name: str = NAME, **environment: str) -> Path | str:
        settings = {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CODE, name, *(patterns or ("*",))],
            env=kept | settings | {"PYTHONPATH": str(Path(hub.__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=3000,
        )
        return Path(done.stdout.strip()) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    return run


def same(folder: Path | str, server: Hub) -> bool:
    assert isinstance(folder, Path), folder
    names = [p.relative_to(server.folder) for p in server.folder.rglob("*") if p.is_file()]
    return all((folder / name).read_bytes() == (server.folder / name).read_bytes() for name in names)


def test_a_whole_download_and_none_the_second_time(server, fetch, tmp_path):
    folder = fetch()
    assert same(folder, server)
    assert (tmp_path / "home" / "hub") in folder.parents
    asked = len(server.gets)
    assert fetch() == folder
    assert len(server.gets) == asked


def test_only_what_fits_the_patterns(server, fetch):
    folder = fetch("*.json")
    assert [path for path, _ in server.gets] == ["config.json"]
    assert not (folder / "transformer").exists()


def test_a_broken_connection_goes_on_where_it_broke(server, fetch):
    server.cut["transformer/a.safetensors"] = [15_000_000]
    assert same(fetch(), server)
    first, second = (asked for path, asked in server.gets if path == "transformer/a.safetensors")
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").split("-")[0]) <= 15_000_000


def test_a_download_that_failed_goes_on_with_the_missing_files(server, fetch):
    server.cut["transformer/a.safetensors"] = [1000] * 20
    assert "could not be downloaded" in fetch()
    del server.cut["transformer/a.safetensors"]
    assert "transformer/b.safetensors" in dict(server.gets)
    server.gets.clear()
    assert same(fetch(), server)
    assert {path for path, _ in server.gets} == {"transformer/a.safetensors"}


@pytest.mark.parametrize("path", ["transformer/a.safetensors", "config.json"])
def test_a_damaged_file_is_found_by_its_hash_and_fetched_again(server, fetch, path):
    server.flip.add(path)
    assert fetch() == f"{path} of {NAME} arrived damaged (its hash is wrong) and was removed: run this again."
    server.flip.clear()
    assert same(fetch(), server)


def test_offline_with_and_without_the_files(server, fetch):
    sentence = fetch(HF_HUB_OFFLINE="1")
    assert sentence.startswith(f"{NAME} is neither a folder nor in the local cache")
    folder = fetch()
    asked = len(server.gets)
    assert fetch(HF_HUB_OFFLINE="1") == folder
    assert len(server.gets) == asked


def test_offline_with_half_of_the_files(server, fetch):
    folder = fetch("*.json", "transformer/b*")
    assert isinstance(folder, Path)
    assert "only partly in the local cache" in fetch(HF_HUB_OFFLINE="1")


def test_a_hub_that_does_not_answer(server, fetch):
    nowhere = "http://127.0.0.1:9"
    assert f"{nowhere} cannot be reached" in fetch(HF_ENDPOINT=nowhere)


def test_a_token_is_sent(server, fetch):
    server.private = "hf_secret"
    assert "There is no model 'someone/wan'" in fetch()
    assert same(fetch(HF_TOKEN="hf_secret"), server)
    assert server.tokens == {None, "Bearer hf_secret"}


def test_no_such_repository(server, fetch):
    assert "There is no model 'someone/else'" in fetch(name="someone/else")
    assert "its form is not that of a hub id" in fetch(name="some--one/wan")


def test_a_file_of_a_repository(server, fetch, tmp_path, monkeypatch):
    folder = fetch("transformer/b.safetensors")
    monkeypatch.setattr(hub, "snapshot", lambda hub_id, patterns: folder if hub_id == NAME else None)
    assert hub.file(f"{NAME}/transformer/b.safetensors") == folder / "transformer" / "b.safetensors"
    with pytest.raises(InputError, match=f"{NAME} has no file c.safetensors"):
        hub.file(f"{NAME}/c.safetensors")
    with pytest.raises(InputError, match="not a file of a hub repository"):
        hub.file("b.safetensors")
    assert header.file_of(f"{NAME}/transformer/b.safetensors").suffix == ".safetensors"
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        header.file_of(tmp_path / "here" / "x.safetensors")
