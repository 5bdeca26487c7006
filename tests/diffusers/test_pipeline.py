"""PusaPipeline: the clips are those of `pusa.load`, and its interface is that of a pipeline of diffusers."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler, WanPipeline
from PIL import Image as PILImage

import pusa
from pusa.diffusers import PusaPipeline
from pusa.errors import InputError
from pusa.generation.pipeline import Pipeline
from pusa.generation.provenance import regenerate

PROMPT = "a red circle moves left on a black background"
SETTINGS = {"num_frames": 5, "num_inference_steps": 2}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: PusaPipeline, *args: Any, **options: Any) -> torch.Tensor:
    (latents,) = pipe(*args, output_type="latent", return_dict=False, **SETTINGS | options)
    assert isinstance(latents, torch.Tensor)
    return latents


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> PusaPipeline:
    made: PusaPipeline = quiet(PusaPipeline.from_pretrained(tiny_folder))
    return made


def test_the_library_keeps_its_name() -> None:
    code = (
        "import pusa, sys; assert not {'torch', 'diffusers'} & sys.modules.keys();"
        "import pusa.diffusers, diffusers; assert diffusers.DiffusionPipeline;"
        "assert issubclass(pusa.diffusers.PusaPipeline, diffusers.DiffusionPipeline)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_clips_have_the_latents_of_the_project(
    pipe: PusaPipeline, tiny_pipe: Pipeline, noise_frames: Callable[..., Any]
) -> None:
    first, last = noise_frames(2)
    video = noise_frames(5, seed=1)
    same = {"frames": 5, "steps": 2}
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"generator": seeded(7)}, tiny_pipe.generate(PROMPT, seed=7, **same)),
        (
            {"image": first, "last_image": PILImage.fromarray(last), "noise": [0.2, 0.5]},
            tiny_pipe.generate(PROMPT, [pusa.Image(first, noise=0.2), pusa.Image(last, frame=-1, noise=0.5)], **same),
        ),
        (
            {"video": video, "num_frames": 9, "noise": [0.0, 0.3], "negative_prompt": "blurred"},
            tiny_pipe.generate(
                PROMPT, [pusa.Clip(video, noise=(0.0, 0.3))], frames=9, steps=2, negative_prompt="blurred"
            ),
        ),
        (
            {"video": list(map(PILImage.fromarray, video)), "strength": 0.5, "shift": 3.0, "solver": "dpm++2m"},
            tiny_pipe.generate(PROMPT, init=pusa.Clip(video), strength=0.5, shift=3.0, solver="dpm++2m", **same),
        ),
        (
            {"conditions": [pusa.Image(last, frame=3)], "guidance_scale": 1.0, "height": 32, "width": 48},
            tiny_pipe.generate(PROMPT, [pusa.Image(last, frame=3)], guidance=1.0, size=(48, 32), **same),
        ),
        (
            {"timestep_matrix": [[1, 1], [0.5, 1], [0, 0]], "num_inference_steps": None},
            tiny_pipe.generate(PROMPT, matrix=[[1, 1], [0.5, 1], [0, 0]], frames=5),
        ),
    ]
    for options, clip in cases:
        assert torch.equal(latents_of(pipe, PROMPT, **options), clip.latents), options


def test_frames_come_in_the_form_that_is_asked_for(pipe: PusaPipeline) -> None:
    made = pipe(PROMPT, **SETTINGS)
    (pixels,) = made.frames
    clip = made.clips[0]
    assert np.array_equal(np.rint(pixels * 255), clip.frames)
    assert made[0] is made.frames
    (tensor,) = pipe(PROMPT, output_type="pt", **SETTINGS).frames
    assert torch.equal(tensor, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    (pictures,) = pipe(PROMPT, output_type="pil", **SETTINGS).frames
    assert np.array_equal(np.stack(pictures), clip.frames)
    assert pipe(PROMPT, output_type="latent", **SETTINGS).clips == []


def test_a_picture_may_have_every_form(pipe: PusaPipeline, noise_frames: Callable[..., Any], tmp_path: Path) -> None:
    (first,) = noise_frames(1)
    path = tmp_path / "first.png"
    PILImage.fromarray(first).save(path)
    tensor = torch.from_numpy(first / 255).permute(2, 0, 1)
    forms = [path, str(path), first, first / 255, tensor, tensor[None].float(), [PILImage.fromarray(first)]]
    assert len({latents_of(pipe, PROMPT, image=form).numpy().tobytes() for form in forms}) == 1
    video = noise_frames(5)
    batch = torch.from_numpy(video / 255).permute(0, 3, 1, 2)
    films = [video, video / 255, batch, batch[None], list(video), [list(map(PILImage.fromarray, video))]]
    assert len({latents_of(pipe, PROMPT, video=film, num_frames=9).numpy().tobytes() for film in films}) == 1


def test_the_sidecar_of_a_clip_makes_it_again(tmp_path: Path, noise_frames: Callable[..., Any]) -> None:
    PILImage.fromarray(noise_frames(1)[0]).save(tmp_path / "first.png")
    made = quiet(PusaPipeline.from_pretrained("tiny"))(PROMPT, image=tmp_path / "first.png", noise=0.2, **SETTINGS)
    path = made.clips[0].save(tmp_path / "clip.mp4")
    assert torch.equal(regenerate(path).latents, made.clips[0].latents)


def test_several_clips_have_consecutive_seeds_or_a_generator_each(pipe: PusaPipeline) -> None:
    both = latents_of(pipe, [PROMPT, "a cat"], num_videos_per_prompt=2, negative_prompt=["x", "y"], generator=seeded(3))
    assert both.shape[0] == 4
    assert torch.equal(both[2:3], latents_of(pipe, "a cat", negative_prompt="y", generator=seeded(5)))
    each = latents_of(pipe, [PROMPT, "a cat"], generator=[seeded(8), seeded(2)])
    assert torch.equal(each[1:], latents_of(pipe, "a cat", generator=seeded(2)))


def test_a_generator_that_is_used_again_gives_other_clips(pipe: PusaPipeline) -> None:
    def three() -> list[torch.Tensor]:
        generator = seeded(3)
        return [latents_of(pipe, PROMPT, generator=generator) for _ in range(3)]

    first, again = three(), three()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({x.numpy().tobytes() for x in first}) == 3
    assert torch.equal(latents_of(pipe, PROMPT), latents_of(pipe, PROMPT, generator=seeded(0)))


def test_without_conditions_the_noise_is_that_of_the_stock_pipeline(pipe: PusaPipeline) -> None:
    stock = WanPipeline(**pipe.components, **pipe.parameters)
    generator = seeded(4)
    noise = stock.prepare_latents(1, 16, 32, 32, 5, torch.float32, torch.device("cpu"), generator)
    assert torch.equal(noise, pipe.pusa.noise(4, pipe.pusa.limits.settings(frames=5)))


def test_a_callback_sees_each_step_and_can_change_the_latents(pipe: PusaPipeline) -> None:
    seen: list[tuple[int, float, list[str]]] = []

    def watch(pipeline: PusaPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        assert pipeline is pipe
        assert tensors["latents"].shape == (1, 16, 2, 4, 4)
        seen.append((step, round(float(timestep)), sorted(tensors)))

    plain = latents_of(pipe, PROMPT, image=np.zeros((32, 32, 3)), shift=1.0)
    told = latents_of(
        pipe,
        PROMPT,
        image=np.zeros((32, 32, 3)),
        shift=1.0,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "denoised"],
    )
    assert seen == [(0, 1000, ["denoised", "latents"]), (1, 500, ["denoised", "latents"])]
    assert pipe.num_timesteps == 2
    assert torch.equal(plain, told)

    def darken(_: Any, step: int, __: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": 0.5 * tensors["latents"]} if step == 1 else tensors

    assert torch.equal(latents_of(pipe, PROMPT, callback_on_step_end=darken), 0.5 * latents_of(pipe, PROMPT))


def test_an_interrupted_call_returns_what_has_been_sampled(pipe: PusaPipeline) -> None:
    kept: list[torch.Tensor] = []

    def stop(pipeline: PusaPipeline, step: int, _: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept.append(tensors["latents"].clone())
        pipeline._interrupt = len(kept) == 3
        return tensors

    made = pipe([PROMPT] * 3, callback_on_step_end=stop, output_type="latent", **SETTINGS)
    assert torch.equal(made.frames[1:], kept[-1])
    assert len(made.frames) == 2
    assert pipe.interrupt
    kept.clear()
    pixels = pipe([PROMPT] * 3, callback_on_step_end=stop, **SETTINGS)
    assert pixels.frames.shape == (2, 5, 32, 32, 3)
    assert len(pixels.clips) == 1
    assert len(latents_of(pipe, PROMPT)) == 1, "the next call is not interrupted"


def test_the_progress_bar_counts_the_steps_of_all_clips(pipe: PusaPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        pipe.set_progress_bar_config(desc="clips")
        latents_of(pipe, [PROMPT] * 2)
    finally:
        quiet(pipe)
    assert "clips: 100%" in (shown := capsys.readouterr().err)
    assert "4/4" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latents": torch.zeros(1)}, "takes no latents, because the noise of a clip is a function of its seed"),
        ({"prompt_embeds": torch.zeros(1)}, "give prompt"),
        ({"seed": 3}, "generator"),
        ({"steps": 3}, "num_inference_steps"),
        ({"imagee": "a.png"}, "did you mean 'image'"),
        ({"image": [1, 2]}, "2 pictures"),
        ({"image": np.zeros((4, 4))}, r"\[4, 4\]"),
        ({"image": np.full((32, 32, 3), 255.0)}, "from 255 to 255"),
        ({"image": np.full((32, 32, 3), np.nan)}, "nan"),
        ({"image": torch.zeros(3, 32, 32, dtype=torch.int64)}, "int64"),
        ({"video": []}, "no frames"),
        ({"video": [PILImage.new("RGB", (32, 32)), PILImage.new("RGB", (16, 16))]}, "one size"),
        ({"image": "a.png", "noise": [0.1, 0.2]}, "2 numbers and 1 picture"),
        ({"image": "a.png", "video": np.zeros((5, 32, 32, 3)), "noise": [0.1, 0.2]}, "give one number"),
        ({"strength": 0.5}, "needs a video"),
        ({"num_frames": 6}, "5 or 9"),
        ({"height": 32}, "give both"),
        ({"prompt": None}, "give a text"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts"),
        ({"num_videos_per_prompt": 0}, "from 1 on"),
        ({"generator": 3}, "manual_seed"),
        ({"generator": torch.Generator().manual_seed(-1)}, "from 0 to"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 clips"),
        ({"output_type": "mp4"}, "np, pil, pt, latent"),
        ({"guidance_scale_2": 2.0}, "two experts"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "latents, denoised"),
        ({"callback_on_step_end": lambda *_: {"prompt_embeds": 1}}, "no effect"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, "shape"),
        ({"callback_on_step_end": lambda *_: {"latents": None}}, "of type NoneType"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "give a list"),
        ({"conditions": "a.png"}, "give a list"),
        ({"conditions": [pusa.Image("a.png")], "noise": 0.2}, "noise of its own"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_one_sentence(pipe: PusaPipeline, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        pipe(**{"prompt": PROMPT} | SETTINGS | options)
    assert "\n" not in str(error.value)


def test_guidance_below_one_is_none_as_in_diffusers(pipe: PusaPipeline) -> None:
    assert torch.equal(latents_of(pipe, PROMPT, guidance_scale=0.0), latents_of(pipe, PROMPT, guidance_scale=1.0))


def test_parts_cannot_be_exchanged_in_silence(pipe: PusaPipeline) -> None:
    with pytest.raises(InputError, match="shift and solver"):
        pipe.scheduler = UniPCMultistepScheduler()
    with pytest.raises(InputError, match="shift and solver"):
        PusaPipeline.from_pretrained("tiny", scheduler=UniPCMultistepScheduler())
    with pytest.raises(InputError, match="from_pretrained"):
        pipe.vae = pipe.vae
    if not torch.accelerator.is_available():
        with pytest.raises(InputError, match="no accelerator"):
            pipe.enable_model_cpu_offload()
    with pytest.raises(InputError, match="memory='16gb'"):
        pipe.enable_sequential_cpu_offload()


def test_the_type_of_the_networks_changes_as_in_diffusers(tiny_folder: Path) -> None:
    made = PusaPipeline.from_pretrained(tiny_folder, torch_dtype=torch.bfloat16)
    assert (made.transformer.dtype, made.vae.dtype) == (torch.bfloat16, torch.float32)
    quiet(made).to(torch.float32)
    assert made.transformer.dtype == torch.float32
    assert latents_of(made, PROMPT).isfinite().all()


def test_two_experts_change_at_the_boundary_ratio(experts_folder: Path) -> None:
    made: PusaPipeline = quiet(PusaPipeline.from_pretrained(experts_folder))
    assert made.config.boundary_ratio == 0.875
    plain = latents_of(made, PROMPT, guidance_scale=1.0)
    assert torch.equal(plain, pusa.load(experts_folder).generate(PROMPT, frames=5, steps=2, guidance=1.0).latents)
    assert not torch.equal(plain, latents_of(made, PROMPT, guidance_scale=1.0, guidance_scale_2=3.0))
    stock = WanPipeline.from_pretrained(experts_folder, boundary_ratio=0.5)
    other = quiet(PusaPipeline.from_pipe(stock))
    assert other.pusa.defaults.boundary == 0.5
    assert torch.equal(latents_of(other, PROMPT), latents_of(made, PROMPT, boundary=0.5))


# --------------------------------------------------------------------------------------------- loading, saving, serving


def test_from_pipe_shares_the_networks_and_leaves_the_stock_clips_as_they_were(
    pipe: PusaPipeline, tiny_folder: Path
) -> None:
    stock = quiet(WanPipeline.from_pretrained(tiny_folder))
    call = {"height": 32, "width": 32, "output_type": "latent", **SETTINGS}
    before = stock(PROMPT, generator=seeded(1), **call).frames
    made: PusaPipeline = quiet(PusaPipeline.from_pipe(stock))
    assert made.transformer is stock.transformer
    assert torch.equal(stock(PROMPT, generator=seeded(1), **call).frames, before)
    assert torch.equal(latents_of(made, PROMPT), latents_of(pipe, PROMPT))
    with pytest.raises(InputError, match="no component 'unet'"):
        PusaPipeline.from_pipe(stock, unet=None)
    with pytest.raises(InputError, match="WanPipeline"):
        PusaPipeline.from_pipe(3)  # type: ignore[arg-type]


def test_a_lora_of_unknown_origin_is_refused() -> None:
    embedded = PusaPipeline.from_pretrained("tiny")
    with pytest.raises(InputError, match="whose file is not known"):
        PusaPipeline.from_pipe(WanPipeline(**embedded.components, **embedded.parameters))
    assert PusaPipeline.from_pipe(embedded).pusa.loras == embedded.pusa.loras


def test_a_saved_folder_is_a_stock_folder(pipe: PusaPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    again: PusaPipeline = quiet(PusaPipeline.from_pretrained(tmp_path / "saved"))
    assert torch.equal(latents_of(again, PROMPT), latents_of(pipe, PROMPT))
    assert again.pusa.defaults == pipe.pusa.defaults
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "saved")) is WanPipeline


def test_saving_merges_the_loras_and_keeps_them(tmp_path: Path) -> None:
    made: PusaPipeline = quiet(PusaPipeline.from_pretrained("tiny"))
    with_adapter = latents_of(made, PROMPT)
    made.save_pretrained(tmp_path / "merged")
    assert torch.equal(latents_of(made, PROMPT), with_adapter)
    merged: PusaPipeline = quiet(PusaPipeline.from_pretrained(tmp_path / "merged"))
    assert merged.pusa.defaults.per_frame == ("transformer",)
    assert (latents_of(merged, PROMPT) - with_adapter).abs().max() < 1e-3
    with pytest.raises(InputError, match="exists already"):
        made.save_pretrained(tmp_path / "merged")
    made.unload_lora_weights()
    base = latents_of(made, PROMPT)
    assert (base - with_adapter).abs().max() > 1e-2
    made.save_pretrained(tmp_path / "base")
    assert torch.equal(latents_of(quiet(PusaPipeline.from_pretrained(tmp_path / "base")), PROMPT), base)


def test_loras_have_the_methods_of_diffusers() -> None:
    from pusa import embedded

    made: PusaPipeline = quiet(PusaPipeline.from_pretrained("tiny-base"))
    base = latents_of(made, PROMPT)
    made.load_lora_weights(embedded.folder(), weight_name="pusa.safetensors", adapter_name="adapter")
    assert made.get_list_adapters() == {"transformer": ["adapter"]}
    at_one = latents_of(made, PROMPT)
    made.set_adapters("adapter", embedded.STRENGTH)
    strong = latents_of(made, PROMPT)
    assert torch.equal(strong, latents_of(quiet(PusaPipeline.from_pretrained("tiny")), PROMPT))
    made.disable_lora()
    assert made.get_active_adapters() == []
    assert torch.equal(latents_of(made, PROMPT), base)
    made.enable_lora()
    assert torch.equal(latents_of(made, PROMPT), strong)
    made.set_adapters(["adapter"])
    assert torch.equal(latents_of(made, PROMPT), at_one)
    for call, words in (
        (lambda: made.set_adapters("style"), "There is no LoRA 'style'"),
        (lambda: made.set_adapters(["adapter"], [1, 2]), "2 weights for 1 adapters"),
        (lambda: made.load_lora_weights({"a": 1}), "save it, and give its path"),  # type: ignore[arg-type]
        (lambda: made.load_lora_weights("a.safetensors", load_into_transformer_2=True), "no transformer_2"),
        (lambda: made.fuse_lora(), "cannot be fused"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    made.delete_adapters("adapter")
    assert torch.equal(latents_of(made, PROMPT), base)


def test_loaded_components_and_options_of_diffusers_are_taken(pipe: PusaPipeline, tiny_folder: Path) -> None:
    made: PusaPipeline = quiet(PusaPipeline.from_pretrained(tiny_folder, vae=pipe.vae, low_cpu_mem_usage=True))
    assert made.vae is pipe.vae
    assert torch.equal(latents_of(made, PROMPT), latents_of(pipe, PROMPT))
    with pytest.raises(InputError, match="leave one of them out"):
        PusaPipeline.from_pretrained(tiny_folder, vae=pipe.vae, memory="8gb")
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        PusaPipeline.from_pretrained("tinny")


def test_a_released_text_encoder_is_loaded_again(tiny_folder: Path) -> None:
    made: PusaPipeline = quiet(PusaPipeline.from_pretrained(tiny_folder, memory="cpu", device="cpu"))
    first = latents_of(made, PROMPT)
    assert made.text_encoder is None
    assert torch.equal(latents_of(made, PROMPT), first)


def test_a_server_can_load_and_call_it(pipe: PusaPipeline, tiny_folder: Path, tmp_path: Path) -> None:
    """As the diffusers backend of vLLM-Omni 0.30 does: through DiffusionPipeline, by signature, in inference mode."""
    file = tmp_path / "pusa_pipeline.py"
    file.write_text("from pusa.diffusers import PusaPipeline\n")
    served = DiffusionPipeline.from_pretrained(
        str(tiny_folder), custom_pipeline=str(file), trust_remote_code=True, dtype=torch.float32
    )
    assert type(served) is PusaPipeline
    quiet(served).to(torch.device("cpu"))
    served.transformer.set_attention_backend("native")
    accepted = inspect.signature(served.__call__).parameters
    assert {"image", "last_image", "video", "noise", "shift", "conditions", "num_videos_per_prompt"} <= accepted.keys()
    assert not {"seed", "latents", "fps", "resolution", "sigmas"} & accepted.keys()
    call = {"prompt": PROMPT, "image": PILImage.new("RGB", (32, 32)), "noise": 0.2, "guidance_scale": 0.0}
    with torch.inference_mode():
        frames = [served(**call, generator=seeded(3), output_type="np", **SETTINGS).frames for _ in range(2)]
    assert np.array_equal(*frames)
    assert np.array_equal(frames[0], pipe(**call, generator=seeded(3), **SETTINGS).frames)
