"""The example workflows: complete, equal in both formats, and accepted by ComfyUI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui import hosts

FOLDER = Path(__file__).parents[2] / "comfyui" / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
FILES = {
    "UNETLoader": ("unet_name", "diffusion_models"),
    "LoraLoaderModelOnly": ("lora_name", "loras"),
    "CLIPLoader": ("clip_name", "text_encoders"),
    "VAELoader": ("vae_name", "vae"),
    "LoadImage": ("image", "input"),
}
"""{node: (its input for a file, the folder of the file)}"""


def api(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_there_are_workflows_for_every_node() -> None:
    from comfyui import NODE_CLASS_MAPPINGS

    assert {"image_to_video", "start_end", "extension", "two_experts", "ksampler"} == set(NAMES)
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES
    used = {node["class_type"] for name in NAMES for node in api(name).values()}
    assert set(NODE_CLASS_MAPPINGS) - used == {"PusaClip"}


@pytest.mark.parametrize("name", NAMES)
def test_the_inputs_are_those_of_the_nodes(name: str) -> None:
    from comfyui import NODE_CLASS_MAPPINGS

    workflow = api(name)
    for node in workflow.values():
        if node["class_type"] not in NODE_CLASS_MAPPINGS:
            continue
        kinds = NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        known = kinds["required"] | kinds.get("optional", {})
        assert set(kinds["required"]) <= set(node["inputs"]) <= set(known)
        for key, value in node["inputs"].items():
            kind = known[key][0]
            if isinstance(value, list):
                source = NODE_CLASS_MAPPINGS.get(workflow[value[0]]["class_type"])
                assert source is None or source.RETURN_TYPES[value[1]] == kind
            elif isinstance(kind, list):
                assert value in kind
            else:
                assert type(value) is {"INT": int, "FLOAT": float, "STRING": str}[kind]


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_are_the_same_workflow(name: str) -> None:
    """The editor's format names nodes, links and values in lists; `control_after_generate` is a value of its own."""
    graph, workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), api(name)
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    assert {str(node["id"]): node["type"] for node in graph["nodes"]} == {
        k: v["class_type"] for k, v in workflow.items()
    }
    for node in graph["nodes"]:
        values = [value for value in node.get("widgets_values", []) if value not in ("fixed", "image")]
        inputs: dict[str, Any] = {}
        for one in node["inputs"]:
            if one.get("link") is not None:
                inputs[one["name"]] = links[one["link"]]
            elif "widget" in one and one["name"] != "upload":
                inputs[one["name"]] = values.pop(0)
        assert inputs == workflow[str(node["id"])]["inputs"], node["type"]


@pytest.mark.skipif(not hosts.REAL, reason="needs ComfyUI: set COMFYUI_PATH to a checkout of it")
def test_comfyui_accepts_them(tmp_path: Path) -> None:
    """ComfyUI checks the nodes, the types of the links, the values and the names of files."""
    import execution
    import folder_paths
    import nodes

    from comfyui import NODE_CLASS_MAPPINGS

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    nodes.NODE_CLASS_MAPPINGS.update(NODE_CLASS_MAPPINGS)
    for kind in {folder for _, folder in FILES.values()}:
        (tmp_path / kind).mkdir()
        if kind == "input":
            folder_paths.set_input_directory(str(tmp_path / kind))
        else:
            folder_paths.add_model_folder_path(kind, str(tmp_path / kind))
    for workflow in map(api, NAMES):
        for node in workflow.values():
            if node["class_type"] in FILES:
                key, kind = FILES[node["class_type"]]
                (tmp_path / kind / node["inputs"][key]).touch()
    for name in NAMES:
        valid, error, _, details = asyncio.run(execution.validate_prompt(name, api(name), None))
        assert valid, (name, error, details)
