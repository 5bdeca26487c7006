"""What is removed, and that nothing is removed that is being read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pusa.serving import housekeeping
from tests.serving.conftest import Service

QUICK = {"prompt": "a red circle moves left on a black background", "steps": 2}


def test_a_video_expires(make_service: Callable[..., Service]) -> None:
    service = make_service(expires=0.0)
    video = service.made(**QUICK)
    assert video["expires_at"] is not None

    service.server.housekeeping.round()

    assert service.client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert not service.server.folders.of(video["id"]).exists()


def test_the_quota_removes_the_oldest_that_nobody_reads(make_service: Callable[..., Service]) -> None:
    service = make_service()
    first, second, third = (service.made(**QUICK)["id"] for _ in range(3))
    size = service.server.store.get(third, None).bytes
    service.client.get(f"/v1/videos/{first}/content")
    service.server.housekeeping.quota = round(2.5 * size)

    service.server.housekeeping.round()

    left = [one["id"] for one in service.client.get("/v1/videos").json()["data"]]
    assert left == [third, first]
    assert service.client.get(f"/v1/videos/{second}").status_code == 404


def test_what_was_received_and_abandoned_is_removed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    left = service.server.folders.receive()
    waiting = service.post(**QUICK)["id"]

    service.server.housekeeping.round()
    assert left.exists()
    monkeypatch.setattr("pusa.serving.folders.ABANDONED", -1.0)
    service.server.housekeeping.round()

    assert not left.exists()
    assert service.server.folders.of(waiting).exists()
    assert housekeeping.UNREAD > housekeeping.PACE
