"""What the files of a model say before its weights are read: checks, default settings, geometry, a fingerprint.

Only configurations and headers are read, and nothing here imports torch. So a clip that a model cannot make is refused
in a moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pusa import embedded
from pusa.errors import InputError
from pusa.models.backbone import Defaults, Expert, Geometry
from pusa.models.loading.sources import (
    TINY,
    Beside,
    check_transformer,
    config,
    experts_of,
    files_of,
    missing_parts,
    read_json,
    transformers_of,
)
from pusa.models.lora.header import LoraFile
from pusa.models.wan import defaults, recognise
from pusa.models.wan.geometry import FRAMES_PER_SLOT, geometry_of
from pusa.models.wan.recognise import TRANSFORMER, TRANSFORMER_2


def own_loras(name: str) -> list[LoraFile]:
    """Return the LoRAs that a model name includes: for "tiny", the embedded adapter at its strength."""
    return [LoraFile(embedded.adapter(), embedded.STRENGTH)] if name == TINY else []


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


def patch_of(transformer: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the latents per token along time, height and width, from a transformer's configuration."""
    p_t, p_h, p_w = transformer.get("patch_size", (1, 2, 2))
    return p_t, p_h, p_w
