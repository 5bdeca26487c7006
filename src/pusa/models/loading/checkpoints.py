"""Load a text-to-video model: the embedded model, a diffusers folder, Wan's own layout, a file, or a hub id.

The parts are loaded as stock classes. Then the transformer is upgraded to one timestep per frame, and the autoencoder
to layers that are faster on a CPU. So every file is a stock file. `sources.py` finds the model, `wan/recognise.py`
recognises its kind, and `wan/original_layout.py` reads everything except diffusers folders. The default settings of a
model (frame rate, length, size, steps) are those of its family. A file `pusa.json` next to `model_index.json` overrides
them.

Configs and headers are checked first (`configurations.py`). So a model that cannot be used fails before weights are
read or downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from pusa.errors import InputError, first_line
from pusa.models import hub, weight_files
from pusa.models.backbone import Encoders, Expert
from pusa.models.loading.configurations import check, defaults_of, fingerprint, own_loras, patch_of
from pusa.models.loading.sources import ENCODERS, PARTS, TINY, Beside, absolute, config, expert_notes, find, locate
from pusa.models.lora import runtime
from pusa.models.wan import autoencoder_layers, original_layout
from pusa.models.wan.backbone import WanBackbone, WanEncoders
from pusa.models.wan.recognise import TRANSFORMER, TRANSFORMER_2
from pusa.models.wan.sizes import WanSizes
from pusa.models.wan.transformer import VectorWanTransformer3DModel


def load(
    source: str | Path = TINY,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    transformer_2: str | Path | None = None,
    expert: Expert | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    encoders: Encoders | None = None,
) -> WanBackbone:
    """Load a model and move it to `device` in `dtype`. The autoencoder stays in float32.

    Args:
        source: "tiny" (the embedded base with its adapter), "tiny-base" (the embedded base), a folder in the diffusers
            layout or in Wan's own layout, a file (.safetensors in any precision, also fp8 with scales, .gguf, .pth),
            or a hub id such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers".
        vae, text_encoder: a file, folder or hub id that replaces this part of the source, or provides a missing part.
        transformer_2: the expert for low noise, if the source is the expert for high noise.
        expert: load only this one of two experts, as the only transformer.
        dtype: the default is float32 on a CPU and bfloat16 on a GPU. fp8 weights are converted to it.
        device: the default is a GPU if there is one. The second of two experts stays on the CPU.
        encoders: those of this source, if they are loaded already. They stay where they are.

    Raises InputError if the model does not exist, its kind is not supported, or its parts do not fit together.
    """
    beside = {"vae": vae, "text_encoder": text_encoder, TRANSFORMER_2: transformer_2}
    unwanted = {"high": TRANSFORMER_2, "low": TRANSFORMER}.get(expert or "")
    parts = _Parts.of(source, [kind for kind in PARTS if kind != unwanted], beside, dtype, device, expert)
    if expert is None:
        for note in expert_notes(parts.name, parts.folder, beside):
            warnings.warn(note, stacklevel=2)
    first, *second = [
        VectorWanTransformer3DModel.upgrade(
            parts.network(kind, WanTransformer3DModel, torch_dtype=parts.dtype, device=place)
        )
        for kind, place in zip(parts.transformers, (parts.device, torch.device("cpu")), strict=False)
    ]
    components = WanBackbone(
        **vars(encoders or parts.encoders()),
        transformer=first,
        transformer_2=second[0] if second else None,
        fingerprint=fingerprint(parts.folder, parts.beside, parts.transformers),
        defaults=defaults_of(parts.folder, transformer_2=transformer_2),
        beside={kind: absolute(given) for kind, given in parts.beside.items() if given is not None},
    )
    own = [runtime.load(first, one.path, one.scale) for one in own_loras(components.source)]
    return replace(components, loras=tuple(own))


def load_encoders(
    source: str | Path = TINY,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    transformer_2: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> WanEncoders:
    """Load the autoencoder and the text encoder as `load` does. No transformer is downloaded or read."""
    beside = {"vae": vae, "text_encoder": text_encoder, TRANSFORMER_2: transformer_2}
    return _Parts.of(source, ENCODERS, beside, dtype, device).encoders()


@dataclass(frozen=True)
class _Parts:
    """Where the parts of a model are, and how they are loaded."""

    name: str
    folder: Path
    beside: Beside
    dtype: torch.dtype
    device: torch.device
    transformers: Sequence[str]

    @classmethod
    def of(
        cls,
        source: str | Path,
        parts: Sequence[str],
        beside: Beside,
        dtype: torch.dtype | None,
        device: str | torch.device | None,
        expert: Expert | None = None,
    ) -> _Parts:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("There is no CUDA device here: give device='cpu'.")
        own = [kind for kind in parts if beside.get("text_encoder" if kind == "tokenizer" else kind) is None]
        name, folder = find(source, own)
        transformers = check(name, folder, **beside, expert=expert)
        dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        return cls(name, folder, beside, dtype, device, transformers)

    def encoders(self) -> WanEncoders:
        return WanEncoders(
            vae=autoencoder_layers.upgrade(self.network("vae", AutoencoderKLWan, torch_dtype=torch.float32)),
            text_encoder=self.network("text_encoder", UMT5EncoderModel, dtype=self.dtype),
            tokenizer=self.part("tokenizer", self.tokenizer(), AutoTokenizer.from_pretrained),
            source=self.name,
            patch=patch_of(config(self.name, self.folder, TRANSFORMER)),
        )

    def network(self, kind: str, cls: Any, *, device: torch.device | None = None, **options: Any) -> Any:
        """Return a frozen network on the device. InputError if weights are missing or damaged."""
        found = locate(self.name, self.folder, kind, self.beside)
        name = str(found.path) if isinstance(found, original_layout.Part) and found.path != self.folder else self.name
        if isinstance(found, original_layout.Part):
            dtype = torch.float32 if kind == "vae" else self.dtype
            with _no_bars():
                model: Any = original_layout.network(found, dtype)
        else:
            files = original_layout.shards(found, "")
            if not files:
                pickles = [file.name for file in sorted(found.glob("*.bin"))]
                why = f"has only {pickles[0]}, a pickle, which is not supported" if pickles else "has no weights"
                raise InputError(f"The {kind} of {self.name} {why}: copy or download its .safetensors files.")
            for file in files:
                weight_files.listing(file)
            model, report = self.part(kind, found, partial(cls.from_pretrained, output_loading_info=True, **options))
            if missing := sorted(report["missing_keys"]):
                lost = missing[0] if len(missing) == 1 else f"{missing[0]} nor {len(missing) - 1} others"
                raise InputError(f"The {kind} of {self.name} is incomplete: it has no {lost}; copy it again.")
            for parameter in model.parameters():
                parameter.data = weight_files.aligned(parameter.data)
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(f"The {kind} of {name} is damaged: its {key} contains NaN or infinity; copy it again.")
        return model.eval().requires_grad_(False).to(device or self.device)

    def tokenizer(self) -> Path:
        """Return the folder of the tokenizer, downloaded if there is none near the text encoder."""
        found = locate(self.name, self.folder, "text_encoder", self.beside)
        home = found.path if isinstance(found, original_layout.Part) else found
        if near := original_layout.tokenizer_near(home):
            return near
        try:
            return hub.snapshot(original_layout.TOKENIZER, ["*.json", "spiece.model"])
        except InputError as error:
            raise InputError(
                f"There is no tokenizer near the text encoder {home} (tokenizer/ or {original_layout.TOKENIZER}/), "
                f"and it cannot be downloaded: {error}"
            ) from error

    def part(self, kind: str, folder: Path, loader: Callable[..., Any]) -> Any:
        try:
            with _no_bars():
                return loader(str(folder), local_files_only=True)
        except Exception as error:
            reason = first_line(error)
            raise InputError(f"The {kind} of {self.name} cannot be loaded ({reason}): copy it again.") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def sizes(name: str, folder: Path) -> WanSizes:
    """Return the sizes of the model at `folder`, from its configurations."""
    return WanSizes.of(*(config(name, folder, part) for part in ("transformer", "vae")))
