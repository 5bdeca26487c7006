"""Who is dead: at once on this machine, after a silence on others.

Nobody is dead because a clock or a database stood still.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from pusa.serving import liveness, tables
from pusa.serving.liveness import SILENT, Observer, Presence


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    opened = tables.open_database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    tables.create(opened, tmp_path)
    return opened


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _die(presence: Presence) -> None:
    """What the system does when a process dies."""
    presence._held.close()


def test_a_worker_that_dies_alone_and_one_with_its_server(engine: sa.Engine, tmp_path: Path) -> None:
    server, other = (Presence(engine, tmp_path, "server") for _ in range(2))
    workers = [Presence(engine, tmp_path, "worker", one.id) for one in (server, server, other, server)]
    observer = Observer(engine)
    assert observer.dead() == {}

    for presence in (workers[0], workers[2], other):
        _die(presence)
    workers[3].leave()

    found = {workers[0].id: "alone", workers[2].id: "with its server", workers[3].id: "stopped"}
    assert observer.dead() == Observer(engine).dead() == found
    observer.forget(found)
    assert Observer(engine).dead() == {}
    assert workers[1].beat()
    assert server.children() == 1


def test_a_worker_that_was_declared_dead_learns_it(engine: sa.Engine, tmp_path: Path) -> None:
    server = Presence(engine, tmp_path, "server")
    worker = Presence(engine, tmp_path, "worker", server.id)
    _die(worker)

    Observer(engine).dead()

    assert not worker.beat()


def test_a_worker_of_another_machine_is_dead_after_a_silence(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Presence(engine, tmp_path, "server")
    worker = Presence(engine, tmp_path, "worker", server.id)
    monkeypatch.setattr(liveness, "this_machine", lambda: "another machine")
    clock = Clock()
    observer = Observer(engine, clock)

    for _ in range(int(3 * SILENT)):
        clock.now += 1
        worker.beat()
        server.beat()
        assert observer.dead() == {}
    for _ in range(int(SILENT)):
        clock.now += 1
        server.beat()
        assert observer.dead() == {}
    clock.now += 2
    server.beat()
    assert observer.dead() == {worker.id: "alone"}


def test_an_observer_that_slept_declares_nobody_dead(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Presence(engine, tmp_path, "server")
    Presence(engine, tmp_path, "worker", server.id)
    monkeypatch.setattr(liveness, "this_machine", lambda: "another machine")
    clock = Clock()
    observer = Observer(engine, clock)
    observer.dead()

    clock.now += 100 * SILENT

    assert observer.dead() == {}


def test_a_lock_that_is_not_there_kills_nobody(engine: sa.Engine, tmp_path: Path) -> None:
    server = Presence(engine, tmp_path, "server")
    worker = Presence(engine, tmp_path, "worker", server.id)
    worker.lock.unlink()

    assert Observer(engine).dead() == {}
