"""One queue for several servers, in a real PostgreSQL that goes away and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.serving_harness import Postgres, database, place
from tests.serving.conftest import Service

QUICK = {"prompt": "a red circle moves left on a black background", "steps": 2}


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A database of its own. Skipped where PostgreSQL is not installed."""
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed")
    with place() as folder, database("postgresql", folder) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
def two(postgres: Postgres, make_service: Callable[..., Service], tmp_path: Path) -> tuple[Service, Service]:
    """Two servers of one queue and one folder."""
    first, second = (make_service(store=postgres.address, files=tmp_path / "shared") for _ in range(2))
    return first, second


def test_any_server_answers_for_any_video(two: tuple[Service, Service]) -> None:
    first, second = two
    video = first.post(seed=1, **QUICK)["id"]

    assert second.get(video)["queue_position"] == 0
    second.worker.make(video)

    assert first.get(video)["status"] == "completed"
    content = [one.client.get(f"/v1/videos/{video}/content").content for one in two]
    assert content[0] == content[1]
    assert first.made(seed=1, **QUICK)["seed"] == 1
    assert len(second.client.get("/v1/videos").json()["data"]) == 2
    assert second.client.delete(f"/v1/videos/{video}").status_code == 200
    assert first.client.get(f"/v1/videos/{video}").status_code == 404


def test_one_idempotency_key_makes_one_video_on_all_servers(two: tuple[Service, Service]) -> None:
    ids: list[str] = []

    def send(service: Service) -> None:
        answer = service.client.post("/v1/videos", json=QUICK, headers={"idempotency-key": "x"})
        ids.append(answer.json()["id"])

    threads = [threading.Thread(target=send, args=(two[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_a_database_that_goes_away_loses_no_video(postgres: Postgres, two: tuple[Service, Service]) -> None:
    service = two[0]
    video = service.post(**QUICK)["id"]
    sampled, finish = service.worker._sample, service.worker._finish
    assert sampled
    stopped = threading.Event()

    def late(row: object, clip: object) -> None:
        postgres.stop("immediate")
        stopped.set()
        finish(row, clip)

    service.worker._finish = late
    working = threading.Thread(target=service.worker.make, args=(video,))
    working.start()
    stopped.wait()
    answer = service.client.get(f"/v1/videos/{video}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_database")
    assert service.client.get("/ready").status_code == 503
    postgres.start()
    working.join()

    assert service.get(video)["status"] == "completed"


def test_a_folder_of_another_database_is_refused(
    two: tuple[Service, Service], make_service: Callable[..., Service]
) -> None:
    from pusa.errors import InputError

    with pytest.raises(InputError, match="has the files of another database"):
        make_service(files=two[0].server.options.files)
