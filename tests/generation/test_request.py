"""A request is the one definition of a clip: strict, written as JSON, and the same in every spelling."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from pusa.cli.shared.batch import KEYS
from pusa.cli.shared.options import Sampling as SamplingFlags
from pusa.core import schedules, sigmas
from pusa.errors import InputError
from pusa.generation import request as requests
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import Pipeline
from pusa.generation.request import (
    Extend,
    ExtendOptions,
    Generate,
    GenerateOptions,
    Request,
    Transition,
    TransitionOptions,
    json_schema,
)
from pusa.generation.sampling import Sampling, SamplingOptions

REQUESTS: list[Generate | Extend | Transition] = [
    Generate("a cat"),
    Generate(
        "a cat",
        [Image("a.png", frame="1.5s", noise=0.2), Clip("b.mp4", at=-1, noise=[0.0, 0.5])],  # type: ignore[arg-type]
        steps=4,
        guidance=2,
        guidance_2=1.5,
        schedule="staircase,block=3",
        size="64x32",  # type: ignore[arg-type]
        seed=7,
        negative_prompt="blurry",
    ),
    Generate("a cat", init=Clip("b.mp4", start=-8), strength=0.4),
    Extend("b.mp4", "more", direction="backward", frames=8, overlap=5, noise=[0.0, 0.3]),  # type: ignore[arg-type]
    Transition("a.mp4", "b.mp4", "between", frames=12, noise=0.1),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: f"{one.task}-{one.prompt}")
def test_json_and_back(request_: Generate | Extend | Transition) -> None:
    written = json.loads(json.dumps(request_.to_dict()))
    assert written["version"] == 1
    assert Request.from_dict(written) == request_
    jsonschema.validate(written, json_schema())


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"steps": "4"}, {"solver": "heun"}, {"promt": "x"}, {"seed": -1}, {"task": "dream"}]
)
def test_the_schema_and_the_program_refuse_the_same(change: dict[str, Any]) -> None:
    wrong = {"version": 1, "task": "generate", "prompt": "a cat", **change}
    with pytest.raises(InputError):
        Request.from_dict(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())


def test_a_later_version_is_named() -> None:
    with pytest.raises(InputError, match="version 2 and this program reads 1: update pusa"):
        Request.from_dict({"version": 2, "prompt": "a cat"})


def test_pixels_in_memory_are_not_written() -> None:
    with pytest.raises(InputError, match="ndarray in memory cannot be written"):
        Generate("a", [Image(np.zeros((4, 4, 3), np.uint8))]).to_dict()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Sampling, SamplingOptions),
        (Generate, GenerateOptions),
        (Extend, ExtendOptions),
        (Transition, TransitionOptions),
    ],
)
def test_the_keywords_for_type_checkers_are_the_fields(kind: type, options: type) -> None:
    assert get_type_hints(options).keys() == {one.name for one in dataclasses.fields(kind) if one.kw_only}


def test_a_field_of_sampling_is_a_flag_a_key_and_an_entry_of_the_sidecar(tiny_pipe: Pipeline) -> None:
    names = {one.name for one in dataclasses.fields(Sampling)}  # type: ignore[arg-type]
    assert names <= {one.name for one in dataclasses.fields(SamplingFlags)}
    assert names <= set(KEYS)
    options = {"schedule": "staircase", "guidance_interval": "0,1", "accelerate": "steps"}
    recipe = tiny_pipe.generate("a", steps=1, **options).recipe
    # Two are for models with two experts, and two choose the acceleration, which the recipe names.
    assert names - {"guidance_2", "boundary", "speed", "min_psnr"} <= recipe.keys()


def test_an_option_is_defined_in_one_file() -> None:
    """Elsewhere its name stands only where it acts: the settings, the call of the model, and the loop of steps."""
    source = Path(requests.__file__).parents[1]
    files = {str(file.relative_to(source)) for file in source.rglob("*.py") if "guidance_2" in file.read_text("utf-8")}
    assert files == {
        *(f"generation/{name}.py" for name in ("sampling", "settings", "model", "pipeline")),
        "diffusers/arguments.py",  # its name in diffusers
        "serving/wire_names.py",  # its name in other servers
    }


def test_a_request_needs_no_torch() -> None:
    code = """
import sys
from pusa.generation.request import Generate
from pusa.generation.given import Image
try:
    Generate("a", [Image("a.png", noise=2.0)])
except ValueError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a.png: noise is 2.0: give a number from 0 to 1; 0 keeps it exactly, 1 ignores it.\n"


def test_pictures_are_decoded_once(tiny_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pusa.generation import pictures
    from pusa.media.images import write_image

    write_image(tmp_path / "a.png", np.full((32, 32, 3), 90, np.uint8))
    read: list[Any] = []
    decode = pictures.read_image
    monkeypatch.setattr(pictures, "read_image", lambda path: read.append(path) or decode(path))
    opened = Generate("a", [Image(tmp_path / "a.png")], steps=1).opened()  # type: ignore[arg-type]
    for seed in (0, 1):
        clip = dataclasses.replace(opened, seed=seed).run(tiny_pipe)
    assert len(read) == 1
    assert clip.recipe["conditions"][0]["path"] == str(tmp_path / "a.png")


class TestOwnMatrix:
    MATRIX = schedules.conditioned(schedules.staircase(sigmas.grid(3), 3), {0: 0.5})

    @pytest.mark.parametrize("form", ["matrix", "dictionary", "rows", "tensor", "array", "file", "sidecar"])
    def test_forms(self, form: str, tmp_path: Path) -> None:
        file = tmp_path / "m.json"
        file.write_text(json.dumps({"sidecar": {"matrix": self.MATRIX.to_dict()}}.get(form, self.MATRIX.to_dict())))
        value = {
            "matrix": self.MATRIX,
            "dictionary": self.MATRIX.to_dict(),
            "rows": self.MATRIX.sigma.tolist(),
            "tensor": self.MATRIX.sigma,
            "array": self.MATRIX.sigma.numpy(),
        }.get(form, file)
        assert Generate("a", matrix=value).own_matrix() == self.MATRIX

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("{", "not JSON"),
            ("3", "state has shape|sigma has shape"),
            ('{"rows": []}', "a timestep matrix has 'sigma'"),
            ("[[1, 2], [0]]", "rows of equal length"),
            ("[[2, 2], [0, 0]]", "noise levels lie between 0 and 1"),
        ],
    )
    def test_files_without_a_matrix(self, content: str, sentence: str, tmp_path: Path) -> None:
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(InputError, match=f"m.json does not hold a timestep matrix.*({sentence})"):
            Generate("a", matrix=tmp_path / "m.json").own_matrix()

    def test_it_decides_alone(self) -> None:
        for name, value in (("shift", 2.0), ("schedule", "staircase")):
            with pytest.raises(InputError, match="leave shift, schedule and strength out"):
                Generate("a", matrix=self.MATRIX, **{name: value})


def test_a_schedule_is_walked_and_remade(tiny_pipe: Pipeline) -> None:
    clip = tiny_pipe.generate("a", schedule="staircase,block=2,delay=1", steps=3, frames=17)
    expected = schedules.staircase(sigmas.grid(3, tiny_pipe.defaults.shift), 5, block=2, delay=1)
    assert clip.matrix == expected
    again = Request.from_dict(clip.recipe).run(tiny_pipe)
    assert torch.equal(again.latents, clip.latents)
    assert not torch.equal(clip.latents, tiny_pipe.generate("a", steps=3, frames=17).latents)


def test_every_task_is_known_by_its_name() -> None:
    assert {name: kind.task for name, kind in requests.TASKS.items()} == {
        "generate": "generate", "extend": "extend", "transition": "transition",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: Generate("a", None), "conditions are of type NoneType: give a list"),  # type: ignore[arg-type]
        (lambda: Generate("a", init=np.zeros((99, 9, 9, 3), np.uint8)), "init is of type ndarray: give a pusa.Clip"),  # type: ignore[arg-type]
        (lambda: Request.from_dict([]), "is a dictionary, not of type list"),  # type: ignore[arg-type]
        (lambda: Request.from_dict({"conditions": [{"src": "a.png"}]}), "a.png needs a type: give image or clip"),
    ],
)
def test_values_of_the_wrong_kind_are_one_sentence(wrong: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        wrong()


def test_numbers_of_numpy_are_numbers() -> None:
    size: Any = (np.int64(64), np.int64(32))
    seed: Any = np.int64(3)
    frames: Any = np.int32(9)
    shift: Any = np.float32(5)
    numpy = Generate("a", seed=seed, frames=frames, size=size, shift=shift)
    assert numpy == Generate("a", seed=3, frames=9, size=(64, 32), shift=5.0)
    assert json.loads(json.dumps(numpy.to_dict()))["seed"] == 3
    with pytest.raises(InputError, match="seed is"):
        Generate("a", seed=np.float64(3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed is"):
        Generate("a", seed=np.bool_(True))  # type: ignore[arg-type]


def test_a_path_or_a_picture_is_the_first_frame(tmp_path: Path) -> None:
    picture = PILImage.new("RGB", (8, 8))
    pixels = np.zeros((8, 8, 3), np.uint8)
    request = Generate("a", ["cat.png", Path("cat.png"), picture, pixels, Image("end.png", frame=-1)])
    assert all(isinstance(one, Image) for one in request.conditions)
    assert [one.frame for one in request.conditions] == [0, 0, 0, 0, -1]  # type: ignore[union-attr]
    assert request.conditions[2].src is picture
    with pytest.raises(InputError, match=r"give a list of conditions, \['cat.png'\]"):
        Generate("a", "cat.png")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not of type int"):
        Generate("a", [3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Image("cat.png"), "Image('cat.png')"),
        (Image(Path("cat.png"), -1, 0.2, "single"), "Image('cat.png', frame=-1, noise=0.2, encoding='single')"),
        (Image(np.zeros((4, 6, 3), np.uint8)), "Image(<4x6x3 pixels>)"),
        (Image(PILImage.new("RGB", (6, 4))), "Image(<6x4 pixels>)"),
        (Clip("a.mp4", at=-1, frames=9), "Clip('a.mp4', at=-1, frames=9)"),
        (Clip(np.zeros((5, 4, 6, 3), np.uint8)), "Clip(<5x4x6x3 pixels>)"),
        (schedules.synchronous(sigmas.grid(3), 5), "TimestepMatrix(3 steps, 5 latent frames)"),
    ],
    ids=str,
)
def test_what_python_shows_is_short(value: object, shown: str) -> None:
    assert repr(value) == shown


def test_what_python_shows_of_a_pipeline_and_a_clip(tiny_pipe: Pipeline) -> None:
    assert repr(tiny_pipe) == f"Pipeline({tiny_pipe.backbone.source!r} on cpu)"
    clip = tiny_pipe.generate("a cat " * 100, frames=5, steps=1)
    assert len(repr(clip)) < 150
    assert repr(clip).endswith("…')")


def test_saving_may_refuse_to_replace_a_clip(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    clip = tiny_pipe.generate("a", frames=5, steps=1)
    path = clip.save(tmp_path / "a.mp4", overwrite=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.mp4 exists already: .*overwrite=True"):
        clip.save(path, overwrite=False)
    assert path.read_bytes() == before
    assert clip.save(path, overwrite=True) == clip.save(path) == path


def test_a_matrix_in_any_form_can_be_written(tmp_path: Path) -> None:
    rows = [[1.0, 1.0], [0.0, 0.0]]
    for value in (rows, tuple(map(tuple, rows)), np.array(rows), torch.tensor(rows)):
        written = Generate("a", matrix=value).to_dict()
        assert json.loads(json.dumps(written))["matrix"] == rows
        assert Request.from_dict(written).own_matrix() == Generate("a", matrix=rows).own_matrix()


def test_a_condition_that_a_matrix_ignores_is_named(tiny_pipe: Pipeline) -> None:
    matrix = schedules.synchronous(sigmas.grid(2), 2)
    with pytest.warns(
        UserWarning, match="starts latent frame 0 at σ = 1, so the condition on this frame has no effect"
    ):
        tiny_pipe.generate("a", [Image(np.zeros((32, 32, 3), np.uint8))], matrix=matrix)  # type: ignore[list-item]


def test_a_clip_prints_in_one_line(tiny_pipe: Pipeline) -> None:
    clip = tiny_pipe.generate("a cat", frames=5, steps=1)
    assert repr(clip) == "GeneratedClip(5 frames of 32x32 at 8 fps, prompt='a cat')"
