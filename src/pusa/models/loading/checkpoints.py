"""Find and load a text-to-video model: the embedded base, a diffusers folder, Wan's own layout, a file, or a hub id.

Whatever it comes from, its parts are loaded as the stock classes and the transformer is then upgraded to one timestep
per frame, so nothing about the files is ours. `sources.py` finds it, `recognise.py` says which Wan it is and
`original.py` reads everything that is not a diffusers folder. What a model likes by default (frame rate, length, size,
steps) is read from `pusa.json` beside `model_index.json` where there is one, else from the Wan family it belongs to.
Everything that can be refused is refused from configs and headers, before any weight is read or downloaded.
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
    check_transformer,
    config,
    experts_of,
    files_of,
    find,
    lacking,
    lasting,
    locate,
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
    """Load a model and put it on `device` in `dtype` (the autoencoder stays in float32).

    source: "tiny" (the embedded base with its adapter), "tiny-base" (without), a folder in the diffusers layout or in
    Wan's own, a file (.safetensors in any precision including fp8 with scales, .gguf, .pth), or a hub id such as
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers". vae, text_encoder: a file, a folder or a hub id for that part, where the source
    holds only the transformer or another is wanted; transformer_2: the expert for low noise, where the source is the
    one for high. expert: load only one of two, as the transformer of a model that has no other. device: a GPU where
    there is one, by default; of two experts the second waits on the CPU. dtype: bfloat16 on a GPU, float32 on a CPU, by
    default; fp8 weights are widened to it. Raises InputError when there is no such model, it is of an unsupported kind,
    or its parts do not belong together.
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
        beside={kind: lasting(given) for kind, given in parts.beside.items() if given is not None},
    )
    own = [runtime.load(first, one.path, one.scale) for one in own_loras(components.source)]
    return replace(components, loras=tuple(own))


def own_loras(name: str) -> list[runtime.LoraFile]:
    """The LoRAs that belong to a model by its name: the adapter of "tiny", at its strength."""
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
    """Only what turns clips and captions into latents and contexts, as `load` would; no transformer is fetched."""
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
        """A frozen network on the device; InputError when weights of it are missing or damaged."""
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
                why = f"only {pickles[0]}, a pickle, which is not read" if pickles else "nothing"
                raise InputError(
                    f"The {kind} of {self.name} is incomplete: of its weights there is {why}; copy or download its "
                    ".safetensors files."
                )
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
                raise InputError(
                    f"The {kind} of {name} is damaged: its {key} holds values that are no numbers; copy it again."
                )
        return model.eval().requires_grad_(False).to(device or self.device)

    def tokenizer(self) -> Path:
        """The folder of the tokenizer that goes with the text encoder."""
        found = locate(self.name, self.folder, "text_encoder", self.beside)
        home = found.path if isinstance(found, original_layout.Part) else found
        if beside := original_layout.tokenizer_beside(home):
            return beside
        try:
            return hub.snapshot(original_layout.TOKENIZER, ["*.json", "spiece.model"])
        except InputError as error:
            raise InputError(
                f"There is no tokenizer beside the text encoder {home} (tokenizer/ or {original_layout.TOKENIZER}/), "
                f"and it cannot be fetched: {error}"
            ) from error

    def part(self, kind: str, folder: Path, loader: Callable[..., Any]) -> Any:
        try:
            with _no_bars():
                return loader(str(folder), local_files_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"The {kind} of {self.name} cannot be loaded, copy it again ({reason}).") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar per file."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def fingerprint(folder: Path, beside: Beside | None = None, transformers: Sequence[str] = (TRANSFORMER,)) -> str:
    """A hash over the checkpoint's files: names, sizes and both ends of each, so that 30 GB take no time.

    folder: the model's folder or file. beside: the parts that are given elsewhere. transformers: those that are used.
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
    """Raise InputError unless the configs and headers at `folder` are those of a plain Wan text-to-video model.

    folder: the model's folder or file. vae, text_encoder, transformer_2: the parts that are given beside it. expert:
    only that one of two is wanted. Returns which transformers are: `transformer`, `transformer_2` or both.
    """
    transformer = check_transformer(name, folder)
    beside = {"vae": vae, "text_encoder": text_encoder, TRANSFORMER_2: transformer_2}
    transformers = transformers_of(name, folder, beside, expert)
    autoencoder = config(name, folder, "vae", beside)
    channels, latent = transformer.get("in_channels", 16), autoencoder.get("z_dim", 16)
    if channels != latent:
        of = name if vae is None else str(vae)
        right = {16: "Wan2.1's of 16 channels (Wan2.1_VAE)", 48: "Wan2.2's of 48 channels (Wan2.2_VAE)"}
        if channels in right and latent in right:
            raise InputError(
                f"{name} needs {right[channels]} as its autoencoder, but {of} has {latent}: give that one."
            )
        what = "it is no text-to-video model" if vae is None else f"give one of {channels} channels"
        raise InputError(f"{name} reads {channels} channels where the autoencoder of {of} has {latent}: {what}.")
    if autoencoder.get("scale_factor_temporal", 4) != FRAMES_PER_SLOT:
        raise InputError(
            f"The autoencoder of {name} compresses time by {autoencoder['scale_factor_temporal']} instead of 4."
        )
    if text_encoder is not None or folder.is_file():
        text = config(name, folder, "text_encoder", beside)
        if (width := text.get("d_model")) != transformer.get("text_dim", 4096):
            raise InputError(
                f"{name} reads text of {transformer.get('text_dim', 4096)} channels, but "
                f"{text_encoder or name} has a text encoder of {width}: give Wan's umt5-xxl."
            )
    return transformers


def defaults_of(folder: Path, *, transformer_2: str | Path | None = None) -> Defaults:
    """The defaults of the checkpoint in a folder or file: its family's, changed by its `pusa.json` if it has one.

    transformer_2: the second of two experts, where that is given beside it.
    """
    plain = (folder / "model_index.json").is_file()
    channels = config(str(folder), folder, "vae").get("z_dim", 16) if plain else None
    channels = channels or config(str(folder), folder, "transformer").get("in_channels", 16)
    family = defaults.WAN22_5B if channels == 48 else defaults.WAN21
    if transformer_2 is not None or len(experts_of(folder)) > 1:
        family = defaults.WAN22_A14B
        index = read_json(folder / "model_index.json") if plain else {}
        if (boundary := index.get("boundary_ratio")) is not None:
            family = defaults.changed(family, folder / "model_index.json", {"boundary": boundary})
    path = folder / "pusa.json"
    return defaults.changed(family, path, read_json(path)) if path.is_file() else family


def geometry(name: str, folder: Path, beside: Beside | None = None) -> Geometry:
    """The geometry of the model at `folder`, from its configurations; `name` is what errors call it.

    beside: the parts that are given elsewhere. An autoencoder that is neither there nor given is taken to be Wan's own.
    """
    beside = beside or {}
    transformer = config(name, folder, "transformer")
    if "vae" in lacking(folder) and not beside.get("vae"):
        large = transformer.get("in_channels") == 48
        autoencoder = recognise.wan22_vae() if large else recognise.wan21_vae()
    else:
        autoencoder = config(name, folder, "vae", beside)
    return geometry_of(autoencoder, patch_of(transformer))


def sizes(name: str, folder: Path) -> WanSizes:
    """What decides the operations and the memory of a training, from the configurations of the model at `folder`."""
    return WanSizes.of(*(config(name, folder, part) for part in ("transformer", "vae")))


def patch_of(transformer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Latents per token, from a transformer's configuration."""
    p_t, p_h, p_w = transformer.get("patch_size", (1, 2, 2))
    return p_t, p_h, p_w
