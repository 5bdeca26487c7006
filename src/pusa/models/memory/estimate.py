"""What making a clip will take, from configs and headers alone: peak memory of device and machine, and operations.

The networks are built on the meta device, where tensors have shapes and no data, and the very code that will run is
rehearsed there: one pass of the text encoder, one of the transformer with a timestep per frame, the decoding of three
slots (after which memory repeats itself). A ledger follows every tensor from its making to its release, which gives the
peak, and counts the operations of matrix products, convolutions and attention. Attention is taken as fused, as every
backend of torch runs it: its scores are never held. LoRAs are rehearsed as well.

What the rehearsal cannot see is added: the weights as a profile lays them out, the runtime itself, and the copies that
convolutions on a CPU make of what they read and write. Guidance asks twice, one after the other, and takes no memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pusa.errors import InputError
from pusa.models.loading.sources import Beside, transformers_of
from pusa.models.memory import meta_networks
from pusa.models.memory.profiles import KEPT, KEPT_OF_WAN, PLAIN, PROFILES, Profile
from pusa.models.memory.tensor_tracker import Pass, rehearse
from pusa.models.wan import autoencoder
from pusa.models.wan.text import TOKENS

RUNTIME = 0.75e9
"""Bytes of the machine's memory that Python with torch, diffusers and transformers takes before a model is there."""
CUDA_CONTEXT = 0.6e9
"""Bytes of a GPU that CUDA and its libraries take."""
FRAGMENTATION = 1.08
"""What torch's allocator on a GPU holds beside what is in use, as a factor on what comes and goes."""
SMALL = 100e6
"""Bytes: a model with less on the disk is not weighed before it is loaded."""


@dataclass(frozen=True)
class Needs:
    """What a clip takes under a profile, in bytes.

    device, host: the peak of each phase (load, text, sample, decode); on a CPU everything is the host's. moved: what
    one step copies from host or disk to the device. flops: of one step.
    """

    profile: str
    device: Mapping[str, float]
    host: Mapping[str, float]
    moved: float
    flops: int

    @property
    def device_peak(self) -> float:
        return max(self.device.values(), default=0.0)

    @property
    def host_peak(self) -> float:
        return max(self.host.values())

    def fits(self, device: float | None, host: float) -> bool:
        """Within the bytes that a device (None where there is none) and the machine have left."""
        return self.host_peak <= host and (device is None or self.device_peak <= device)

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "profile": self.profile,
            "device": round(self.device_peak),
            "host": round(self.host_peak),
            "phases": {
                side: {phase: round(size) for phase, size in sizes.items()}
                for side, sizes in (("device", self.device), ("host", self.host))
                if sizes
            },
            "moved_per_step": round(self.moved),
            "flops_per_step": self.flops,
        }


@dataclass(frozen=True)
class Rehearsal:
    """A clip that was not made: its networks' weights and passes, from which `needs` works out every profile.

    networks: by their kinds; of two experts, both, each taken to have all LoRAs. text, sample, plain, tiled: passes of
    the text encoder, of the transformer, and of decoding whole frames or tiles.
    """

    networks: Mapping[str, meta_networks.Network]
    text: Pass
    sample: Pass
    plain: Pass
    tiled: Pass
    size: tuple[int, int]
    frames: int
    passes: int
    on_cpu: bool
    assumed: tuple[str, ...] = field(default=())

    @classmethod
    def of(
        cls,
        name: str,
        folder: Path,
        *,
        size: tuple[int, int],
        frames: int,
        guidance: float = 1.0,
        dtype: torch.dtype | None = None,
        on_cpu: bool = True,
        beside: Beside | None = None,
        loras: Sequence[Path] = (),
    ) -> Rehearsal:
        """Rehearse a clip of the model at `folder`, called `name` in errors, in `dtype` (as `checkpoints.load`).

        size: (width, height). guidance: 1 is one pass a step, else two. on_cpu: where it would run. beside: parts
        given beside the model; what is neither there nor here is taken to be Wan's own. Reads no weight. Raises
        InputError for what is no model or no clip.
        """
        dtype = dtype or (torch.float32 if on_cpu else torch.bfloat16)
        configs, assumed = meta_networks.configs(name, folder, beside or {})
        transformer, encoder, vae = meta_networks.built(configs, dtype)
        slots = autoencoder.geometry_of(vae.config, (1, 1, 1)).latent_frames(frames)
        files = meta_networks.files_of(folder, beside or {})
        for number, path in enumerate(loras):
            meta_networks.adapt(transformer, path, f"lora{number}")
        networks = {
            **{
                kind: meta_networks.weighed(transformer, KEPT_OF_WAN, transformer.blocks, files.get(kind, []))
                for kind in transformers_of(name, folder, beside)
            },
            "text_encoder": meta_networks.weighed(encoder, KEPT, encoder.encoder.block, files.get("text_encoder", [])),
            "vae": meta_networks.weighed(vae, None, None, files.get("vae", [])),
        }
        factor = int(vae.config.scale_factor_spatial)
        multiple = factor * int(transformer.config.patch_size[1])
        if any(side < 1 or side % multiple for side in size):
            raise InputError(f"The size {size[0]}x{size[1]} cannot be made: both must be multiples of {multiple}.")
        height, width = size[1] // factor, size[0] // factor
        clip = torch.empty(
            1, transformer.config.in_channels, slots, height, width, device=meta_networks.META, dtype=dtype
        )
        context = torch.empty(1, TOKENS, transformer.config.text_dim, device=meta_networks.META, dtype=dtype)
        times = torch.empty(1, slots, device=meta_networks.META)
        # `forward` looks at the timesteps' values to tell whether they differ, and here they have none.
        sample = rehearse(
            lambda: transformer._forward_per_frame(clip, times, context, None, return_dict=False, attention_kwargs=None)
        )
        ids = torch.zeros(1, TOKENS, device=meta_networks.META, dtype=torch.int64)
        text = rehearse(lambda: encoder(ids))
        few = min(slots, 3)
        z = torch.empty(1, vae.config.z_dim, few, height, width, device=meta_networks.META)
        plain = _decoding(vae, z, slots, on_cpu)
        vae.enable_tiling()
        tile = z[..., : vae.tile_sample_min_height // factor, : vae.tile_sample_min_width // factor]
        tiles = prod(-(-side // vae.tile_sample_stride_width) for side in size)
        vae.use_tiling = False
        one = plain if tile.shape == z.shape else _decoding(vae, tile, slots, on_cpu)
        tiled = one if tile.shape == z.shape else Pass(one.peak, one.flops * tiles)
        return cls(
            networks, text, sample, plain, tiled, size, frames, 1 if guidance == 1 else 2, on_cpu, tuple(assumed)
        )

    def needs(self, profile: Profile) -> Needs:
        """Under a profile."""
        return self._on_cpu(profile) if self.on_cpu else self._on_gpu(profile)

    @property
    def flops(self) -> int:
        """Operations of one step."""
        return self.passes * self.sample.flops

    def _decode(self, profile: Profile) -> tuple[Pass, float]:
        """The pass, and the bytes of frames in the host's memory: as bytes, and as floats where tiles are joined."""
        pixels = float(prod(self.size) * self.frames * 3)
        if profile.tiled and self.tiled is not self.plain:
            return self.tiled, pixels * 22
        return self.plain, pixels

    def _on_cpu(self, profile: Profile) -> Needs:
        stored = self._stored(profile)
        loading = sum(network.weights for network in self.networks.values()) + self._loading()
        decode, frames = self._decode(profile)
        moved = 0.0
        if profile.transformer == "disk":
            fp8 = "transformer" in profile.fp8
            moved = self.passes * float(stored["transformer"])
            for kind in {"transformer", "transformer_2"} & set(self.networks):
                one = self.networks[kind]
                stored[kind] = float(one.block_fp8 + one.rest_fp8 if fp8 else one.block + one.rest)
        everything = sum(stored.values())
        later = everything - stored["text_encoder"] * profile.releases
        widening = {kind: one.widest * (kind in profile.fp8) for kind, one in self.networks.items()}
        host = {
            "load": RUNTIME + loading,
            "text": RUNTIME + everything + self.text.peak + widening["text_encoder"],
            "sample": RUNTIME + later + self.sample.peak + widening["transformer"],
            "decode": RUNTIME + later + decode.peak + frames,
        }
        return Needs(profile.name, {}, host, moved, self.flops)

    def _on_gpu(self, profile: Profile) -> Needs:
        transformer, encoder, vae = (self.networks[kind] for kind in ("transformer", "text_encoder", "vae"))
        stored = self._stored(profile)
        fp8 = "transformer" in profile.fp8
        block, rest = (transformer.block_fp8, transformer.rest_fp8) if fp8 else (transformer.block, transformer.rest)
        widening = transformer.widest if fp8 else 0
        while_sampling = {
            "device": stored["transformer"],
            "host": float(rest + block),
            "stream": float(rest + 2 * block),
            "disk": float(rest + block),
        }[profile.transformer] + widening
        resident = (
            CUDA_CONTEXT
            + stored["transformer"] * (profile.transformer == "device")
            + stored["text_encoder"] * (profile.text_encoder == "device")
            + stored["vae"] * (profile.vae == "device")
        )
        text = encoder.widest if profile.text_encoder == "host" else 0
        sample = while_sampling if profile.transformer != "device" else float(widening)
        decode, frames = self._decode(profile)
        one_layer = vae.widest if profile.vae == "host" else 0
        device = {
            "text": resident + text + FRAGMENTATION * self.text.peak,
            "sample": resident + sample + FRAGMENTATION * self.sample.peak,
            "decode": resident + one_layer + FRAGMENTATION * decode.peak,
        }
        # Of two experts on the device the one that is not asked waits in memory.
        second = stored.get("transformer_2", 0.0) * (profile.transformer != "disk")
        on_host = {
            "transformer": stored["transformer"] * (profile.transformer in ("host", "stream")) + second,
            "text_encoder": stored["text_encoder"] * (profile.text_encoder == "host"),
            "vae": stored["vae"] * (profile.vae == "host"),
        }
        kept = sum(on_host.values())
        later = kept - on_host["text_encoder"] * profile.releases
        if profile == PLAIN:
            waiting = {kind: network.weights for kind, network in self.networks.items() if kind == "transformer_2"}
            load = max(network.weights for network in self.networks.values()) + sum(waiting.values()) + self._loading()
        else:
            load = sum(network.weights for network in self.networks.values()) + self._loading()
        if profile.pinned:
            load = max(load, kept + stored["transformer"])
        host = {
            "load": RUNTIME + load,
            "text": RUNTIME + kept,
            "sample": RUNTIME + later,
            "decode": RUNTIME + later + frames,
        }
        moved = self.passes * stored["transformer"] * (profile.transformer != "device")
        return Needs(profile.name, device, host, moved, self.flops)

    def _stored(self, profile: Profile) -> dict[str, float]:
        """Bytes of each network's weights as the profile keeps them."""
        return {kind: float(one.stored(profile, kind.removesuffix("_2"))) for kind, one in self.networks.items()}

    def _loading(self) -> float:
        """What loading takes for a moment beside the weights: the check of the widest tensor for broken values."""
        return float(max(2 * network.widest for network in self.networks.values()))


def choose(rehearsal: Rehearsal, device: float | None, host: float) -> Profile:
    """The fastest profile under which the clip fits into the bytes that are left; InputError when there is none."""
    names = [name for name in PROFILES if (name in ("80gb", "cpu", "8gb")) or not rehearsal.on_cpu]
    candidates = [PROFILES[name] for name in names if rehearsal.on_cpu or name != "cpu"]
    candidates.sort(key=lambda profile: profile.transformer == "disk")
    needs = [rehearsal.needs(profile) for profile in candidates]
    for profile, need in zip(candidates, needs, strict=True):
        if need.fits(device, host):
            return profile
    raise too_large(min(needs, key=lambda need: (need.device_peak, need.host_peak)), rehearsal, device, host)


def too_large(needs: Needs, rehearsal: Rehearsal, device: float | None, host: float) -> InputError:
    """What to raise for a clip that will not fit."""
    width, height = rehearsal.size
    over = [
        f"{need / 1e9:.1f} GB {where} where {have / 1e9:.1f} GB are free"
        for need, have, where in (
            (needs.device_peak, device, "of device memory"),
            (needs.host_peak, host, "of memory"),
        )
        if have is not None and need > have
    ]
    return InputError(
        f"There is not enough memory: {rehearsal.frames} frames of {width}x{height} will take about "
        f"{' and '.join(over)} (profile {needs.profile}); give fewer --frames, a smaller --size or a smaller model, "
        "another --memory, or --memory none to try all the same."
    )


def bytes_on_disk(folder: Path, beside: Beside | None = None) -> int:
    """Of the files of weights of a model, as far as they are here."""
    return sum(file.stat().st_size for files in meta_networks.files_of(folder, beside or {}).values() for file in files)


def free_memory(device: torch.device) -> tuple[float | None, float]:
    """Bytes that are free: of the device (None for a CPU), and of the machine, within the limits of its container."""
    host = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")) if hasattr(os, "sysconf") else float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        host = float(found.get("MemAvailable", f"{host / 1024}").split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        host = min(host, float(most) - float(used.read_text()))
    on_device = float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None
    return on_device, host


def _decoding(vae: AutoencoderKLWan, z: Tensor, slots: int, on_cpu: bool) -> Pass:
    """Decoding `slots` slots, from a rehearsal of those in z."""

    def run() -> None:
        for _ in autoencoder.decoded(vae, z):
            pass

    found = rehearse(run, on_cpu)
    return Pass(found.peak, found.flops * slots // z.shape[2])
