"""`prepare` fills the cache and `CachedSamples` reads it, on small random clips and the random Wan of conftest."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from pusa.errors import InputError
from pusa.files import sha256
from pusa.generation.pipeline import Pipeline
from pusa.media.videos import write_video
from pusa.models.loading.checkpoints import load
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import cache, samples
from pusa.training.data.cache import Cache, CachedSamples, Prepared
from pusa.training.data.fingerprints import Fingerprint, fingerprint
from pusa.training.data.samples import Bucket, Cut, Plan, VideoFile
from pusa.training.data.tensor_store import Store

FPS = 8.0
SMALL = Bucket(32, 32, 5)
NoiseFrames = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def components(tiny_pipe: Pipeline) -> WanBackbone:
    return tiny_pipe.backbone


@pytest.fixture
def data(tmp_path: Path, noise_frames: NoiseFrames) -> Path:
    """Six clips of 5 frames, two of them with the same caption."""
    return write_data(tmp_path / "data", noise_frames, 6)


def write_data(folder: Path, noise_frames: NoiseFrames, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        write_video(folder / f"{i}.mp4", noise_frames(5, seed=i), FPS)
        (folder / f"{i}.txt").write_text("a red circle" if i < 2 else f"a blue square {i % 9}")
    return folder


def plan_of(data: Path, *buckets: Bucket) -> Plan:
    return samples.survey(data, buckets or (SMALL,), FPS, GEOMETRIES[16])


def counts(done: Prepared) -> tuple[int, int, int, int, int]:
    return done.made, done.kept, done.shared, len(done.failed), done.captions


def files(folder: Path) -> dict[str, bytes]:
    """What is in a cache, without the file of claims."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "claims")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def entry(cached: CachedSamples, index: int, kind: str = "latents") -> Path:
    store, cut = cached.cache.store, cached.plan.cuts[index]
    return store.path(cached.cache.latents(cut) if kind == "latents" else cached.cache.contexts(cut)[0])


# ------------------------------------------------------------------------------------------------- what is in a sample


def test_a_sample_is_the_clip_encoded_bit_for_bit(tmp_path: Path, data: Path, components: WanBackbone) -> None:
    plan = plan_of(data)
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert counts(done) == (6, 0, 0, 0, 6)  # five captions and the empty one
    cached = CachedSamples(plan, fingerprint(components, FPS), tmp_path / "cache")
    assert len(cached) == 6
    assert cached.buckets == [SMALL] * 6
    assert len(set(cached.keys)) == 6
    for cut, sample in zip(plan.cuts, cached, strict=True):
        assert sample.latents.dtype == torch.float32
        assert torch.equal(sample.latents, components.encode(samples.read(cut, FPS))[0])
        expected = components.encode_text([cut.file.caption]).tokens[0]
        assert sample.context.shape == (512, 32)
        assert torch.equal(sample.context, expected)
        assert (sample.caption, sample.bucket) == (cut.file.caption, SMALL)
    empty = components.encode_text([""]).tokens[0]
    assert torch.equal(cached.empty_context, empty)
    assert not torch.equal(cached.empty_context, cached[0].context)
    assert cached[0].key != cached[1].key


def test_every_variant_of_a_caption_is_in_the_cache(tmp_path: Path, data: Path, components: WanBackbone) -> None:
    (data / "0.txt").write_text("a red circle\na green circle\na blue circle")
    plan = samples.survey(data, [SMALL], FPS, GEOMETRIES[16], variants=True)
    single = plan_of(data)
    assert counts(cache.prepare(plan, components, tmp_path / "cache")) == (6, 0, 0, 0, 8)
    cached = CachedSamples(plan, fingerprint(components, FPS), tmp_path / "cache")
    captions = ["a red circle", "a green circle", "a blue circle"]
    for draw, caption in ((0.0, 0), (0.3, 0), (0.34, 1), (0.999, 2)):
        sample = cached.captioned(0, draw)
        assert sample.caption == captions[caption]
        assert torch.equal(sample.context, components.encode_text([captions[caption]]).tokens[0])
        assert torch.equal(sample.latents, cached[0].latents)
    assert (cached[0].caption, cached.captioned(1, 0.999).caption) == ("a red circle", "a red circle")
    assert cached.captioned(0, 0.0).key != cached.captioned(0, 0.5).key
    Store(tmp_path / "cache").path(cached.cache.text("a blue circle")).unlink()
    assert cached.cache.missing(plan) == [plan.cuts[0]]
    assert cached.cache.missing(single) == list(single.cuts[:1]), "the three lines are one caption there"


def test_a_clip_without_a_caption_has_the_empty_context(tmp_path: Path, data: Path, components: WanBackbone) -> None:
    (data / "3.txt").unlink()
    plan = samples.survey(data, [SMALL], FPS, GEOMETRIES[16], uncaptioned=True)
    cache.prepare(plan, components, tmp_path / "cache")
    cached = CachedSamples(plan, fingerprint(components, FPS), tmp_path / "cache")
    assert (cached[3].caption, cached.captioned(3, 0.9).caption) == ("", "")
    assert torch.equal(cached[3].context, cached.empty_context)


def test_contexts_lie_on_disk_without_their_padding_and_once_per_caption(
    tmp_path: Path, data: Path, components: WanBackbone
) -> None:
    plan = plan_of(data)
    done = cache.prepare(plan, components, tmp_path / "cache")
    contexts = [name for name in files(tmp_path / "cache") if name.startswith("context/")]
    assert len(contexts) == 6
    for name in contexts:
        with safe_open(tmp_path / "cache" / name, "pt") as file:
            length, width = file.get_slice("context").get_shape()
            assert length < 40
            assert width == 32
    assert done.bytes == sum(map(len, files(tmp_path / "cache").values()))


def test_the_dtype_of_the_text_encoder_is_kept(tmp_path: Path, data: Path, tiny_folder: Path) -> None:
    components = load(str(tiny_folder), device="cpu", dtype=torch.bfloat16)
    cache.prepare(plan_of(data), components, tmp_path / "cache")
    cached = CachedSamples(plan_of(data), fingerprint(components, FPS), tmp_path / "cache")
    assert cached[0].context.dtype == torch.bfloat16
    assert cached[0].latents.dtype == torch.float32


def test_the_cache_of_a_clip_is_the_same_bytes_wherever_it_is_made(
    tmp_path: Path, data: Path, components: WanBackbone
) -> None:
    cache.prepare(plan_of(data), components, tmp_path / "one")
    cache.prepare(plan_of(data), components, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


# ------------------------------------------------------------------------------------------------- stale entries


def test_the_second_time_nothing_is_encoded(
    tmp_path: Path, data: Path, components: WanBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.prepare(plan_of(data), components, tmp_path / "cache")
    before = files(tmp_path / "cache")
    monkeypatch.setattr(samples, "read", None)
    done = cache.prepare(plan_of(data), components, tmp_path / "cache")
    assert counts(done) == (0, 6, 0, 0, 0)
    assert files(tmp_path / "cache") == before


def test_a_new_caption_is_encoded_alone(tmp_path: Path, data: Path, components: WanBackbone) -> None:
    cache.prepare(plan_of(data), components, tmp_path / "cache")
    old = CachedSamples(plan_of(data), fingerprint(components, FPS), tmp_path / "cache")
    (data / "3.txt").write_text("something else")
    done = cache.prepare(plan_of(data), components, tmp_path / "cache")
    assert counts(done) == (0, 6, 0, 0, 1)
    new = CachedSamples(plan_of(data), fingerprint(components, FPS), tmp_path / "cache")
    assert new.keys == old.keys
    assert not torch.equal(new[3].context, old[3].context)
    assert new.fingerprint != old.fingerprint


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_one_changed_weight_is_another_model(
    part: str, tmp_path: Path, data: Path, components: WanBackbone, tiny_folder: Path
) -> None:
    cache.prepare(plan_of(data), components, tmp_path / "cache")
    other = load(str(tiny_folder), device="cpu")
    weights = max(getattr(other, part).parameters(), key=torch.numel)
    weights.data.view(-1)[weights.numel() // 2] += 1e-3
    with pytest.raises(InputError, match="run `pusa prepare`"):
        CachedSamples(plan_of(data), fingerprint(other, FPS), tmp_path / "cache")
    done = cache.prepare(plan_of(data), other, tmp_path / "cache")
    assert counts(done) == ((6, 0, 0, 0, 0) if part == "vae" else (0, 6, 0, 0, 6))


def test_the_fingerprint_does_not_depend_on_what_was_done_with_the_model(
    components: WanBackbone, tiny_folder: Path
) -> None:
    fresh = load(str(tiny_folder), device="cpu")
    before = fingerprint(fresh, FPS)
    fresh.encode_text(["a red circle"])
    assert fingerprint(fresh, FPS) == before == fingerprint(components, FPS)


@given(st.data())
def test_whatever_changes_the_pixels_changes_the_key(draw: st.DataObject) -> None:
    def one(last: Cut | None = None) -> tuple[Cut, Fingerprint]:
        pick = draw.draw
        file = VideoFile(Path(pick(st.sampled_from("ab"))), (pick(st.sampled_from("xy")),), 9, 8.0, 64, 64,
                         pick(st.sampled_from(("00", "11"))))  # fmt: skip
        bucket = Bucket(pick(st.sampled_from((32, 64))), pick(st.sampled_from((32, 64))), pick(st.sampled_from((1, 5))))
        fps = pick(st.sampled_from((8.0, 16.0)))
        made = Fingerprint(pick(st.sampled_from("vw")), pick(st.sampled_from("tu")), fps, 512)
        return Cut(file, bucket, pick(st.sampled_from((0.0, 0.5)))), made

    def content(cut: Cut, made: Fingerprint) -> tuple[object, ...]:
        return cut.file.sha256, cut.bucket, cut.start, made.vae, made.fps

    (cut, made), (other, other_made) = one(), one()
    same = content(cut, made) == content(other, other_made)
    assert (Cache.key(cut, made) == Cache.key(other, other_made)) == same


# ------------------------------------------------------------------------------------------------- damaged entries


@pytest.mark.parametrize("kind", ["latents", "context"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "empty", "flipped"])
def test_a_damaged_entry_is_named_when_read_and_remade_by_prepare(
    kind: str, damage: str, tmp_path: Path, data: Path, components: WanBackbone
) -> None:
    plan, made = plan_of(data), fingerprint(components, FPS)
    cache.prepare(plan, components, tmp_path / "cache")
    cached = CachedSamples(plan, made, tmp_path / "cache")
    whole, path = files(tmp_path / "cache"), entry(cached, 4, kind)
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        path.write_bytes({"truncated": content[:-9], "empty": b"", "flipped": flipped}[damage])
    with pytest.raises(InputError, match=r"4\.mp4: the cache entry .* run `pusa prepare` again"):
        cached[4]
    cached[3]
    assert [cut.file.path.name for cut in cached.cache.missing(plan, verify=True)] == ["4.mp4"]
    if damage != "flipped":
        with pytest.raises(InputError, match=r"no complete entry for .*4\.mp4: run `pusa prepare`"):
            CachedSamples(plan, made, tmp_path / "cache")
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert counts(done) == ((1, 5, 0, 0, 0) if kind == "latents" else (0, 6, 0, 0, 1))
    assert files(tmp_path / "cache") == whole


# ------------------------------------------------------------------------------------------------- clips that fail


def test_a_clip_damaged_in_the_middle_is_named_and_the_others_are_cached(
    tmp_path: Path, data: Path, components: WanBackbone
) -> None:
    plan = plan_of(data)
    content = bytearray((data / "3.mp4").read_bytes())
    content[-200:] = bytes(200)
    (data / "3.mp4").write_bytes(content)
    cuts = [
        replace(cut, file=replace(cut.file, sha256=sha256(cut.file.path)))  # as if the survey had not seen it
        for cut in plan.cuts
    ]
    plan = replace(plan, cuts=tuple(cuts))
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert counts(done)[:4] == (5, 0, 0, 1)
    (problem,) = done.failed
    assert (problem.path, problem.kind) == (data / "3.mp4", "unreadable")
    with pytest.raises(InputError, match=r"3\.mp4"):
        CachedSamples(plan, fingerprint(components, FPS), tmp_path / "cache")
    rest = replace(plan, cuts=tuple(cut for cut in plan.cuts if cut.file.path != problem.path))
    assert len(list(CachedSamples(rest, fingerprint(components, FPS), tmp_path / "cache"))) == 5


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_clip_that_changes_is_noticed(
    when: str,
    tmp_path: Path,
    data: Path,
    components: WanBackbone,
    noise_frames: NoiseFrames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(data)
    victim, read = data / "2.mp4", samples.read

    def change() -> None:
        write_video(victim, noise_frames(5, seed=99), FPS)

    def reading(cut: Cut, fps: float) -> NDArray[np.uint8]:
        frames = read(cut, fps)
        if cut.file.path == victim:
            change()
        return frames

    if when == "before":
        change()
    else:
        monkeypatch.setattr(samples, "read", reading)
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert counts(done)[:4] == (5, 0, 0, 1)
    assert [(problem.path, problem.kind) for problem in done.failed] == [(victim, "changed")]
    monkeypatch.undo()
    again = cache.prepare(plan_of(data), components, tmp_path / "cache")
    assert counts(again)[:4] == (1, 5, 0, 0)


def test_a_clip_that_vanishes_is_named(tmp_path: Path, data: Path, components: WanBackbone) -> None:
    plan = plan_of(data)
    (data / "0.mp4").unlink()
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert [(problem.path, problem.kind) for problem in done.failed] == [(data / "0.mp4", "missing")]
    assert done.made == 5


def test_a_full_disk_is_one_sentence_and_no_half_file(
    tmp_path: Path, data: Path, components: WanBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 4:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    plan = plan_of(data)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="the disk is full") as caught:
        cache.prepare(plan, components, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert len(files(tmp_path / "cache")) == 3
    monkeypatch.undo()
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert done.made + done.captions == 12 - 3


@pytest.mark.parametrize("blocked", ["cache", "parent"])
def test_a_cache_that_cannot_be_a_folder_is_refused(
    blocked: str, tmp_path: Path, data: Path, components: WanBackbone
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if blocked == "cache" else tmp_path / "file" / "cache"
    with pytest.raises(InputError, match="choose another folder"):
        cache.prepare(plan_of(data), components, folder)


# ------------------------------------------------------------------------------------------------- official samples


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Two samples as the official trainer writes them."""
    folder = tmp_path / "official"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        context = torch.randn(1, 512, 32, generator=generator).bfloat16()
        context[:, 7 + i :] = 0
        z = torch.randn(16, 2, 4, 4, generator=generator).bfloat16()
        content = {"latents": z, "prompt_emb": {"context": context}, "image_emb": {}}
        torch.save(content, folder / f"{i}.mp4.tensors.pth")
    return folder


def test_official_samples_are_taken_as_they_are(tmp_path: Path, official: Path, components: WanBackbone) -> None:
    plan = plan_of(official)
    done = cache.prepare(plan, components, tmp_path / "cache")
    assert counts(done) == (2, 0, 0, 0, 3)
    cached = CachedSamples(plan, fingerprint(components, FPS), tmp_path / "cache")
    for cut, sample in zip(plan.cuts, cached, strict=True):
        content = torch.load(cut.file.path, weights_only=True)
        assert torch.equal(sample.latents, content["latents"].float())
        assert torch.equal(sample.context, content["prompt_emb"]["context"][0])
    assert cached.empty_context.shape == (512, 32)
    assert counts(cache.prepare(plan, components, tmp_path / "cache")) == (0, 2, 0, 0, 0)


def test_official_samples_of_another_model_are_named(tmp_path: Path, official: Path, components: WanBackbone) -> None:
    content = torch.load(official / "1.mp4.tensors.pth", weights_only=True)
    content["prompt_emb"]["context"] = torch.zeros(1, 512, 4096)
    torch.save(content, official / "1.mp4.tensors.pth")
    done = cache.prepare(plan_of(official), components, tmp_path / "cache")
    (problem,) = done.failed
    assert "made for another model" in problem.reason
    assert done.made == 1


# ------------------------------------------------------------------------------------------------- several processes

NURSERY = """
import json, os, sys
from pathlib import Path
import torch
from pusa.models.loading.checkpoints import load
from pusa.models.wan.geometry import GEOMETRIES
from pusa.training.data import cache, samples
torch.set_num_threads(1)
components = load(sys.argv[1], device="cpu")
plans = {}
for line in sys.stdin:
    data, folder, world = json.loads(line)
    if data not in plans:
        plans[data] = samples.survey(data, [samples.Bucket(32, 32, 5)], 8.0, GEOMETRIES[16])
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            done = cache.prepare(plans[data], components, Path(folder), rank=rank, world=world)
            counts = [done.made, done.kept, done.shared, len(done.failed), done.captions]
            Path(f"{folder}.{rank}.json").write_text(json.dumps(counts))
            os._exit(0)
        children.append(child)
    print(json.dumps(children), flush=True)
    for child in children:
        os.waitpid(child, 0)
    print("done", flush=True)
"""


class Nursery:
    """Starts processes that prepare the same data, without importing torch anew for each."""

    def __init__(self, model: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY, str(model)], stdin=pipe, stdout=pipe, text=True)

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, data: Path, folder: Path, world: int = 1) -> list[int]:
        """The process ids of `world` processes."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(data), str(folder), world]) + "\n")
        self.process.stdin.flush()
        children: list[int] = json.loads(self._read())
        return children

    def join(self) -> None:
        assert self._read() == "done"


@pytest.fixture
def nursery(tiny_folder: Path) -> Iterator[Nursery]:
    started = Nursery(tiny_folder)
    yield started
    started.process.kill()
    started.process.communicate()


def outcomes(folder: Path, world: int) -> list[list[int]]:
    """made, kept, shared, failed, captions of each process."""
    return [json.loads(Path(f"{folder}.{rank}.json").read_text()) for rank in range(world)]


def assert_whole(data: Path, components: WanBackbone, folder: Path) -> None:
    """Everything is there, exactly as one process makes it, and nothing is left over."""
    reference = folder.with_name("reference")
    cache.prepare(plan_of(data), components, reference)
    assert files(folder) == files(reference)


@pytest.mark.slow
def test_three_processes_share_a_cache_without_a_lost_or_a_doubled_clip(
    tmp_path: Path, noise_frames: NoiseFrames, components: WanBackbone, nursery: Nursery
) -> None:
    data, folder = write_data(tmp_path / "data", noise_frames, 24), tmp_path / "cache"
    nursery.start(data, folder, 3)
    nursery.join()
    results = outcomes(folder, 3)
    assert sum(made for made, *_ in results) == 24
    assert sum(captions for *_, captions in results) == 11  # ten captions and the empty one
    assert all(made + kept + shared == 24 and failed == 0 for made, kept, shared, failed, _ in results)
    assert sum(made > 0 for made, *_ in results) >= 2
    assert_whole(data, components, folder)


@pytest.mark.slow
def test_processes_whose_neighbour_is_killed_do_its_share(
    tmp_path: Path, noise_frames: NoiseFrames, components: WanBackbone, nursery: Nursery
) -> None:
    data, folder = write_data(tmp_path / "data", noise_frames, 24), tmp_path / "cache"
    children = nursery.start(data, folder, 3)
    wait_for(folder, 5)
    os.kill(children[2], signal.SIGKILL)
    nursery.join()
    assert not Path(f"{folder}.2.json").exists()
    assert all(made + kept + shared == 24 for made, kept, shared, *_ in outcomes(folder, 2))
    assert_whole(data, components, folder)


@pytest.mark.slow
def test_after_kill_9_at_random_moments_the_same_command_goes_on(
    tmp_path: Path, noise_frames: NoiseFrames, components: WanBackbone, nursery: Nursery
) -> None:
    data, folder = write_data(tmp_path / "data", noise_frames, 80), tmp_path / "cache"
    rng = random.Random(0)
    there: dict[str, bytes] = {}
    for _ in range(20):
        (child,) = nursery.start(data, folder)
        wait_for(folder, len(there) + rng.randint(1, 4))
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        nursery.join()
        now = {name: content for name, content in files(folder).items() if ".part" not in name}
        assert there.items() <= now.items(), "what was there stays"
        there = now
    store = Store(folder)
    assert all(store.contains(f"{Path(name).parts[0]}/{Path(name).stem}", verify=True) for name in there)
    assert not Path(f"{folder}.0.json").exists(), "it ended before it was killed"
    kept = sum(name.startswith("latents/") for name in there)
    assert 0 < kept < 80
    nursery.start(data, folder)
    nursery.join()
    ((made, found, shared, failed, _),) = outcomes(folder, 1)
    assert (made, found, shared, failed) == (80 - kept, kept, 0, 0)
    assert_whole(data, components, folder)


def wait_for(folder: Path, count: int) -> None:
    end = time.monotonic() + 600
    while sum(path.suffix == ".safetensors" for path in folder.rglob("*")) < count and time.monotonic() < end:
        time.sleep(0.002)
