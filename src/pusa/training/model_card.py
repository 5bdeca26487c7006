"""The model card of a run, runs/NAME/README.md, with the front matter that the Hugging Face hub reads.

Its content comes from the settings, the costs and the validation of the run. What is unknown is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from pusa import embedded
from pusa.adapters.base import Card
from pusa.files import write_text_atomic
from pusa.models.backbone import HubNames
from pusa.training.costs import Costs
from pusa.training.validation import Validation

PAPER = "https://arxiv.org/abs/2507.16116"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Facts:
    """The content of a model card.

    name: of the run. base: the base model, as `checkpoints.load` takes it. output: the file or folder with the weights,
    relative to the card. card: the part that depends on the adapter. names: of the model, None if diffusers does not
    have it. expert: "high" or "low" for Wan2.2 A14B. samples, held_out: numbers of training samples and of held-out
    clips. settings: rows of the training table. previews: (prompt, path relative to the card) of sample videos.
    """

    name: str
    base: str
    output: str
    card: Card
    names: HubNames | None = None
    expert: str | None = None
    samples: int | None = None
    held_out: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    previews: Sequence[tuple[str, str]] = ()
    license: str = "apache-2.0"

    @property
    def hub_base(self) -> str | None:
        """The id of the base on the hub; None for the embedded model and for folders."""
        return self.base if _HUB_ID.fullmatch(self.base) and not Path(self.base).exists() else None


def write(folder: Path, facts: Facts, costs: Costs | None = None, validation: Validation | None = None) -> Path:
    """Write README.md into the folder of the run, atomically, and return its path."""
    path = folder / "README.md"
    write_text_atomic(path, text(facts, costs, validation))
    return path


def text(facts: Facts, costs: Costs | None = None, validation: Validation | None = None) -> str:
    """Return the text of the card, with its front matter."""
    parts = [_opening(facts), _gallery(facts), _use(facts), _training(facts), _validation(validation), _costs(costs)]
    return f"---\n{_front(facts)}\n---\n\n" + "\n\n".join(part for part in (*parts, _limits(facts)) if part) + "\n"


def _front(facts: Facts) -> str:
    family = [facts.names.tag] if facts.names else []
    tags = [*family, "pusa", "vectorized-timestep-adaptation", "text-to-video", "image-to-video"]
    data = ModelCardData(
        base_model=facts.hub_base,
        license=facts.license,
        library_name="diffusers",
        pipeline_tag="image-to-video",
        tags=[*facts.card.tags, *tags],
        widget=[{"text": prompt or " ", "output": {"url": path}} for prompt, path in facts.previews] or None,
        base_model_relation=facts.card.relation if facts.hub_base else None,
    )
    return data.to_yaml()


def _opening(facts: Facts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.hub_base else f"`{facts.base}`"
    expert = f" ({facts.expert}-noise expert)" if facts.expert else ""
    return (
        f"# {facts.name}\n\n{facts.card.title} {base}{expert} that takes a timestep for every latent frame\n"
        f"([vectorized timestep adaptation]({PAPER})): a frame that is given stands at timestep 0, and one model does\n"
        "text-to-video, image-to-video, first and last frame, keyframes, extension and completion."
    )


def _gallery(facts: Facts) -> str:
    if not facts.previews:
        return ""
    items = [f"* [{Path(path).stem}]({path}): “{prompt}”" for prompt, path in facts.previews]
    return "\n".join(["## Samples", "", "Conditions and prompts are those of held-out clips.", "", *items])


def _use(facts: Facts) -> str:
    return "\n\n".join(["## Use", _with_pusa(facts), _with_diffusers(facts), _with_comfy(facts)]).rstrip()


def _with_pusa(facts: Facts) -> str:
    if not facts.card.lora_file:
        return ""
    return f"""With pusa, all tasks:

```bash
pusa generate "a prompt" --model {facts.base} --lora {facts.output} --image first.png
```"""


def _with_diffusers(facts: Facts) -> str:
    if facts.names is None:
        return ""
    base = json.dumps(facts.base)
    if facts.base in embedded.NAMES:
        opening, base = "from pusa import embedded\n", "embedded.folder()"
    else:
        opening = ""
    code = facts.card.diffusers_code
    classes = {"pipeline": facts.names.pipeline, "transformer": facts.names.transformer}
    load = code.format(base=base, file=json.dumps(facts.output), **classes)
    names = ", ".join(name for field, name in classes.items() if f"{{{field}}}" in code)
    return f"""With diffusers, in this folder (one timestep per clip, so text-to-video only):

```python
import torch
from diffusers import {names}
{opening}
{load}
frames = pipe("a prompt").frames[0]
```"""


def _with_comfy(facts: Facts) -> str:
    if not facts.card.lora_file:
        return ""
    file = f"{facts.name}.safetensors"
    node = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": file, "strength_model": 1.0},
    }
    return f"""In ComfyUI, copy `{facts.output}` to `ComfyUI/models/loras/{file}` and load it over the base, node "1":

```json
{json.dumps({"2": node}, indent=2)}
```

Stock ComfyUI gives a timestep per frame to Wan2.2 5B only. For another base, use nodes that give one, such as the
scheduler `flowmatch_pusa` of ComfyUI-WanVideoWrapper. Without them, this LoRA makes text-to-video."""


def _training(facts: Facts) -> str:
    rows: dict[str, Any] = {"base": facts.base, "expert": facts.expert, "training samples": facts.samples}
    rows |= {"held-out clips": facts.held_out, **facts.card.rows, **facts.settings}
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["## Training", "", "| | |", "| --- | --- |", *lines])


def _validation(result: Validation | None) -> str:
    if result is None:
        return ""
    base = result.base
    means = result.losses.mean("task").tolist()
    others = [float("nan")] * len(means) if base is None else base.mean("task").tolist()
    lines = [
        f"| {task} | {loss:.4f} | {'–' if other != other else f'{other:.4f}'} | "
        f"{'–' if other != other else f'{loss / other - 1:+.1%}'} |"
        for task, loss, other in zip(result.losses.tasks, means, others, strict=True)
        if loss == loss
    ]
    head = (
        f"Mean squared error of the velocity after step {result.step} on {result.clips} held-out clips, at fixed\n"
        f"noise and {len(result.losses.levels)} noise levels; the frames that a task is given are not counted."
    )
    table = ["| task | loss | base | change |", "| --- | ---: | ---: | ---: |", *lines]
    return "\n".join(["## Validation", "", head, "", *table])


def _costs(costs: Costs | None) -> str:
    if costs is None:
        return ""
    lines = [f"| {what} | {ours} | {paper} |" for what, ours, paper in costs.rows()]
    return "\n".join(["## Cost", "", "| | this run | the paper |", "| --- | ---: | ---: |", *lines])


def _limits(facts: Facts) -> str:
    return (
        "## Limits\n\nIt knows what its base knows and what its clips showed. Losses do not judge the pictures:\n"
        f"look at the samples. The licence is that of the base ({facts.license}); the clips have their own."
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    return str(value).replace("|", "\\|").replace("\n", " ")
