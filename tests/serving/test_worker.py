"""What a worker makes depends on the request alone, it stops when it must, and no video is made twice or lost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pusa
from pusa.serving.store import DEATHS, FALLS
from tests.serving.conftest import LoadedModel, Service, pipeline, png

PROMPT = "a red circle moves left on a black background"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA that changes the clips: the embedded adapter with other numbers."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    tensors = load_file(pusa.embedded.adapter())
    path = tmp_path / "paint.safetensors"
    save_file({name: x + 0.05 * torch.randn(x.shape, generator=generator) for name, x in tensors.items()}, path)
    return path


def test_a_video_does_not_depend_on_those_before_it(make_service: Callable[..., Service], lora: Path) -> None:
    service = make_service(model=LoadedModel("tiny", "tiny", offered={"paint": lora}))
    asked: dict[str, Any] = {"prompt": PROMPT, "seed": 4, "steps": 6}
    alone = service.latents(service.made(**asked)["id"])
    between = [
        {"lora": {"name": "paint", "scale": 1.5}},
        {"accelerate": "steps,threshold=0.3"},
        {"accelerate": "held,every=3", "image": "data:image/png;base64," + _base64(png())},
        {"size": "96x64", "num_frames": 9},
        {"solver": "dpm++2m", "guidance": 1.0},
        {"lora": [{"name": "paint"}], "accelerate": "frames,threshold=0.2"},
        {"accelerate": "first-block,threshold=0.5"},
    ]

    others = [
        service.latents(service.made(**asked | change | {"seed": i})["id"]) for i in range(3) for change in between
    ]
    after = service.latents(service.made(**asked)["id"])

    assert torch.equal(alone, after)
    assert all(other.shape != alone.shape or not torch.equal(other, alone) for other in others)
    assert not [one.name for one in pipeline().loras if "paint" in one.name]


def test_a_deleted_video_stops_after_its_step(service: Service) -> None:
    video = service.post(prompt=PROMPT, steps=50)["id"]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            service.client.delete(f"/v1/videos/{video}")

    assert service.worker
    hook = pipeline().transformer.register_forward_pre_hook(count)
    try:
        service.worker.make(video)
    finally:
        hook.remove()

    assert 6 <= calls <= 7  # both branches of guidance may be two calls
    service.server.housekeeping.round()
    assert not service.server.folders.of(video).exists()
    assert service.server.store.ids() == set()


def test_a_worker_that_lost_its_video_does_not_complete_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    video = service.post(prompt=PROMPT, steps=2)["id"]
    first, second = service.worker, service.another_worker()
    finish = first._finish

    def late(row: Any, clip: Any) -> None:
        first.store.release({first.presence.id: "with its server"})
        second.make(video)
        finish(row, clip)

    monkeypatch.setattr(first, "_finish", late)
    first.make(video)

    row = service.server.store.get(video, None)
    assert row is not None
    assert (row.status, row.worker, row.attempts) == ("completed", second.presence.id, 2)
    assert row.result.startswith("attempt-2-")
    assert service.client.get(f"/v1/videos/{video}/content").status_code == 200


def test_a_completed_video_is_not_made_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    video = service.made(prompt=PROMPT, steps=2)["id"]
    monkeypatch.setattr(service.worker, "_sample", lambda row: pytest.fail("it was made again"))

    service.worker.make(video)


@pytest.mark.parametrize(("how", "times"), [("alone", DEATHS), ("with its server", FALLS)])
def test_a_video_that_kills_is_given_up(service: Service, how: str, times: int) -> None:
    video = service.post(prompt=PROMPT, steps=2)["id"]
    store = service.server.store

    for number in range(times):
        assert store.begin(video, f"worker-{number}") is not None
        store.release({f"worker-{number}": how})
    assert store.begin(video, "worker-last") is None

    said = service.get(video)
    assert (said["status"], said["error"]["code"]) == ("failed", "worker_died")
    assert "smaller size or fewer frames" in said["error"]["message"]


def test_a_restart_does_not_count_against_a_video(service: Service) -> None:
    video = service.post(prompt=PROMPT, steps=2)["id"]
    for number in range(20):
        assert service.server.store.begin(video, f"worker-{number}") is not None
        service.server.store.release({f"worker-{number}": "stopped"})

    service.worker.make(video)

    assert service.get(video)["status"] == "completed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "out_of_memory"),
        (RuntimeError("cublas"), "server_error"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
    ],
)
def test_errors_of_the_machine(service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(pipeline().backbone), "velocity", fail)
    video = service.post(prompt=PROMPT, steps=2)["id"]
    service.worker.make(video)

    assert service.get(video)["error"]["code"] == code
    monkeypatch.undo()
    assert service.made(prompt=PROMPT, steps=2)["status"] == "completed"


def test_a_full_disk_fails_the_video_in_words(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise pusa.errors.InputError(f"cannot write {service.server.folders.root}: the disk is full; free some space")

    monkeypatch.setattr("pusa.generation.clip.GeneratedClip.save", full)
    video = service.post(prompt=PROMPT, steps=2)["id"]
    service.worker.make(video)

    assert service.get(video)["error"] == {
        "code": "disk_full",
        "message": "The server's disk is full: ask its operator.",
    }


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()
