"""Load a text-to-video model: the embedded model, a diffusers folder, Wan's own layout, a file, or a hub id.

The parts are loaded as stock classes, and the transformer is then upgraded to one timestep per frame. So every file is
a stock file. `sources.py` finds the model, `wan/recognise.py` recognises its kind, and `wan/original_layout.py` reads
everything except diffusers folders. The default settings of a model (frame rate, length, size, steps) are those of its
family. A file `pusa.json` next to `model_index.json` overrides them.

Configs and headers are checked first. So a model that cannot be used fails before weights are read or downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from pusa import embedded
from pusa.errors import InputError
from pusa.models import hub, weight_files
from pusa.models.backbone import Defaults, Expert, Geometry
from pusa.models.loading.sources import (
    ENCODERS,
    PARTS,
    TINY,
    Beside,
    absolute,
    check_transformer,
    config,
    experts_of,
    files_of,
    find,
    locate,
    missing_parts,
    read_json,
    transformers_of,
)
from pusa.models.lora import runtime
from pusa.models.wan import defaults, original_layout, recognise
from pusa.models.wan.autoencoder import FRAMES_PER_SLOT, geometry_of
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

    Raises InputError if the model does not exist, its kind is not supported, or its parts do not fit together.
    """
    beside = {"vae": vae, "text_encoder": text_encoder, TRANSFORMER_2: transformer_2}
    unwanted = {"high": TRANSFORMER_2, "low": TRANSFORMER}.get(expert or "")
    parts = _Parts.of(source, [kind for kind in PARTS if kind != unwanted], beside, dtype, device, expert)
    first, *second = [
        VectorWanTransformer3DModel.upgrade(
            parts.network(kind, WanTransformer3DModel, torch_dtype=parts.dtype, device=place)
        )
        for kind, place in zip(parts.transformers, (parts.device, torch.device("cpu")), strict=False)
    ]
    components = WanBackbone(
        **vars(parts.encoders()),
        transformer=first,
        transformer_2=second[0] if second else None,
        fingerprint=fingerprint(parts.folder, parts.beside, parts.transformers),
        defaults=defaults_of(parts.folder, transformer_2=transformer_2),
        beside={kind: absolute(given) for kind, given in parts.beside.items() if given is not None},
    )
    own = [runtime.load(first, one.path, one.scale) for one in own_loras(components.source)]
    return replace(components, loras=tuple(own))


def own_loras(name: str) -> list[runtime.LoraFile]:
    """Return the LoRAs that a model name includes: for "tiny", the embedded adapter at its strength."""
    return [runtime.LoraFile(embedded.adapter(), embedded.STRENGTH)] if name == TINY else []


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
            vae=self.network("vae", AutoencoderKLWan, torch_dtype=torch.float32),
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
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def fingerprint(folder: Path, beside: Beside | None = None, transformers: Sequence[str] = (TRANSFORMER,)) -> str:
    """Return a hash of the checkpoint's files: of the name, size, first and last 64 KiB of each, to be quick.

    folder: the model's folder or file. beside: {part: source} of parts from elsewhere. transformers: those in use.
    """
    digest = hashlib.sha256()
    for name, path in files_of(folder, beside or {}, transformers):
        size = path.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)))
            digest.update(file.read())
    return digest.hexdigest()


def check(
    name: str,
    folder: Path,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    transformer_2: str | Path | None = None,
    expert: Expert | None = None,
) -> list[str]:
    """Return the transformers in use: `transformer`, `transformer_2` or both.

    Raises InputError unless the configs and headers are those of a Wan text-to-video model. folder: the model's folder
    or file. The other arguments are those of `load`.
    """
    transformer = check_transformer(name, folder)
    beside = {"vae": vae, "text_encoder": text_encoder, TRANSFORMER_2: transformer_2}
    transformers = transformers_of(name, folder, beside, expert)
    autoencoder = config(name, folder, "vae", beside)
    channels, latent = transformer.get("in_channels", 16), autoencoder.get("z_dim", 16)
    if channels != latent:
        of = name if vae is None else str(vae)
        right = {16: "of Wan2.1 with 16 channels (Wan2.1_VAE)", 48: "of Wan2.2 with 48 channels (Wan2.2_VAE)"}
        if channels in right and latent in right:
            raise InputError(
                f"{name} needs the autoencoder {right[channels]}, and {of} has {latent} channels: give that one."
            )
        what = "give a text-to-video model" if vae is None else f"give one of {channels} channels"
        raise InputError(f"{name} has {channels} input channels, and the autoencoder of {of} has {latent}: {what}.")
    if autoencoder.get("scale_factor_temporal", 4) != FRAMES_PER_SLOT:
        raise InputError(
            f"The autoencoder of {name} has {autoencoder['scale_factor_temporal']} frames per latent frame instead of "
            f"{FRAMES_PER_SLOT}: give Wan's."
        )
    if text_encoder is not None or folder.is_file():
        text = config(name, folder, "text_encoder", beside)
        if (width := text.get("d_model")) != transformer.get("text_dim", 4096):
            raise InputError(
                f"{name} needs text of {transformer.get('text_dim', 4096)} channels, and the text encoder of "
                f"{text_encoder or name} has {width}: give Wan's umt5-xxl."
            )
    return transformers


def defaults_of(folder: Path, *, transformer_2: str | Path | None = None) -> Defaults:
    """Return the default settings of a checkpoint: those of its family, overridden by its `pusa.json`.

    transformer_2: the second of two experts, if it is a separate file or folder.
    """
    plain = (folder / "model_index.json").is_file()
    channels = config(str(folder), folder, "vae").get("z_dim", 16) if plain else None
    channels = channels or config(str(folder), folder, "transformer").get("in_channels", 16)
    family = defaults.WAN22_5B if channels == 48 else defaults.WAN21
    if transformer_2 is not None or len(experts_of(folder)) > 1:
        family = defaults.WAN22_A14B
        index = read_json(folder / "model_index.json") if plain else {}
        if (boundary := index.get("boundary_ratio")) is not None:
            family = defaults.override(family, folder / "model_index.json", {"boundary": boundary})
    path = folder / "pusa.json"
    return defaults.override(family, path, read_json(path)) if path.is_file() else family


def geometry(name: str, folder: Path, beside: Beside | None = None) -> Geometry:
    """Return the geometry of the model at `folder`, from its configurations. name: the model's, for messages.

    beside: {part: source} of parts from elsewhere. If there is no autoencoder, Wan's own is assumed.
    """
    beside = beside or {}
    transformer = config(name, folder, "transformer")
    if "vae" in missing_parts(folder) and not beside.get("vae"):
        large = transformer.get("in_channels") == 48
        autoencoder = recognise.wan22_vae() if large else recognise.wan21_vae()
    else:
        autoencoder = config(name, folder, "vae", beside)
    return geometry_of(autoencoder, patch_of(transformer))


def sizes(name: str, folder: Path) -> WanSizes:
    """Return the sizes of the model at `folder`, from its configurations."""
    return WanSizes.of(*(config(name, folder, part) for part in ("transformer", "vae")))


def patch_of(transformer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the latents per token along time, height and width, from a transformer's configuration."""
    p_t, p_h, p_w = transformer.get("patch_size", (1, 2, 2))
    return p_t, p_h, p_w
