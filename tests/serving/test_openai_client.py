"""OpenAI's own client with this server, over a real connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import uvicorn

from pusa.serving.app import make_app
from pusa.serving.http_protocol import HttpProtocol
from pusa.serving.running import _listen
from tests.serving.conftest import Service, png

openai = pytest.importorskip("openai")
pytestmark = [
    pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:openai"),
]
PROMPT = "a red circle moves left on a black background"
QUICK = {"steps": 2}


@pytest.fixture
def client(service: Service) -> Iterator[object]:
    """A client of the server on a free port, whose videos are made."""
    listening = _listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(service.server), http=HttpProtocol, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    with service.working():
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        yield openai.OpenAI(base_url=address, api_key="any", max_retries=0)
    server.should_exit = True
    thread.join()


def test_the_client_of_openai(client: object, service: Service) -> None:
    videos = client.videos

    first = videos.create_and_poll(
        prompt=PROMPT, model="tiny", seconds="2", size="64x64", input_reference=("cat.png", png()), extra_body=QUICK
    )
    longer = videos.poll(videos.extend(prompt=PROMPT, seconds="1", video=_clip(videos, first), extra_body=QUICK).id)
    edited = videos.poll(videos.edit(prompt="a blue square", video=_clip(videos, first), extra_body=QUICK).id)
    remixed = videos.poll(videos.remix(first.id, prompt="a blue square").id)

    assert (first.status, first.seconds, first.progress) == ("completed", "2.125", 100)
    assert (longer.status, longer.seconds) == ("completed", "3.125")
    assert (edited.status, remixed.status, remixed.remixed_from_video_id) == ("completed", "completed", first.id)
    assert [one.id for one in videos.list(limit=2)] == [remixed.id, edited.id, longer.id, first.id]
    assert videos.download_content(first.id, variant="thumbnail").read()[:4] == b"RIFF"
    assert videos.delete(first.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="multiples of 16"):
        videos.create(prompt=PROMPT, size="65x64")
    assert not torch.equal(service.latents(longer.id)[:, :, :5], service.latents(edited.id))


def _clip(videos: object, video: object) -> tuple[str, bytes]:
    return "clip.mp4", videos.download_content(video.id).read()
