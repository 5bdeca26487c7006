"""A saved clip is three files, written whole or not at all, that make the clip again or say why not."""

from __future__ import annotations

import dataclasses
import json
import warnings

import av
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open

from pusa import embedded
from pusa.core import schedules, sigmas
from pusa.errors import InputError
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import extend, load, transition
from pusa.generation.provenance import read, regenerate
from pusa.media.images import write_image
from pusa.media.videos import write_video
from pusa.models.lora import runtime

PROMPT = "a red circle moves left"


@pytest.fixture
def files(tmp_path, noise_frames):
    write_image(tmp_path / "start.png", noise_frames(1)[0])
    write_video(tmp_path / "video.mp4", noise_frames(17), fps=8)
    return tmp_path


def test_three_files_of_one_stem(tiny_pipe, tmp_path):
    clip = tiny_pipe.generate(PROMPT, seed=4)
    assert clip.save(tmp_path / "new" / "clip.mp4") == tmp_path / "new" / "clip.mp4"
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert names == ["clip.json", "clip.latents.safetensors", "clip.mp4"]
    with av.open(str(tmp_path / "new" / "clip.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (8, 17)
    with safe_open(tmp_path / "new" / "clip.latents.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("latents"), clip.latents)
    recipe = json.loads((tmp_path / "new" / "clip.json").read_text())
    assert {**clip.recipe, "result": recipe["result"]} == recipe
    assert recipe["seed"] == 4
    assert recipe["result"]["frames"] == 17
    assert recipe["versions"]["torch"] == torch.__version__


def test_every_task_is_remade_bit_for_bit(tiny_pipe, files):
    first = tiny_pipe.generate(PROMPT, [Image(files / "start.png", noise=0.1)], frames=9, seed=2)
    path = first.save(files / "first.mp4")
    matrix = schedules.staircase(sigmas.grid(2), 3)
    clips = {
        "first": first,
        "keyframe": tiny_pipe.generate(PROMPT, [Image(str(files / "start.png"), "1s", encoding="single")], frames=9),
        "completion": tiny_pipe.generate(
            PROMPT,
            [Clip(files / "video.mp4", at=-1, start=-8, noise=[0, 0.2])],
            frames=9,
            negative_prompt="blurry",
            steps=3,
        ),
        "edit": tiny_pipe.generate(PROMPT, init=Clip(files / "video.mp4", start=4), frames=13, strength=0.4),
        "matrix": tiny_pipe.generate(PROMPT, matrix=matrix, guidance=1, solver="dpm++2m"),
        "second of a batch": tiny_pipe.generate([PROMPT, "a blue square"], seed=8)[1],
        "reused": tiny_pipe.generate(PROMPT, [Clip(first, frames=5)], seed=3),
        "forward": extend(tiny_pipe, path, PROMPT, frames=4),
        "backward": extend(tiny_pipe, first, PROMPT, frames=4, direction="backward", noise=0.2),
        "transition": transition(tiny_pipe, first, files / "video.mp4", PROMPT, shift=3.0),
    }
    for name, clip in clips.items():
        again = regenerate(clip.saved["path"] if clip.saved else clip.save(files / f"{name}.mp4"), tiny_pipe)
        assert torch.equal(again.latents, clip.latents), name
        assert np.array_equal(again.frames, clip.frames), name
        assert again.recipe == clip.recipe, name


def test_the_model_and_its_loras_are_loaded_again(tiny_folder, tmp_path):
    pipe = load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False), "mine"
    )
    runtime.save(pipe.transformer, tmp_path / "mine.safetensors")
    pipe.load_lora(tmp_path / "mine.safetensors", 1.4, "mine")
    clip = pipe.generate(PROMPT)
    path = clip.save(tmp_path / "clip.mp4")
    assert torch.equal(regenerate(path.with_suffix(".json")).latents, clip.latents)
    pipe.load_lora(tmp_path / "mine.safetensors", 1.0, "mine")
    with pytest.raises(InputError, match="LoRAs are not those"):
        regenerate(path, pipe)
    with pytest.raises(InputError, match=r"not the one that made the clip: its dtype differs"):
        regenerate(path, load(tiny_folder, device="cpu"))
    (tmp_path / "mine.safetensors").unlink()
    with pytest.raises(InputError, match=r"mine.safetensors, .* is missing"):
        regenerate(path)


def test_all_strengths_are_remade(tiny_folder, tmp_path):
    """Three files of three dialects, stacked, then changed, one replaced and one off: only the last strengths count."""
    from diffusers import WanTransformer3DModel

    from tests.models.lora_files import truth, written

    stock = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    paths = {}
    for seed, dialect in enumerate(("lightx2v", "peft", "kohya")):
        (tmp_path / dialect).mkdir()
        whole = dialect == "lightx2v"
        paths[dialect] = written(
            tmp_path / dialect, dialect, *truth(stock, outer=whole, whole=whole, seed=seed, size=0.05)
        )
    pipe = load(tiny_folder, lora=list(paths.values()), lora_scale=[1.0, 0.5, 2.0], device="cpu")
    assert [x.name for x in pipe.loras] == ["style", "style_2", "style_3"]
    first = pipe.generate(PROMPT)
    pipe.set_lora("style", 0.3)
    pipe.set_lora("style_3", 0.0)
    pipe.load_lora(paths["peft"], 1.4)
    assert [(x.name, x.scale) for x in pipe.loras] == [("style", 0.3), ("style_3", 0.0), ("style_2", 1.4)]
    clip = pipe.generate(PROMPT)
    assert not torch.equal(clip.latents, first.latents)
    path = clip.save(tmp_path / "clip.mp4")
    again = regenerate(path)
    assert torch.equal(again.latents, clip.latents)
    assert again.recipe == clip.recipe
    pipe.set_lora("style_3", 0.1)
    with pytest.raises(InputError, match="LoRAs are not those"):
        regenerate(path, pipe)
    for name in ("style", "style_2", "style_3"):
        pipe.remove_lora(name)
    assert torch.equal(pipe.generate(PROMPT).latents, load(tiny_folder, device="cpu").generate(PROMPT).latents)
    config = paths["peft"] / "adapter_config.json"
    config.write_text(config.read_text().replace("8", "4"))
    with pytest.raises(InputError, match=r"adapter_model.safetensors has changed since the clip was made with it"):
        regenerate(path)


def test_the_models_own_adapter_is_remade_at_its_strength(tmp_path):
    pipe = load("tiny", device="cpu")
    options = {"frames": 5, "size": (64, 64), "steps": 1, "guidance": 1.0}
    usual = pipe.generate(PROMPT, **options)
    pipe.set_lora("pusa", 0.5)
    half = pipe.generate(PROMPT, **options)
    pipe.remove_lora("pusa")
    none = pipe.generate(PROMPT, **options)
    with pytest.raises(
        InputError, match=r"tiny runs the LoRA .* at strength 1\.2 by default: leave it out, or give it to"
    ):
        load("tiny", lora=embedded.adapter(), device="cpu")
    for number, clip in enumerate((half, none)):
        assert not torch.equal(clip.latents, usual.latents)
        assert torch.equal(regenerate(clip.save(tmp_path / f"{number}.mp4")).latents, clip.latents)


def test_changed_and_missing_sources_are_refused(tiny_pipe, files, noise_frames):
    path = tiny_pipe.generate(PROMPT, [Image(files / "start.png")]).save(files / "clip.mp4")
    write_image(files / "start.png", noise_frames(1, seed=5)[0])
    with pytest.raises(InputError, match=r"start.png has changed since the clip was made"):
        regenerate(path, tiny_pipe)
    (files / "start.png").unlink()
    with pytest.raises(InputError, match=r"start.png, .* is missing"):
        regenerate(path, tiny_pipe)
    longer = extend(tiny_pipe, path, PROMPT, frames=4).save(files / "longer.mp4")
    (files / "clip.latents.safetensors").unlink()
    with pytest.raises(InputError, match=r"clip.latents.safetensors, .* is missing"):
        regenerate(longer, tiny_pipe)
    tiny_pipe.generate("something else").save(files / "clip.mp4")
    with pytest.raises(InputError, match=r"clip.mp4 has changed"):
        regenerate(longer, tiny_pipe)
    from_memory = tiny_pipe.generate(PROMPT, [Image(noise_frames(1)[0])]).save(files / "memory.mp4")
    with pytest.raises(InputError, match="from pixels in memory"):
        regenerate(from_memory, tiny_pipe)


def test_other_versions_are_said(tiny_pipe, tmp_path):
    path = tiny_pipe.generate(PROMPT).save(tmp_path / "clip.mp4")
    recipe = read(path)
    recipe["versions"]["torch"] = "1.0"
    path.with_suffix(".json").write_text(json.dumps(recipe))
    with pytest.warns(UserWarning, match=r"made with torch 1.0 \(here"):
        regenerate(path, tiny_pipe)


def test_a_matrix_edited_in_the_recipe_is_said_or_walked(tiny_pipe, tmp_path):
    clip = tiny_pipe.generate(PROMPT, steps=4)
    path = clip.save(tmp_path / "clip.mp4")
    recipe = read(path)
    rows = recipe["matrix"]["sigma"]
    recipe["matrix"]["sigma"] = [rows[0], [0.9 * value for value in rows[1]], *rows[2:]]
    path.with_suffix(".json").write_text(json.dumps(recipe))
    with pytest.warns(
        UserWarning, match='is not the one that its settings give; .*; to use the matrix, set "own_matrix" to true'
    ):
        assert torch.equal(regenerate(path, tiny_pipe).latents, clip.latents)
    path.with_suffix(".json").write_text(json.dumps(recipe | {"own_matrix": True}))
    with pytest.warns(UserWarning, match="not bit-identical to the one of"):
        assert not torch.equal(regenerate(path, tiny_pipe).latents, clip.latents)
    longer = extend(tiny_pipe, path, PROMPT, frames=4)
    longer.save(tmp_path / "longer.mp4")
    recipe = read(tmp_path / "longer.mp4")
    rows = recipe["matrix"]["sigma"]
    recipe["matrix"]["sigma"] = [rows[0], [0.9 * value for value in rows[1]], *rows[2:]]
    (tmp_path / "longer.json").write_text(json.dumps(recipe))
    with pytest.warns(UserWarning, match=r"is not the one that its settings give; the settings were used\.$"):
        regenerate(tmp_path / "longer.mp4", tiny_pipe)


def test_a_recipe_of_version_0_1_is_remade_without_a_warning(tiny_pipe, tmp_path):
    """Its matrix has the fields `state` and `told`."""
    stairs = schedules.staircase(sigmas.grid(2), 5, block=2)
    hidden = dataclasses.replace(stairs, model_sigma=0.9 * stairs.model_sigma)
    former = {"sigma": "state", "model_sigma": "told"}
    for options in ({"steps": 2, "shift": 3.0}, {"matrix": hidden}):
        clip = tiny_pipe.generate(PROMPT, **options)
        path = clip.save(tmp_path / "clip.mp4")
        recipe = read(path)
        recipe["matrix"] = {former.get(key, key): rows for key, rows in recipe["matrix"].items()}
        path.with_suffix(".json").write_text(json.dumps(recipe))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = regenerate(path, tiny_pipe)
        assert torch.equal(again.latents, clip.latents)
        assert again.matrix == clip.matrix


@pytest.mark.parametrize(("key", "value"), [("size", [64]), ("model", "tiny"), ("prompt", 3), ("steps", "4")])
def test_recipes_with_values_of_the_wrong_kind(tiny_pipe, tmp_path, key, value):
    path = tiny_pipe.generate(PROMPT).save(tmp_path / "clip.mp4")
    path.with_suffix(".json").write_text(json.dumps(read(path) | {key: value}))
    with pytest.raises(InputError, match=f"clip.json is damaged: its {key} is"):
        regenerate(path, tiny_pipe)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no recipe"),
        ("{", "cannot be read"),
        ("[]", "not the recipe of a clip"),
        ('{"task": "generate"}', "it lacks prompt"),
    ],
)
def test_what_is_no_recipe(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "clip.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / "clip.mp4")


def test_a_clip_of_a_former_embedded_model_says_which_version_has_it(tiny_pipe, tmp_path):
    path = tiny_pipe.generate(PROMPT).save(tmp_path / "clip.mp4").with_suffix(".json")
    recipe = json.loads(path.read_text())
    (former,) = embedded.FORMER
    recipe["model"] |= {"source": "tiny", "fingerprint": former}
    path.write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"clip.json is .* of pusa 0\.1\.0 \(commit \w+\), .* install that version"):
        regenerate(path, tiny_pipe)
    recipe["model"]["source"] = str(tmp_path / "a copy of it")
    path.write_text(json.dumps(recipe))
    with pytest.raises(InputError, match="fingerprint differs"):
        regenerate(path, tiny_pipe)


def test_a_damaged_recipe(tiny_pipe, tmp_path):
    path = tiny_pipe.generate(PROMPT).save(tmp_path / "clip.mp4")
    recipe = read(path)
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in recipe.items() if k != "conditions"}))
    with pytest.raises(InputError, match=r"damaged recipe .it lacks 'conditions'"):
        regenerate(path, tiny_pipe)
    path.with_suffix(".json").write_text(json.dumps({**recipe, "task": "dream"}))
    with pytest.raises(InputError, match="recipe of a 'dream'"):
        regenerate(path, tiny_pipe)


@pytest.fixture(scope="module")
def clip(tiny_pipe):
    return tiny_pipe.generate(PROMPT)


class TestFailedSaves:
    def test_an_error_halfway_leaves_what_was_there(self, clip, tmp_path, monkeypatch):
        path = clip.save(tmp_path / "clip.mp4")
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pusa.generation.clip.write_json", fail)
        changed = dataclasses.replace(clip, frames=255 - clip.frames)
        with pytest.raises(InputError, match=r"cannot write \S*/clip\.latents\.safetensors: the disk is full"):
            changed.save(path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

    def test_an_interruption_leaves_nothing(self, clip, tmp_path, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("safetensors.torch.save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            clip.save(tmp_path / "clip.mp4")
        assert list(tmp_path.iterdir()) == []

    def test_names_and_folders(self, clip, tmp_path):
        with pytest.raises(InputError, match=r"\.mp4"):
            clip.save(tmp_path / "clip.avi")
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot be saved"):
            clip.save(tmp_path / "file" / "clip.mp4")
