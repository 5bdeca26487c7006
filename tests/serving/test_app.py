"""What clients of `pusa serve` see: videos from the queue to their files, and sentences for what is wrong."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pusa
from tests.serving.conftest import Service, awaited, pipeline, png

PROMPT = "a red circle moves left on a black background"
QUICK = {"steps": 2}


def test_a_video_from_its_request_to_its_files(service: Service) -> None:
    video = service.post(prompt=PROMPT, seed=7, num_inference_steps=2)

    assert (video["object"], video["status"], video["queue_position"]) == ("video", "queued", 0)
    assert (video["size"], video["num_frames"], video["seconds"], video["seed"]) == ("64x64", 17, "2.125", 7)
    service.worker.make(video["id"])
    done = service.get(video["id"])
    assert (done["status"], done["progress"], done["step"], done["error"]) == ("completed", 100, 2, None)
    expected = pipeline().generate(PROMPT, seed=7, steps=2)
    assert torch.equal(service.latents(video["id"]), expected.latents)
    content = service.client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        picture = service.client.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
        assert Image.open(io.BytesIO(picture.content)).format == kind


def test_files_come_in_ranges_and_are_not_sent_again(service: Service) -> None:
    address = f"/v1/videos/{service.made(prompt=PROMPT, **QUICK)['id']}/content"
    whole = service.client.get(address)

    part = service.client.get(address, headers={"range": "bytes=10-19"})

    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert whole.headers["etag"]


@pytest.mark.parametrize("wrong", ["bytes=9-2", "items=0-1", "bytes=a-b", "bytes=-", "bytes=0-1,5-6"])
def test_a_range_that_is_none_is_ignored(service: Service, wrong: str) -> None:
    address = f"/v1/videos/{service.made(prompt=PROMPT, **QUICK)['id']}/content"

    assert service.client.get(address, headers={"range": wrong}).status_code == 200


def test_ranges_tags_and_heads(service: Service) -> None:
    address = f"/v1/videos/{service.made(prompt=PROMPT, **QUICK)['id']}/content"
    whole = service.client.get(address)

    beyond = service.client.get(address, headers={"range": "bytes=99999999-"})
    known = service.client.get(address, headers={"if-none-match": whole.headers["etag"]})
    heads = [service.client.head(path) for path in (address, "/health", "/v1/videos", "/")]

    assert (beyond.status_code, beyond.json()["error"]["code"]) == (416, "invalid_range")
    assert beyond.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert (known.status_code, known.content) == (304, b"")
    assert [(one.status_code, one.content) for one in heads] == [(200, b"")] * 4
    assert heads[0].headers["content-length"] == str(len(whole.content))


def test_addresses_and_methods_that_there_are_not(service: Service) -> None:
    wrong = service.client.put("/v1/videos")
    none = service.client.get("/v1/videos/", headers={"host": "evil.example"}, follow_redirects=False)
    query = service.client.get("/v1/videos", params={"limit": "x"})
    order = service.client.get("/v1/videos", params={"order": "up"})

    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    assert none.status_code == 404
    assert query.json()["error"]["message"] == "limit is 'x': give a whole number from 1 to 100."
    assert order.json()["error"]["message"] == "order is 'up': give asc or desc."


def test_numbers_that_overflow_the_model_are_explained(service: Service) -> None:
    video = service.post(prompt=PROMPT, steps=2, guidance_scale=1e30)["id"]
    service.worker.make(video)

    error = service.get(video)["error"]
    assert error["code"] == "overflow"
    assert "use a smaller guidance_scale" in error["message"]


def test_a_picture_of_a_form_is_the_first_frame(service: Service) -> None:
    video = service.made(files={"input_reference": ("../cat\0.png", png())}, prompt=PROMPT, seed="3", steps="2")

    expected = pipeline().generate(PROMPT, [np.asarray(Image.open(io.BytesIO(png())))], seed=3, steps=2)
    assert torch.equal(service.latents(video["id"]), expected.latents)
    assert service.get(video["id"], "/matrix")["sigma"] == expected.matrix.sigma.tolist()
    source = service.client.get(f"/v1/videos/{video['id']}/sources/source_0")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.content))), np.asarray(Image.open(io.BytesIO(png()))))


def test_pictures_at_frames_under_every_name(service: Service) -> None:
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    frames = [
        {"keyframes": [{"image": address, "frame": 8, "noise": 0.2}]},
        {"frame_images": [{"image_url": {"url": address}, "frame_index": 8, "noise": 0.2}]},
        {"conditions": [{"type": "image", "src": address, "frame": 8, "noise": 0.2}]},
        {"conditions": [{"type": "image", "src": address, "frame": 8}], "noise": 0.2},
    ]

    made = [service.made(prompt=PROMPT, seed=1, **QUICK, **fields)["id"] for fields in frames]
    form = service.made(
        files={"cat": ("cat.png", png())},
        prompt=PROMPT,
        seed="1",
        steps="2",
        keyframes=json.dumps([{"image": {"part": "cat"}, "frame": 8, "noise": 0.2}]),
    )

    picture = pusa.Image(np.asarray(Image.open(io.BytesIO(png()))), frame=8, noise=0.2)
    expected = pipeline().generate(PROMPT, [picture], seed=1, steps=2).latents
    assert all(torch.equal(service.latents(id), expected) for id in [*made, form["id"]])


def test_an_extension_by_id_starts_from_the_latents(service: Service) -> None:
    first = service.made(prompt=PROMPT, seed=1, **QUICK)

    longer = service.made("/extensions", prompt=PROMPT, video={"id": first["id"]}, num_frames=8, seed=2, **QUICK)

    slots = service.latents(first["id"]).shape[2]
    assert torch.equal(service.latents(longer["id"])[:, :, :slots], service.latents(first["id"]))
    assert (longer["num_frames"], longer["seconds"], longer["task"]) == (25, "3.125", "extend")


def test_a_video_stays_usable_when_its_source_is_deleted(service: Service) -> None:
    first = service.made(prompt=PROMPT, seed=1, **QUICK)
    longer = service.post("/extensions", video={"id": first["id"]}, num_frames=4, **QUICK)

    service.client.delete(f"/v1/videos/{first['id']}")
    service.server.housekeeping.round()
    service.worker.make(longer["id"])

    assert service.get(longer["id"])["status"] == "completed"


def test_a_frame_of_a_video_and_the_source_of_another_one(service: Service) -> None:
    first = service.made(files={"image": ("cat.png", png())}, prompt=PROMPT, **QUICK)
    again = {"source": "source_0", "of": first["id"]}

    video = service.made(image=again, last_image={"video": first["id"], "frame": 3}, prompt=PROMPT, **QUICK)

    assert [one["filename"] for one in video["sources"].values()] == ["cat.png", first["id"]]
    assert video["request"]["conditions"][0]["src"] == {"source": "source_0"}


def test_edits_transitions_and_remixes(service: Service) -> None:
    first = service.made(prompt=PROMPT, seed=5, **QUICK)
    clip = service.client.get(f"/v1/videos/{first['id']}/content").content

    edited = service.made(
        "/edits", files={"video": ("clip.mp4", clip)}, prompt="a blue circle", strength="0.5", steps="4"
    )
    joined = service.made(task="transition", a={"video": first["id"]}, b={"video": first["id"]}, num_frames=8, **QUICK)
    remixed = service.made(f"/{first['id']}/remix", prompt="a blue square moves right on a white background")

    assert edited["request"]["strength"] == 0.5
    assert (joined["num_frames"], joined["task"]) == (17 + 8 + 17 - 1, "transition")
    assert (remixed["remixed_from_video_id"], remixed["seed"]) == (first["id"], 5)
    assert not torch.equal(service.latents(remixed["id"]), service.latents(first["id"]))


def test_a_mask_keeps_the_frames_of_a_clip(service: Service) -> None:
    first = service.made(prompt=PROMPT, seed=5, **QUICK)
    mask = [0.0] * 9 + [1.0] * 8

    video = service.made(prompt="a blue circle", source_video={"video": first["id"]}, video_noise_mask=mask, **QUICK)

    kept = service.latents(video["id"])[:, :, :3], service.latents(first["id"])[:, :, :3]
    assert torch.equal(*kept)
    error = service.refused(source_video={"video": first["id"]}, video_noise_mask=[0.0] * 8 + [1.0] * 9)
    assert error["message"] == "video_noise_mask: frames 5 to 8 are one latent frame and need one fraction."


def test_a_check_says_what_would_be_made(service: Service) -> None:
    said = service.post("/check", files={"image": ("cat.png", png(size=(96, 64)))}, seconds="2", steps="3", noise="0.3")

    assert (said["size"], said["num_frames"], said["seconds"]) == ("64x64", 17, "2.125")
    assert said["notes"][0] == (
        "cat.png: its 96x64 pixels become 64x64, without 16 columns at each side (fit pad keeps them)."
    )
    assert said["notes"][1] == "2 seconds were asked for, and the video has 17 frames, 2.125 seconds."
    column = [row[0] for row in said["matrix"]["sigma"]]
    assert column[0] == pytest.approx(0.3)
    assert service.client.get("/v1/videos").json()["data"] == []


def test_a_list_goes_on_behind_its_last_video(service: Service) -> None:
    ids = [service.post(prompt=str(i))["id"] for i in range(5)]

    pages = [service.client.get("/v1/videos", params={"limit": 2}).json()]
    while pages[-1]["has_more"]:
        pages.append(service.client.get("/v1/videos", params={"limit": 2, "after": pages[-1]["last_id"]}).json())

    assert [one["id"] for page in pages for one in page["data"]] == ids[::-1]
    assert [one["queue_position"] for one in pages[0]["data"]] == [4, 3]
    upwards = service.client.get("/v1/videos", params={"order": "asc"}).json()
    assert [one["id"] for one in upwards["data"]] == ids


def test_a_clock_that_goes_backwards_changes_no_order(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr("time.time", lambda: next(now))

    ids = [service.made(prompt=PROMPT, **QUICK)["id"] for _ in range(3)]
    service.server.housekeeping.round()

    assert [one["id"] for one in service.client.get("/v1/videos").json()["data"]] == ids[::-1]
    assert service.server.store.pace() >= 0


def test_a_deleted_video_is_gone_at_once(service: Service) -> None:
    video = service.post(prompt=PROMPT)["id"]

    answer = service.client.delete(f"/v1/videos/{video}").json()

    assert answer == {"id": video, "object": "video.deleted", "deleted": True}
    assert service.client.get(f"/v1/videos/{video}").status_code == 404
    assert service.client.delete(f"/v1/videos/{video}").status_code == 404
    service.server.housekeeping.round()
    assert not service.server.folders.of(video).exists()


def test_files_of_a_video_that_is_not_ready(service: Service) -> None:
    video = service.post(prompt=PROMPT)["id"]

    answer = service.client.get(f"/v1/videos/{video}/content")

    assert answer.status_code == 409
    assert answer.json()["error"]["message"] == "This video is queued (0 %): ask again when it is completed."


def test_the_same_idempotency_key_makes_one_video(service: Service) -> None:
    def send(prompt: str) -> object:
        headers = {"Idempotency-Key": "order 66"}
        return service.client.post("/v1/videos", json={"prompt": prompt}, headers=headers)

    first, second, other = send("a"), send("a"), send("b")

    assert first.json()["id"] == second.json()["id"]
    assert other.status_code == 409
    assert len(service.client.get("/v1/videos").json()["data"]) == 1


def test_every_post_that_makes_a_video_takes_an_idempotency_key(service: Service) -> None:
    first = service.made(prompt=PROMPT, **QUICK)["id"]
    clip = {"id": first}
    bodies = {
        "": {"prompt": "a"},
        "/extensions": {"video": clip, "num_frames": 4},
        "/edits": {"video": clip, "prompt": "x"},
        f"/{first}/remix": {"prompt": "x"},
    }

    for path, body in bodies.items():
        headers = {"idempotency-key": f"key of {path}"}
        answers = [service.client.post(f"/v1/videos{path}", json=body, headers=headers) for _ in range(2)]
        assert answers[0].json()["id"] == answers[1].json()["id"], path
    with service.working():
        clips = [
            service.client.post("/v1/videos/sync", json={"prompt": "s"} | QUICK, headers={"idempotency-key": "sync"})
            for _ in range(2)
        ]
    assert clips[0].headers["x-video-id"] == clips[1].headers["x-video-id"]


def test_many_posts_at_once_do_not_exceed_the_queue(make_service: Callable[..., Service]) -> None:
    service = make_service(most_waiting=3)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: service.client.post("/v1/videos", json={"prompt": str(i)}), range(12)))

    assert sorted(one.status_code for one in answers) == [200] * 3 + [429] * 9


def test_a_full_queue_says_when_to_come_back(make_service: Callable[..., Service]) -> None:
    service = make_service(most_waiting=2)
    for _ in range(2):
        service.post(prompt=PROMPT)

    answer = service.client.post("/v1/videos", json={"prompt": PROMPT})

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert not any(service.server.folders.incoming.iterdir())
    assert len(list(service.server.folders.videos.iterdir())) == 2


def test_nobody_sees_the_videos_of_another_key(
    make_service: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann 0123456789abcdef\nbob fedcba9876543210\n")
    service = make_service(keys=keys)
    ann, bob = ({"authorization": f"Bearer {key}"} for key in ("0123456789abcdef", "fedcba9876543210"))
    video = service.client.post("/v1/videos", json={"prompt": PROMPT}, headers=ann).json()["id"]

    assert service.client.get(f"/v1/videos/{video}", headers=ann).status_code == 200
    assert service.client.get(f"/v1/videos/{video}", headers=bob).status_code == 404
    assert service.client.delete(f"/v1/videos/{video}", headers=bob).status_code == 404
    assert service.client.get("/v1/videos", headers=bob).json()["data"] == []
    stolen = service.client.post("/v1/videos", json={"image": {"source": "source_0", "of": video}}, headers=bob)
    assert stolen.status_code == 400
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic 0123456789abcdef"}):
        answer = service.client.get("/v1/videos", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    keys.write_text("ann a-new-key-of-ann-1\n")
    assert service.client.get(f"/v1/videos/{video}", headers=ann).status_code == 401
    renewed = {"authorization": "Bearer a-new-key-of-ann-1"}
    assert service.client.get(f"/v1/videos/{video}", headers=renewed).status_code == 200
    keys.write_text("garbage")
    assert service.client.get(f"/v1/videos/{video}", headers=renewed).status_code == 200
    assert "the former API keys stay" in caplog.text
    keys.unlink()
    assert service.client.get(f"/v1/videos/{video}", headers=renewed).status_code == 401
    assert "no API key is valid" in caplog.text


def test_a_page_of_another_site_cannot_use_the_server(service: Service) -> None:
    form = {"prompt": (None, PROMPT)}

    other = service.client.post("/v1/videos", files=form, headers={"origin": "http://evil.example"})
    rebound = service.client.get("/v1/videos", headers={"host": "evil.example"})
    own = service.client.post("/v1/videos", files=form, headers={"origin": "http://127.0.0.1"})

    assert (other.status_code, rebound.status_code, own.status_code) == (403, 403, 200)
    assert "default-src 'self'" in own.headers["content-security-policy"]


def test_every_answer_speaks_without_paths(service: Service) -> None:
    root = str(service.server.folders.root)
    wrong = service.client.post("/v1/videos", files={"image": ("x.png", b"no picture")})
    odd = service.client.post("/v1/videos", files={"clip": ("x.mp4", png())}, data={"task": "extend"})
    done = service.made(files={"image": ("cat.png", png())}, prompt=PROMPT, **QUICK)

    told = [wrong.text, odd.text, json.dumps(done), json.dumps(service.get(done["id"], "/recipe"))]
    assert not any(root in text for text in told)
    assert wrong.json()["error"]["param"] == "image"


def test_a_recipe_has_the_names_of_the_client(service: Service) -> None:
    files = [("image", ("../a\0b/cat.png", png())), ("last_image", ("dog.png", png(1)))]
    pair = [("image", ("cat.png", png())), ("last_image", ("cat.png", png(1)))]

    names = [
        [
            one["path"]
            for one in service.get(service.made(files=some, prompt=PROMPT, steps="2")["id"], "/recipe")["conditions"]
        ]
        for some in (files, pair)
    ]

    assert names == [["cat.png", "dog.png"], ["source_0-cat.png", "source_1-cat.png"]]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"promt": "x"}, "promt", "There is no field 'promt': did you mean 'prompt'?"),
        ({"steps": 0}, "steps", "steps is 0: give a whole number from 1 to 1000."),
        (
            {"num_inference_steps": 0},
            "num_inference_steps",
            "num_inference_steps is 0: give a whole number from 1 to 1000.",
        ),
        ({"num_frames": 18}, "num_frames", "18 frames cannot be made, a clip has 4n+1 of them: use 17 or 21."),
        ({"size": "65x64"}, "size", "The size 65x64 cannot be made: both sides must be multiples of 16, as in 64x64."),
        ({"fps": 24}, "fps", "fps is 24: tiny makes 8 frames per second; leave fps out."),
        ({"model": "sora-2"}, "model", "There is no model 'sora-2': this server has tiny."),
        ({"num_frames": -5}, "num_frames", "-5 frames cannot be made, a clip has 4n+1 of them: use 1."),
        (
            {"size": "512x512", "num_frames": 49},
            "size",
            "49 frames of 512x512 are 184 times the clip that tiny makes by itself, and this server makes at most 16 "
            "times as much: ask for a smaller size or fewer frames.",
        ),
        ({"seconds": "-1"}, "seconds", "seconds is '-1': give a number above 0 and below 100,000."),
        ({"lora": {"name": "x"}}, "lora", "There is no LoRA 'x': this server offers none."),
        (
            {"matrix": "/etc/passwd"},
            "matrix",
            "matrix is not a list of rows: give the noise levels σ, one row for each step and a last one.",
        ),
        (
            {"image": "/etc/passwd"},
            "image",
            "image: there is no file '/etc/passwd' in the form: add it as a part of that name, or give a data: "
            "address.",
        ),
        ({"image": "https://example.org/a.png"}, "image", None),
        ({"overlap": 5}, "overlap", "overlap does not belong to the task generate: leave it out."),
        (
            {"num_outputs_per_prompt": 2},
            "num_outputs_per_prompt",
            "num_outputs_per_prompt: one request makes one video; send several.",
        ),
        ({"prompt": "x" * 10_000_000}, "prompt", "prompt has 10,000,000 characters: give at most 100,000."),
        ({"prompt": 5}, "prompt", "prompt is 5: give a text, which may be empty."),
        ({"conditions": [{"type": "image"}]}, "conditions", None),
        ({"steps": 2, "num_inference_steps": 3}, "num_inference_steps", None),
        ({"extra_params": {"solver": "magic"}}, "solver", "The solver 'magic' is unknown: choose euler or dpm++2m."),
    ],
)
def test_mistakes_are_one_sentence(
    service: Service, fields: dict[str, object], param: str | None, message: str | None
) -> None:
    error = service.refused(**fields)

    assert error["param"] == param
    assert error["message"] == message or (message is None and error["message"])
    assert not any(service.server.folders.incoming.iterdir())


FORM = "multipart/form-data; boundary=x"
PART = b"--x\r\nContent-Disposition: form-data"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"prompt": "\xff"}', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"noise": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"seed": 1, "seed": 2}', "application/json", 400),
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"nothing", FORM, 400),
        (PART + b"\r\n\r\n1\r\n--x--\r\n", FORM, 400),
        (PART + b'; name="prompt"\r\n\r\n\xff\r\n--x--\r\n', FORM, 400),
        (b'{"prompt": "' + b"x" * 60_000_000 + b'"}', "application/json", 413),
    ],
)
def test_bodies_that_cannot_be_read(service: Service, content: bytes, kind: str, status: int) -> None:
    answer = service.client.post("/v1/videos", content=content, headers={"content-type": kind})

    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_waiting_for_a_video(service: Service) -> None:
    with service.working():
        answer = service.client.post("/v1/videos/sync", json={"prompt": PROMPT, **QUICK})

    assert answer.headers["content-type"] == "video/mp4"
    assert answer.content == service.client.get(f"/v1/videos/{answer.headers['x-video-id']}/content").content


def test_events_tell_status_progress_and_previews(service: Service) -> None:
    video = service.post(prompt=PROMPT, steps=20)["id"]
    with service.working(), service.client.stream("GET", f"/v1/videos/{video}/events") as answer:
        blocks = "".join(answer.iter_text()).split("\n\n")

    events = [
        (block.split("\n")[0][7:], json.loads(block.split("\n")[1][6:]))
        for block in blocks
        if block.startswith("event")
    ]
    names = [name for name, _ in events]
    assert {"status", "progress", "preview"} <= set(names)
    assert events[0][1]["status"] == "queued"
    assert (names[-1], events[-1][1]["status"]) == ("status", "completed")
    image = next(data["image"] for name, data in events if name == "preview")
    assert Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))).n_frames == 5


def test_events_tell_of_a_clip_that_another_client_deletes(service: Service) -> None:
    video = service.made(prompt=PROMPT, **QUICK)["id"]
    told = []

    async def watch() -> None:
        async for event in service.server.events.of_owner("everyone"):
            told.append(event)
            if len(told) == 1:
                answer = await asyncio.to_thread(service.client.delete, f"/v1/videos/{video}")
                assert answer.status_code == 200
            else:
                return

    awaited(asyncio.wait_for(watch(), 60))

    assert told[1] == f'event: deleted\ndata: {{"id": "{video}"}}\n\n'


def test_models_health_and_numbers(service: Service) -> None:
    model = service.client.get("/v1/models").json()["data"][0]

    assert (model["id"], model["defaults"]["num_frames"], model["frames_per_latent"]) == ("tiny", 17, 4)
    assert service.client.get("/v1/models/tiny").json() == model
    assert service.client.get("/health").json() == {"status": "ok"}
    assert service.client.get("/ready").json() == {"status": "ready"}
    service.post(prompt=PROMPT)
    assert 'pusa_videos{status="queued"} 1.0' in service.client.get("/metrics").text
    assert service.client.get("/v1/characters").status_code == 404


def test_the_schema_is_the_one_in_the_repository(service: Service) -> None:
    kept = Path("src/pusa/serving/openapi.json")

    assert json.loads(kept.read_text()) == service.client.get("/openapi.json").json(), (
        "run `python -m pusa.serving.openapi`"
    )
