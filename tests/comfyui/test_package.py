"""The folder as ComfyUI loads it: what it needs, how its nodes are declared, and LoRAs of the project."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui import hosts
from tests.comfyui.conftest import PROMPT, Twins
from tests.comfyui.test_sampler import ONE_EXPERT, TOLERANCE, difference, sampled
from tests.models.lora_files import truth, written

ROOT = Path(__file__).parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_without_pusa_it_says_how_to_install_it() -> None:
    done = python("import sys; sys.modules['pusa'] = None; import comfyui")
    assert done.returncode == 1
    assert "python -m pip install --no-deps FOLDER" in done.stderr.splitlines()[-1]


def test_it_needs_what_comfyui_has_and_nothing_of_the_other_dependencies() -> None:
    """Installing pusa without its dependencies is enough, and other nodes keep their diffusers."""
    done = python(
        "import sys; sys.path.insert(0, 'src')\n"
        "from tests.comfyui import standin; standin.install()\n"
        "import comfyui\n"
        "foreign = {'diffusers', 'transformers', 'peft', 'accelerate', 'pydantic', 'av', 'pusa.models'}\n"
        "print(sorted(foreign & set(sys.modules)))\n"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_declarations_fit_the_functions() -> None:
    from comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for node in NODE_CLASS_MAPPINGS.values():
        kinds = node.INPUT_TYPES()
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert [*kinds["required"], *kinds.get("optional", {})] == list(parameters)[1:]
        for name in kinds.get("optional", {}):
            options = kinds["optional"][name][1]
            assert parameters[name].default == options.get("default")


@pytest.mark.skipif(not hosts.REAL, reason="needs ComfyUI: set COMFYUI_PATH to a checkout of it")
def test_comfyui_loads_the_loras_of_the_project_as_they_are(twins: Twins, tmp_path: Path) -> None:
    import comfy.sd
    import comfy.utils
    from diffusers import WanTransformer3DModel

    from pusa.models.export import convert

    stock = WanTransformer3DModel.from_config(twins.pipe.transformer.config)
    source = written(tmp_path, "diffusers", *truth(stock, outer=False, whole=False, seed=1, size=0.05))
    file = tmp_path / "comfy.safetensors"
    convert(source, file, "comfy")
    plain = sampled(twins, twins.empty())
    twins.pipe.load_lora(file, 0.7, "own", expert="high")
    try:
        clip = twins.pipe.generate(PROMPT, steps=6, guidance=2.5, seed=7, **ONE_EXPERT)
    finally:
        twins.pipe.remove_lora("own")
    patched, _ = comfy.sd.load_lora_for_models(twins.model, None, comfy.utils.load_torch_file(str(file)), 0.7, 0)
    own: Any = Twins(twins.pipe, patched, twins.low, twins.vae, twins.positive, twins.negative)
    assert difference(own, sampled(own, own.empty()), clip) < TOLERANCE
    assert difference(twins, plain, clip) > 1e-2
