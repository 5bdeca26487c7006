"""A video whose worker died goes on behind its kept step, with the same bits, and not behind that of another model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from pusa.serving import kept_steps, worker
from tests.serving.conftest import Service, pipeline

PROMPT = "a red circle moves left on a black background"


def interrupted(service: Service, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> str:
    """A video whose worker died in its sixth step."""
    monkeypatch.setattr(worker, "KEEP", 0.0)
    video = service.post(prompt=PROMPT, seed=3, **asked)["id"]
    first, calls = service.worker, itertools.count(1)

    def die(*_: Any) -> None:
        if next(calls) == 6:
            raise Death

    hook = pipeline().transformer.register_forward_pre_hook(die)
    try:
        monkeypatch.setattr(first.store, "fail", lambda *_: None)
        first.make(video)
    finally:
        hook.remove()
    service.server.store.release({first.presence.id: "alone"})
    return video


class Death(Exception):
    pass


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_a_video_goes_on_behind_its_kept_step(service: Service, monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    video = interrupted(service, monkeypatch, steps=10, solver=solver, guidance=1.0)
    calls: list[int] = []
    hook = pipeline().transformer.register_forward_pre_hook(lambda *_: calls.append(0))

    service.another_worker().make(video)

    hook.remove()
    assert len(calls) == 5
    expected = pipeline().generate(PROMPT, seed=3, steps=10, solver=solver, guidance=1.0).latents
    assert torch.equal(service.latents(video), expected)
    assert not (service.server.folders.of(video) / kept_steps.NAME).exists()


def test_an_accelerated_video_begins_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"steps": 10, "guidance": 1.0, "accelerate": "steps,threshold=0.01"}
    video = interrupted(service, monkeypatch, **asked)
    assert not (service.server.folders.of(video) / kept_steps.NAME).exists()

    service.another_worker().make(video)

    assert torch.equal(service.latents(video), pipeline().generate(PROMPT, seed=3, **asked).latents)


def test_a_step_of_something_else_is_not_used(tmp_path: Path) -> None:
    steps: list[Any] = []
    pipeline().generate(PROMPT, steps=2, callback=steps.append)
    file = tmp_path / kept_steps.NAME

    kept_steps.keep(file, steps[0], "this model")

    again = kept_steps.kept(file, "this model")
    assert again is not None
    assert (again.index, again.steps) == (0, 2)
    assert torch.equal(again.latents, steps[0].latents)
    assert kept_steps.kept(file, "another model") is None
    file.write_bytes(file.read_bytes()[:100])
    assert kept_steps.kept(file, "this model") is None
    assert kept_steps.kept(tmp_path / "none", "this model") is None


def test_a_video_of_another_model_is_not_made(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    video = service.post(prompt=PROMPT, steps=2)["id"]
    other = type(service.server.options.model)("wan", "tiny")
    options = service.worker.options
    monkeypatch.setattr(service.worker, "options", type(options)(**{**vars(options), "model": other}))

    service.worker.make(video)

    message = "This video was asked of the model tiny, and the server now has wan: ask again."
    assert service.get(video)["error"] == {"code": "invalid_request", "message": message}
