"""How a loaded model is laid out in memory: a table of profiles, and one function that applies one.

Everything is done with diffusers' own means (group offloading, layerwise casting, tiling), so the transformer stays the
per-frame one with its LoRAs. Without a profile every network lies on the device, as with `80gb`; each further profile
gives up some speed for memory. Whether a clip fits under one is `memory`'s business. On a CPU there is nothing to
offload to, so there a profile casts, tiles and releases, and no more.
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
"""Of the text encoder, not stored as fp8: transformers casts what enters `wo` to the type that it finds there."""
KEPT_OF_WAN = ("patch_embedding", "condition_embedder", "norm", "^proj_out$", "lora_")
"""Of the transformer: diffusers' exceptions, the last layer, and LoRAs, which are small and were trained in more."""
Place = Literal["device", "host", "stream", "disk"]


@dataclass(frozen=True)
class Profile:
    """Where the weights of each network lie, and how they are stored.

    gigabytes: of device memory that it is meant for; None for a CPU.
    transformer: "device", of two experts the one that is asked, while the other waits in memory; "host", from where a
        block at a time is brought to the device; "stream", the same with the next block on its way meanwhile; "disk", a
        block at a time from a temporary folder.
    text_encoder, vae: "device", or "host", from where a layer at a time is brought.
    fp8: networks whose linear layers are stored as float8_e4m3fn and widened as they run; those of a GGUF file are
        smaller already and stay.
    pinned: the host's copy for "stream" is page-locked, for faster copies; it cannot be swapped out then.
    tiled: the autoencoder works in tiles of 256x256 pixels; their seams are blended, so the pixels differ a little.
    releases: the text encoder is dropped when the prompts are encoded, and read again for the next ones.
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
"""From the fastest to the most frugal."""


def named(name: str) -> Profile:
    """The profile of a name; InputError for another."""
    if name not in PROFILES:
        raise InputError(f"There is no memory profile {name!r}: choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def apply(backbone: Backbone, profile: Profile, device: torch.device, folder: str | None = None) -> None:
    """Lay a model out as the profile says; its networks are on the CPU, in the types that they compute in.

    device: where it is to run. folder: an empty one for the weights that go to disk, kept as long as the model; needed
    for such a profile. LoRAs may be there already or come later. A model is laid out once.
    """
    encoder, vae = backbone.text_encoder, backbone.vae
    if profile.tiled:
        vae.enable_tiling()
    lay_text_encoder(encoder, profile, device)
    if profile.vae == "host" and device.type != "cpu":
        apply_group_offloading(vae, device, offload_type="leaf_level")
    else:
        vae.to(device)
    _lay_transformer(backbone.transformer, profile, device, folder)
    if (second := backbone.transformer_2) is not None:
        # Beside a first expert on the device, the second one waits in memory.
        place = torch.device("cpu") if profile.transformer == "device" else device
        _lay_transformer(second, profile, place, f"{folder}/transformer_2" if folder else None)


def _lay_transformer(transformer: nn.Module, profile: Profile, device: torch.device, folder: str | None) -> None:
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


def lay_text_encoder(encoder: nn.Module, profile: Profile, device: torch.device) -> None:
    """`apply` for the text encoder alone, for when it was released and is read again."""
    if "text_encoder" in profile.fp8:
        apply_layerwise_casting(encoder, FP8, next(encoder.parameters()).dtype, KEPT)
    if profile.text_encoder == "host" and device.type != "cpu":
        apply_group_offloading(encoder, device, offload_type="leaf_level")
    else:
        encoder.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text.lower())
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
    """Turn running out of memory in the block into a PusaError of one sentence with the next three switches to try."""
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
    """`try --memory 12gb, --frames 45 or --size 624x352`: the next three switches.

    profile: the one in use, None for none. geometry, size, frames: of the clip, None where no clip is made yet.
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
