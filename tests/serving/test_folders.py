"""Files that servers share by an address and not by a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pusa.errors import InputError
from pusa.serving.folders import Folders
from tests.serving.conftest import Service, png

QUICK = {"prompt": "a red circle moves left on a black background", "steps": 2}


def test_a_server_without_the_files_gets_them_from_the_address(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service(results=f"file://{tmp_path / 'bucket'}")
    video = service.post(files={"image": ("cat.png", png())}, prompt="x", steps="2")["id"]

    def elsewhere() -> None:
        shutil.rmtree(service.server.folders.of(video), ignore_errors=True)

    elsewhere()
    service.worker.make(video)
    assert service.get(video)["status"] == "completed"
    content = service.client.get(f"/v1/videos/{video}/content").content
    elsewhere()
    assert service.client.get(f"/v1/videos/{video}/content").content == content
    elsewhere()
    longer = service.made("/extensions", video={"id": video}, num_frames=4, steps=2)
    assert longer["num_frames"] == 21
    assert service.latents(longer["id"])[:, :, :5].equal(service.latents(video))
    elsewhere()
    assert service.client.get(f"/v1/videos/{video}/sources/source_0").status_code == 200
    service.client.delete(f"/v1/videos/{video}")
    service.server.housekeeping.round()
    assert not (tmp_path / "bucket" / video).exists()
    assert (tmp_path / "bucket" / longer["id"]).exists()


def test_an_address_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--results nowhere://x: the address cannot be used"):
        Folders(tmp_path, "nowhere://x").make()
