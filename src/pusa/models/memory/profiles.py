"""Memory profiles: where the weights of a loaded model are, and in which type.

A profile uses group offloading, layerwise casting and tiling of diffusers. Without a profile every network is on the
device, as with `80gb`. Each further profile needs less memory and is slower. `estimate` computes whether a clip fits.
On a CPU no profile offloads, except to the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import nn

from pusa.errors import InputError, PusaError

if TYPE_CHECKING:
    from pusa.models.backbone import Backbone, Geometry

FP8 = torch.float8_e4m3fn
KEPT = ("norm", r"\.wo$", "shared", "embed_tokens", "relative_attention_bias")
"""Modules of the text encoder that are not stored as fp8: transformers casts the input of `wo` to its weight's type."""
KEPT_OF_WAN = ("patch_embedding", "condition_embedder", "norm", "^proj_out$", "lora_")
"""Modules of the transformer that are not stored as fp8: diffusers' exceptions, the last layer, and LoRAs."""
Place = Literal["device", "host", "stream", "disk"]


@dataclass(frozen=True)
class Profile:
    """Where the weights of each network are, and how they are stored.

    Attributes:
        gigabytes: the device memory that the profile is for; None for a CPU.
        transformer: "device"; for a model with two experts, the expert in use is on the device and the other one in the
            machine's memory. "host": in the machine's memory, and copied to the device block by block. "stream": the
            same, and the next block is copied while a block computes. "disk": block by block from a temporary folder.
        text_encoder, vae: "device", or "host": in the machine's memory, and copied to the device layer by layer.
        fp8: the networks whose linear layers are stored as float8_e4m3fn and converted when they run; not for GGUF.
        pinned: whether the memory for "stream" is page-locked, for faster copies. It cannot be swapped out then.
        tiled: whether the autoencoder works in tiles of 256x256 pixels. Pixels differ a little, because the edges of
            the tiles are blended.
        releases: whether the text encoder is removed from memory after the prompts are encoded.
    """

    name: str
    gigabytes: int | None
    transformer: Place = "device"
    text_encoder: Place = "device"
    vae: Place = "device"
    fp8: tuple[str, ...] = ()
    pinned: bool = False
    tiled: bool = False
    releases: bool = False


PLAIN = Profile("80gb", 80)
PROFILES = {
    profile.name: profile
    for profile in (
        PLAIN,
        Profile("48gb", 48, text_encoder="host"),
        Profile("24gb", 24, text_encoder="host", fp8=("transformer",), tiled=True),
        Profile("16gb", 16, transformer="stream", text_encoder="host", pinned=True, tiled=True),
        Profile("12gb", 12, transformer="stream", text_encoder="host", fp8=("transformer",), tiled=True),
        Profile("8gb", 8, transformer="disk", text_encoder="host", vae="host", fp8=("transformer", "text_encoder"),
                tiled=True, releases=True),
        Profile("cpu", None, releases=True),
    )
}  # fmt: skip
"""{name: profile}, from the fastest to the one that needs least memory of a GPU, and the one for a CPU"""


def named(name: str) -> Profile:
    """Return the profile with this name. InputError if there is none."""
    if name not in PROFILES:
        raise InputError(f"There is no memory profile {name!r}: choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def apply(backbone: Backbone, profile: Profile, device: torch.device, folder: str | None = None) -> None:
    """Place the networks of a model as the profile says. Call it once for a model.

    backbone: with its networks on the CPU, in the types in which they compute. LoRAs may be added before or later.
    device: where the model will run. folder: an empty folder for weights on the disk, if the profile needs it. It must
    exist as long as the model.
    """
    encoder, vae = backbone.text_encoder, backbone.vae
    if profile.tiled:
        vae.enable_tiling()
    place_text_encoder(encoder, profile, device)
    if profile.vae == "host" and device.type != "cpu":
        apply_group_offloading(vae, device, offload_type="leaf_level")
    else:
        vae.to(device)
    _place_transformer(backbone.transformer, profile, device, folder)
    if (second := backbone.transformer_2) is not None:
        # If the first expert is on the device, the second one stays in the machine's memory.
        place = torch.device("cpu") if profile.transformer == "device" else device
        _place_transformer(second, profile, place, f"{folder}/transformer_2" if folder else None)


def _place_transformer(transformer: nn.Module, profile: Profile, device: torch.device, folder: str | None) -> None:
    # quant_type is an attribute of diffusers' GGUFParameter.
    if "transformer" in profile.fp8 and not any(hasattr(weight, "quant_type") for weight in transformer.parameters()):
        apply_layerwise_casting(transformer, FP8, transformer.dtype, KEPT_OF_WAN)
    if profile.transformer == "device" or (device.type == "cpu" and profile.transformer != "disk"):
        transformer.to(device)
        return
    if profile.transformer == "disk" and folder is None:
        raise ValueError("a profile that offloads to disk needs a folder")
    apply_group_offloading(
        transformer,
        device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=profile.transformer == "stream",
        low_cpu_mem_usage=not profile.pinned,
        offload_to_disk_path=folder if profile.transformer == "disk" else None,
    )


def place_text_encoder(encoder: nn.Module, profile: Profile, device: torch.device) -> None:
    """Place the text encoder as `apply` does, after it was released and loaded again."""
    if "text_encoder" in profile.fp8:
        apply_layerwise_casting(encoder, FP8, next(encoder.parameters()).dtype, KEPT)
    if profile.text_encoder == "host" and device.type != "cpu":
        apply_group_offloading(encoder, device, offload_type="leaf_level")
    else:
        encoder.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that the device or the machine ran out of memory."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in text.lower() for words in ("not enough memory", "out of memory", "can't allocate memory"))
    )


@contextmanager
def explained(
    profile: str | None,
    *,
    on_cpu: bool,
    geometry: Geometry | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
) -> Iterator[None]:
    """If the block runs out of memory, raise a PusaError that names three options to try. Arguments: see `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the machine" if on_cpu else "the device"
        raise PusaError(f"{where} ran out of memory: {advice(profile, on_cpu, geometry, size, frames)}.") from error


def advice(
    profile: str | None, on_cpu: bool, geometry: Geometry | None, size: tuple[int, int] | None, frames: int | None
) -> str:
    """Return the three options to try, as in `try --memory 12gb, --frames 45 or --size 624x352`.

    profile: the name of the profile in use, or None. geometry, size, frames: those of the clip; None before a clip.
    """
    order = ["80gb", "cpu", "8gb"] if on_cpu else [name for name in PROFILES if name != "cpu"]
    later = order[order.index(profile or "80gb") + 1 :] if (profile or "80gb") in order else order[-1:]
    tries = [f"--memory {name}" for name in later[:1]]
    shorter, smaller = "fewer --frames", "a smaller --size"
    if frames is not None and geometry is not None:
        shorter = f"--frames {geometry.whole(frames * 5 // 9 + 1)}"
    if size is not None and geometry is not None:
        grid = max(32, geometry.multiple)
        smaller = "--size {}x{}".format(*(max(grid, side * 3 // 4 // grid * grid) for side in size))
    tries += [shorter, smaller, "a smaller --model (1.3B, 5B, or a .gguf file)"]
    return f"try {tries[0]}, {tries[1]} or {tries[2]}"
