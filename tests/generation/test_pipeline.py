"""Every task is `generate` with other conditions; what is known stays bit for bit; a seed is a clip."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from pusa.core import schedules, sigmas
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import Cancelled, InputError
from pusa.generation.conditions import Target, resolve
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import load
from pusa.generation.settings import Settings

PROMPT = "a red circle moves left"


@pytest.fixture
def picture(noise_frames):
    return lambda seed: noise_frames(1, seed=seed)[0]


@pytest.fixture
def tasks(picture, noise_frames):
    """{task: (conditions, the slots that they fill)} for a clip of 17 frames."""
    video = noise_frames(17, seed=9)
    return {
        "text to video": ([], []),
        "image to video": ([Image(picture(1))], [0]),
        "last frame": ([Image(picture(1), frame=-1)], [4]),
        "start and end": ([Image(picture(1)), Image(picture(2), frame=-1)], [0, 4]),
        "keyframes": (
            [Image(picture(1), 3), Image(picture(2), "1s"), Image(picture(3), 16, encoding="single")],
            [1, 2, 4],
        ),
        "completion": ([Clip(video, frames=5), Clip(video, at=-1, start=-4)], [0, 1, 4]),
        "everything known": ([Clip(video)], [0, 1, 2, 3, 4]),
    }


@pytest.mark.parametrize(
    "task",
    ["text to video", "image to video", "last frame", "start and end", "keyframes", "completion", "everything known"],
)
def test_a_task_is_its_conditions(task, tasks, tiny_pipe):
    conditions, slots = tasks[task]
    clip = tiny_pipe.generate(PROMPT, conditions, seed=3)
    assert clip.frames.shape == (17, 32, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps == 8
    known = [slot for slot in range(5) if not clip.matrix.sigma[:, slot].any()]
    assert known == slots
    encoded, _ = resolve(conditions, Target(17, (32, 32), 8, "crop", tiny_pipe.backbone))
    free = tiny_pipe.generate(PROMPT, seed=3).latents if slots else tiny_pipe.noise(3, tiny_pipe.limits.settings())
    for slot in range(5):
        made = clip.latents[:, :, slot : slot + 1]
        if slot in slots:
            assert torch.equal(made, encoded[slot][0])
        else:
            assert not torch.equal(made, free[:, :, slot : slot + 1])  # the conditions reach the other frames too


def test_known_latents_are_those_of_the_autoencoder(tiny_pipe, picture, noise_frames):
    clip = tiny_pipe.generate(PROMPT, [Image(picture(1)), Image(picture(2), 8, encoding="single")])
    assert torch.equal(clip.latents[:, :, :1], tiny_pipe.encode(picture(1)[None]))
    assert torch.equal(clip.latents[:, :, 2:3], tiny_pipe.encode(picture(2)[None]))
    repeated = tiny_pipe.generate(PROMPT, [Image(picture(2), 8, encoding="repeat")])
    five = tiny_pipe.encode(np.stack([picture(2)] * 5))
    assert torch.equal(repeated.latents[:, :, 2:3], five[:, :, 1:])
    assert not torch.equal(five[:, :, 1:], five[:, :, :1])
    video = noise_frames(9)
    started = tiny_pipe.generate(PROMPT, [Clip(video)])
    assert torch.equal(started.latents[:, :, :3], tiny_pipe.encode(video))


def test_editing_starts_part_of_the_way_down(tiny_pipe, noise_frames):
    video = noise_frames(17)
    original = tiny_pipe.encode(video)

    def distance(strength):
        clip = tiny_pipe.generate(PROMPT, init=Clip(video), strength=strength)
        sigma = sigmas.shift(torch.tensor(strength, dtype=torch.float64), 5.0)
        assert torch.all(clip.matrix.sigma[0] == sigma)
        return float((clip.latents - original).abs().mean())

    distances = [distance(s) for s in (0.02, 0.3, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 0.2 * distances[2]
    kept = tiny_pipe.generate(PROMPT, [Image(video[0])], init=Clip(video), strength=0.5)
    assert torch.equal(kept.latents[:, :, 0], original[:, :, 0])
    shorter = tiny_pipe.generate(PROMPT, init=Clip(video, start=8), strength=0.01)
    assert len(shorter.frames) == 9
    assert (shorter.latents - tiny_pipe.encode(video[8:])).abs().max() < 0.3


def test_noise_on_a_condition_is_mixed_once_with_its_own_noise(tiny_pipe, picture):
    seen = []
    clip = tiny_pipe.generate(PROMPT, [Image(picture(1), noise=0.2)], steps=4, callback=lambda step: seen.append(step))
    assert torch.equal(clip.matrix.sigma[:, 0], clip.matrix.sigma[:, 1] * 0.2)
    known = tiny_pipe.encode(picture(1)[None])
    noise = tiny_pipe.noise(0, tiny_pipe.limits.settings())[:, :, :1]
    start = 0.8 * known + 0.2 * noise
    assert not torch.equal(clip.latents[:, :, :1], known)
    assert (clip.latents[:, :, :1] - start).abs().mean() < 0.3 * (noise - known).abs().mean()
    ignored = tiny_pipe.generate(PROMPT, [Image(picture(1), noise=1.0)])
    assert torch.equal(ignored.latents, tiny_pipe.generate(PROMPT).latents)


def test_the_initial_noise_is_torchs_own(tiny_pipe):
    noise = tiny_pipe.noise(0, Settings(frames=81, size=(1280, 720), steps=10, guidance=3.0, shift=5.0))
    assert noise.shape == (1, 16, 21, 90, 160)
    assert noise[0, 0, 0, 0, :4].tolist() == pytest.approx([-1.1258398, -1.1523602, -0.2505786, -0.4338788])
    assert noise[0, 0, 20, 0, :3].tolist() == pytest.approx([-0.3647546, -0.3775772, -2.3820398])


def test_text_to_video_is_what_the_stock_pipeline_makes(tiny_folder, tiny_pipe):
    stock = WanPipeline.from_pretrained(tiny_folder)
    stock.set_progress_bar_config(disable=True)
    stock_steps = stock.scheduler.set_timesteps
    stock.scheduler.set_timesteps = lambda n, device: stock_steps(sigmas=np.linspace(1, 0, n + 1)[:-1], device=device)
    settings = tiny_pipe.limits.settings(steps=4, guidance=3.0)
    expected = stock(
        PROMPT, "blurry", height=32, width=32, num_frames=17, num_inference_steps=4, guidance_scale=3.0,
        latents=tiny_pipe.noise(5, settings), output_type="latent",
    ).frames  # fmt: skip
    ours = tiny_pipe.generate(PROMPT, negative_prompt="blurry", steps=4, guidance=3.0, seed=5)
    torch.testing.assert_close(ours.latents, expected, atol=2e-5, rtol=1e-4)


def test_a_seed_is_a_clip_at_any_batch_size(tiny_pipe, picture):
    conditions = [Image(picture(1))]
    prompts = [PROMPT, "a blue square", "the camera pans right"]
    batch = tiny_pipe.generate(prompts, conditions, seed=7)
    for i, prompt in enumerate(prompts):
        alone = tiny_pipe.generate(prompt, conditions, seed=7 + i)
        assert torch.equal(batch[i].latents, alone.latents)
        assert np.array_equal(batch[i].frames, alone.frames)
        assert batch[i].recipe == alone.recipe


def test_guidance_of_one_asks_the_model_once(tiny_pipe, monkeypatch):
    calls = []
    forward = type(tiny_pipe.transformer).forward
    monkeypatch.setattr(
        type(tiny_pipe.transformer), "forward", lambda *a, **k: calls.append(k["timestep"]) or forward(*a, **k)
    )
    tiny_pipe.generate(PROMPT, steps=3, guidance=1)
    assert len(calls) == 3
    assert [float(t.max()) for t in calls] == pytest.approx([1000, 1000 * 10 / 11, 1000 * 5 / 7])
    assert all(t.shape == (1, 5) and t.dtype == torch.float32 for t in calls)
    calls.clear()
    tiny_pipe.generate(PROMPT, steps=3, guidance=2, guidance_batch="off")
    assert len(calls) == 6


def test_your_own_matrix_decides(tiny_pipe, picture):
    matrix = schedules.conditioned(schedules.staircase(sigmas.grid(3), frames=3), {0: 0.0})
    clip = tiny_pipe.generate(PROMPT, [Image(picture(1))], matrix=matrix)
    assert len(clip.frames) == 9
    assert clip.matrix == matrix
    assert clip.recipe["own_matrix"] is True
    assert torch.equal(clip.latents[:, :, :1], tiny_pipe.encode(picture(1)[None]))
    with pytest.raises(InputError, match="3 latent frames but 17 frames have 5"):
        tiny_pipe.generate(PROMPT, matrix=matrix, frames=17)
    with pytest.raises(InputError, match="has 5 steps but steps=4"):
        tiny_pipe.generate(PROMPT, matrix=matrix, steps=4)
    with pytest.raises(InputError, match="leave shift, schedule and strength out"):
        tiny_pipe.generate(PROMPT, matrix=matrix, shift=3.0)
    with pytest.raises(InputError, match="starts latent frame 0 at σ = 0: give a condition"):
        tiny_pipe.generate(PROMPT, matrix=matrix)


def test_a_renoising_matrix_draws_from_the_seed(tiny_pipe):
    matrix = schedules.renoising(schedules.synchronous(sigmas.grid(3), 3))
    first, again, other = (tiny_pipe.generate(PROMPT, matrix=matrix, seed=seed).latents for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = TimestepMatrix.from_sigma(matrix.sigma)
    assert not torch.equal(first, tiny_pipe.generate(PROMPT, matrix=plain, seed=1).latents)


def test_a_callback_sees_every_step_and_may_stop(tiny_pipe):
    seen = []
    tiny_pipe.generate(PROMPT, steps=3, callback=lambda step: seen.append((step.index, step.steps)))
    assert seen == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(Cancelled):
        tiny_pipe.generate(PROMPT, steps=3, callback=lambda step: False)


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt(), None])
def test_a_stopped_list_keeps_its_finished_clips(tiny_pipe, error):
    def stop(step):
        finished.append(step)
        if len(finished) == 3 and error:  # the first step of the second clip
            raise error
        return len(finished) < 3

    finished = []
    with pytest.raises(type(error) if error else Cancelled) as caught:
        tiny_pipe.generate(["one", "two", "three"], frames=5, seed=4, callback=stop)
    (clip,) = caught.value.clips
    assert clip.prompt == "one"
    assert torch.equal(clip.latents, tiny_pipe.generate("one", frames=5, seed=4).latents)
    assert "1 of 3 clips are finished" in caught.value.__notes__[0]


def test_clips_are_handed_out_one_by_one(tiny_pipe):
    with pytest.raises(InputError, match="There is no option 'step'"):
        tiny_pipe.generate_each(["one"], step=3)
    steps = []
    each = tiny_pipe.generate_each(["one", "two"], frames=5, seed=4, callback=steps.append)
    assert not steps
    assert next(each).recipe["seed"] == 4
    assert len(steps) == 2
    second = next(each)
    assert (second.prompt, second.recipe["seed"]) == ("two", 5)
    assert not list(each)


def test_what_a_sidecar_cannot_hold_is_refused_before_sampling(tiny_pipe, monkeypatch):
    monkeypatch.setattr(type(tiny_pipe), "recipe", lambda _: {"loras": [{"scale": float("nan")}]})
    with pytest.raises(InputError, match="The sidecar of the clip cannot hold its loras"):
        tiny_pipe.generate("x", frames=5, callback=lambda _: pytest.fail("it sampled"))


def test_one_frame_is_a_picture(tiny_pipe, picture):
    assert tiny_pipe.generate(PROMPT, frames=1).frames.shape == (1, 32, 32, 3)
    held = tiny_pipe.generate(PROMPT, [Image(picture(1), frame=-1)], frames=1)
    assert torch.equal(held.latents, tiny_pipe.encode(picture(1)[None]))


def test_encode_and_decode_are_public(tiny_pipe, noise_frames):
    z = tiny_pipe.encode(noise_frames(5))
    assert z.shape == (1, 16, 2, 4, 4)
    assert tiny_pipe.decode(z).shape == (5, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 80}, "80 frames .* use 77 or 81"),
        ({"size": (40, 32)}, "size 40x32 .* multiples of 16, as in 32x32"),
        ({"size": (0, 32)}, "size 0x32"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001: give a whole number from 1 to 1000"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"shift": 0.0}, "shift is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"solver": "heun"}, "'heun' is unknown"),
        ({"strength": 0.5}, "needs a clip to edit"),
        ({"fit": "zoom", "conditions": [Image(np.zeros((5, 4, 3), np.uint8))]}, "'zoom' is unknown"),
        ({"negative_prompt": None}, "negative_prompt is None: give a text"),
        ({"init": Clip(np.zeros((5, 32, 32, 3), np.uint8)), "strength": 0.0}, "strength is 0"),
        ({"init": Clip(np.zeros((6, 32, 32, 3), np.uint8))}, "6 frames cannot be edited.* with frames=5"),
        ({"init": Clip(np.zeros((5, 32, 32, 3), np.uint8), at=4)}, "all of the new clip"),
        ({"init": Clip(np.zeros((5, 32, 32, 3), np.uint8)), "frames": 9}, "9 frames from frame 0 on were requested"),
        ({"conditions": ["cat.png"]}, "cat.png does not exist"),
    ],
)
def test_bad_input_is_a_sentence(options, sentence, tiny_pipe):
    with pytest.raises(InputError, match=sentence):
        tiny_pipe.generate(PROMPT, **options)


@pytest.mark.parametrize(("prompt", "sentence"), [([], "prompts is empty"), ([3], "prompt is 3"), (3, "prompt is 3")])
def test_prompts_are_texts(prompt, sentence, tiny_pipe):
    with pytest.raises(InputError, match=sentence):
        tiny_pipe.generate(prompt)


def test_loading_with_loras(tiny_folder, tmp_path):
    from peft import LoraConfig

    from pusa.models.lora import runtime

    pipe = load(tiny_folder, device="cpu")
    plain = pipe.generate(PROMPT).latents
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    runtime.save(pipe.transformer, tmp_path / "a.safetensors")
    both = load(tiny_folder, lora=[tmp_path / "a.safetensors"], lora_scale=[0.5], device="cpu")
    assert not torch.equal(both.generate(PROMPT).latents, plain)
    (record,) = both.generate(PROMPT).recipe["loras"]
    assert (record["name"], record["scale"]) == ("a", 0.5)
    off = load(tiny_folder, lora=tmp_path / "a.safetensors", lora_scale=0.0, device="cpu")
    assert torch.equal(off.generate(PROMPT).latents, plain)
    with pytest.raises(InputError, match="2 LoRA scales for 1 LoRAs"):
        load(tiny_folder, lora=[tmp_path / "a.safetensors"], lora_scale=[1.0, 2.0], device="cpu")
    (tmp_path / "b").mkdir()
    for weight in (p for n, p in pipe.transformer.named_parameters() if ".lora_B" in n):
        weight.data.mul_(2)
    runtime.save(pipe.transformer, tmp_path / "b" / "a.safetensors")
    namesakes = load(tiny_folder, lora=[tmp_path / "a.safetensors", tmp_path / "b" / "a.safetensors"], device="cpu")
    assert [x.name for x in namesakes.backbone.loras] == ["a", "a_2"]
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "copy.safetensors")
    with pytest.raises(InputError, match=r"copy\.safetensors is there already, as 'a'"):
        load(tiny_folder, lora=[tmp_path / "a.safetensors", tmp_path / "copy.safetensors"], device="cpu")
    for call in (lambda: pipe.set_lora("none", 1.0), lambda: namesakes.remove_lora("b")):
        with pytest.raises(InputError, match=r"There is no LoRA '(none|b)': there is (none|a, a_2)\."):
            call()
    with pytest.raises(InputError, match="twice"):
        load(tiny_folder, lora=[tmp_path / "a.safetensors", tmp_path / "b" / ".." / "a.safetensors"], device="cpu")
