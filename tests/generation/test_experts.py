"""A model with two experts: the noisiest frame decides which one is asked, each with its own LoRAs and guidance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from pusa.core import Call, schedules, sigmas
from pusa.errors import InputError
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load
from pusa.generation.provenance import regenerate
from pusa.models.lora.header import LoraFile
from pusa.models.memory import profiles
from tests.models.lora_files import truth, written

PROMPT = "a red circle moves left on a black background"


@pytest.fixture
def pipe(experts_folder: Path) -> Pipeline:
    return load(experts_folder, device="cpu")


@pytest.fixture(scope="module")
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs whose names say what they are for."""
    stock = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    made = {}
    for seed, name in enumerate(("high_noise_pusa", "low_noise_pusa", "style")):
        place = tmp_path_factory.mktemp(name)
        file = written(place, "diffusers", *truth(stock, outer=False, whole=False, seed=seed, size=0.05))
        made[name] = file.rename(place / f"{name}.safetensors")
    return made


def alone(folder: Path, which: str) -> Pipeline:
    """One of the experts as a model of its own."""
    from pusa.models.loading import checkpoints

    return Pipeline(checkpoints.load(folder, expert=which, device="cpu"))  # type: ignore[arg-type]


def test_the_noisiest_frame_decides_also_with_a_clean_first_frame(experts_folder: Path, pipe: Pipeline) -> None:
    """Above the boundary the clip is what the first expert alone makes, below it goes on as the second one would."""
    grid = sigmas.grid(4)
    picture = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    whole = schedules.conditioned(schedules.synchronous(grid, 5), {0: 0.0})
    seen: list[torch.Tensor] = []
    upper: list[torch.Tensor] = []
    options = {"matrix": whole, "guidance": 1.0}
    clip = pipe.generate(PROMPT, [Image(picture)], **options, callback=lambda step: seen.append(step.latents))
    above = alone(experts_folder, "high")
    above.generate(PROMPT, [Image(picture)], **options, callback=lambda step: upper.append(step.latents))
    assert all(torch.equal(a, b) for a, b in zip(seen[:2], upper[:2], strict=True))
    assert not torch.equal(seen[2], upper[2])
    low = alone(experts_folder, "low")
    x, text = seen[1], low.encode_text([PROMPT])
    call = Call(2, 4, torch.arange(5), ~whole.moves[2:3])
    v = low.velocity(x, whole.model_sigma[2:3].float(), ("cond", text), call)
    step = (whole.sigma[3] - whole.sigma[2]).float()[None, None, :, None, None]
    torch.testing.assert_close(x + step * v, seen[2], rtol=0, atol=1e-6)
    assert torch.equal(clip.latents[:, :, 0], pipe.encode(picture[None])[:, :, 0])


def test_the_boundary_and_both_guidances(experts_folder: Path, pipe: Pipeline) -> None:
    high, low = alone(experts_folder, "high"), alone(experts_folder, "low")
    options = {"steps": 4, "guidance": 2.0}
    assert torch.equal(pipe.generate(PROMPT, boundary=0.0, **options).latents, high.generate(PROMPT, **options).latents)
    first_step_only = pipe.generate(PROMPT, boundary=1.0, steps=4, guidance=1.0, guidance_2=3.0)
    assert not torch.equal(first_step_only.latents, low.generate(PROMPT, steps=4, guidance=3.0).latents)
    calls = {"high": 0, "low": 0}
    for name, transformer in (("high", pipe.transformer), ("low", pipe.transformer_2)):
        transformer.register_forward_pre_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    clip = pipe.generate(PROMPT, steps=4, guidance=1.0, guidance_2=2.0, guidance_batch="off")
    assert calls == {"high": 2, "low": 4}  # two steps each; guidance other than 1 asks twice
    assert (clip.recipe["guidance"], clip.recipe["guidance_2"], clip.recipe["boundary"]) == (1.0, 2.0, 0.875)
    assert pipe.generate(PROMPT, steps=4, guidance=2.0).recipe["guidance_2"] == 2.0
    for wrong in ({"guidance_2": float("nan")}, {"boundary": 1.5}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            pipe.generate(PROMPT, **wrong)
    with pytest.raises(InputError, match="has one transformer, and guidance_2 is for two experts"):
        high.generate(PROMPT, guidance_2=2.0)


def test_each_expert_has_its_loras_at_its_strengths(
    experts_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    high, low, style = files.values()
    pipe = load(
        experts_folder,
        lora=[LoraFile(high, 1.5, "high"), LoraFile(low, 1.4, "low"), LoraFile(style, 0.5)],
        device="cpu",
    )
    assert [(x.name, x.expert, x.scale) for x in pipe.loras] == [
        ("high_noise_pusa", "high", 1.5), ("low_noise_pusa", "low", 1.4), ("style", "high", 0.5), ("style", "low", 0.5),
    ]  # fmt: skip
    clip = pipe.generate(PROMPT, steps=4)
    one = alone(experts_folder, "high")
    one.load_lora(high, 1.5)
    one.load_lora(style, 0.5)
    same = pipe.generate(PROMPT, steps=4, boundary=0.0)
    assert torch.equal(same.latents, one.generate(PROMPT, steps=4).latents)
    path = clip.save(tmp_path / "clip.mp4")
    again = regenerate(path)
    assert torch.equal(again.latents, clip.latents)
    assert again.recipe == clip.recipe
    pipe.set_lora("style", 0.7, expert="low")
    assert [x.scale for x in pipe.loras] == [1.5, 1.4, 0.5, 0.7]
    assert not torch.equal(pipe.generate(PROMPT, steps=4).latents, clip.latents)
    with pytest.raises(InputError, match="LoRAs are not those"):
        regenerate(path, pipe)
    pipe.set_lora("style", 0.5)
    assert torch.equal(pipe.generate(PROMPT, steps=4).latents, clip.latents)
    pipe.remove_lora("style")
    assert [x.name for x in pipe.loras] == ["high_noise_pusa", "low_noise_pusa"]
    with pytest.raises(InputError, match="no LoRA 'low_noise_pusa' on the high-noise expert"):
        pipe.remove_lora("low_noise_pusa", expert="high")


def test_a_file_for_both_experts_gives_each_its_own(
    experts_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    high, low, _ = files.values()
    both = {
        f"diffusion_model.transformer_{i}.{key.removeprefix('transformer.')}": value
        for i, path in ((1, high), (2, low))
        for key, value in load_file(path).items()
    }
    save_file(both, tmp_path / "both.safetensors")
    pipe = load(experts_folder, lora=[LoraFile(tmp_path / "both.safetensors", 0.7)], device="cpu")
    apart = load(experts_folder, lora=[LoraFile(high, 0.7, "high"), LoraFile(low, 0.7, "low")], device="cpu")
    clip = pipe.generate(PROMPT, steps=4)
    assert torch.equal(clip.latents, apart.generate(PROMPT, steps=4).latents)
    path = clip.save(tmp_path / "clip.mp4")
    assert torch.equal(regenerate(path).latents, clip.latents)


def test_mixed_up_loras_are_refused(
    experts_folder: Path, files: dict[str, Path], tiny_folder: Path, pipe: Pipeline
) -> None:
    high, low, style = files.values()
    for path, expert, flag in ((high, None, "high"), (high, "low", "high"), (low, "high", "low")):
        with pytest.raises(InputError, match=f"is for the {flag}-noise expert: give it with --lora-{flag}"):
            pipe.load_lora(path, expert=expert)
    assert pipe.loras == ()
    with pytest.raises(InputError, match="given twice"):
        load(experts_folder, lora=[LoraFile(style), LoraFile(style, 2.0, "low")], device="cpu")
    both = load(experts_folder, lora=[LoraFile(style, 1.0, "high"), LoraFile(style, 2.0, "low")], device="cpu")
    assert [(x.name, x.scale) for x in both.loras] == [("style", 1.0), ("style", 2.0)]
    with pytest.raises(InputError, match="one transformer and no high-noise expert"):
        load(tiny_folder, lora=LoraFile(style, 1.0, "high"), device="cpu")


@pytest.mark.parametrize("name", ["8gb", "24gb", "cpu"])
def test_memory_profiles_take_both(experts_folder: Path, pipe: Pipeline, name: str) -> None:
    """Disk offload changes nothing; fp8 rounds, in either expert."""
    plain = pipe.generate(PROMPT, steps=4).latents
    lean = load(experts_folder, memory=name, device="cpu")
    made = lean.generate(PROMPT, steps=4).latents
    if "transformer" in profiles.named(name).fp8:
        for transformer in (lean.transformer, lean.transformer_2):
            stored = {p.dtype for n, p in transformer.named_parameters() if n.endswith("ffn.net.2.weight")}
            assert name == "8gb" or stored == {torch.float8_e4m3fn}
        assert 0 < (made - plain).abs().max() < 0.5
    else:
        assert torch.equal(made, plain)


def test_only_the_expert_that_is_asked_is_on_the_device(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moves, on a device that only claims to be another one."""
    moves: list[tuple[str, str]] = []
    places = {"high": "cuda:0", "low": "cpu"}
    for name, transformer in (("high", pipe.transformer), ("low", pipe.transformer_2)):

        def to(device: str, name: str = name) -> None:
            places[name] = str(device)
            moves.append((name, str(device)))

        monkeypatch.setattr(transformer, "to", to)
        monkeypatch.setattr(
            type(transformer), "device",
            property(lambda self: torch.device(places["high" if self is pipe.transformer else "low"])),
        )  # fmt: skip
    monkeypatch.setattr(pipe, "_device", torch.device("cuda:0"))
    for wanted in (pipe.transformer, pipe.transformer_2, pipe.transformer_2, pipe.transformer):
        pipe._bring(wanted)
    assert moves == [("high", "cpu"), ("low", "cuda:0"), ("low", "cpu"), ("high", "cuda:0")]
