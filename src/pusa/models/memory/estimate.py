"""Estimate the peak memory and the operations of making a clip, from configs and headers alone.

The networks are built on the meta device, where tensors have shapes and no data. There the code that will run is
rehearsed: one pass of the text encoder, one pass of the transformer with a timestep per frame and with its LoRAs, and
the decoding of three slots (further slots need no more memory). `tensor_tracker` follows every tensor, which gives the
peak, and counts operations. Attention is assumed to be fused, so that its scores are not stored.

The rehearsal does not include some memory, which is added: the weights as a profile places them, the runtime, and the
copies that convolutions make on a CPU, the keys and values of the text that are kept for all steps (`per_clip`), and
what an acceleration keeps.
Guidance calls the transformer twice, one call after the other, and so needs no more memory for activations. With both
branches in one call, it needs about twice as much.
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
from pusa.models.wan import autoencoder, per_clip
from pusa.models.wan.geometry import geometry_of
from pusa.models.wan.text import TOKENS

RUNTIME = 0.75e9
"""bytes of the machine's memory that Python with torch, diffusers and transformers needs without a model"""
CUDA_CONTEXT = 0.6e9
"""bytes of a GPU that CUDA and its libraries need"""
FRAGMENTATION = 1.08
"""memory that torch reserves on a GPU, as a multiple of the memory of activations"""
PROMPT = 256
"""tokens of a long prompt, whose keys and values are kept while a clip is sampled"""
SMALL = 100e6
"""bytes on the disk below which the memory of a model is not estimated before it is loaded"""


@dataclass(frozen=True)
class Needs:
    """What a clip needs with a profile.

    device, host: {phase: peak memory in bytes} of the GPU, if there is one, and the machine; the phases are load, text,
    sample and decode. moved: bytes that one step copies to the device. flops: operations of one step.
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
        """Return whether the clip fits in the free bytes of the device (None without a GPU) and the machine."""
        return self.host_peak <= host and (device is None or self.device_peak <= device)

    def record(self) -> dict[str, Any]:
        """Return the values for JSON, in bytes and operations."""
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
    """The weights and passes of the networks for a clip, from which `needs` computes every profile.

    networks: by kind. Each of two experts is assumed to have all LoRAs. text, sample: a pass of the text encoder and
    of the transformer. plain, tiled: decoding whole frames, and decoding tiles. passes: calls of the transformer per
    step. kept: bytes that are kept between steps, of the texts and by an acceleration. assumed: the parts that the
    source does not have, and that are assumed to be Wan's own.
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
    kept: int
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
        in_one_call: bool = False,
        kept_states: tuple[int, int] = (0, 0),
        dtype: torch.dtype | None = None,
        on_cpu: bool = True,
        beside: Beside | None = None,
        loras: Sequence[Path] = (),
    ) -> Rehearsal:
        """Rehearse a clip of the model at `folder`, without reading weights.

        name: the model's, for messages. size: (width, height). guidance: with 1, a step calls the transformer once,
        otherwise twice. in_one_call: both calls are one, of both guidance branches. kept_states: how many hidden states
        an acceleration keeps between steps for each branch, and how many more for each block. dtype: as for
        `checkpoints.load`. beside: {part: source} of parts from elsewhere. Raises InputError if there is no such model,
        or if it cannot make such a clip.
        """
        dtype = dtype or (torch.float32 if on_cpu else torch.bfloat16)
        configs, assumed = meta_networks.configs(name, folder, beside or {})
        transformer, encoder, vae = meta_networks.build(configs, dtype)
        slots = geometry_of(vae.config, (1, 1, 1)).latent_frames(frames)
        files = meta_networks.files_of(folder, beside or {})
        for number, path in enumerate(loras):
            meta_networks.add_lora(transformer, path, f"lora{number}")
        networks = {
            **{
                kind: meta_networks.measure(transformer, KEPT_OF_WAN, transformer.blocks, files.get(kind, []))
                for kind in transformers_of(name, folder, beside)
            },
            "text_encoder": meta_networks.measure(encoder, KEPT, encoder.encoder.block, files.get("text_encoder", [])),
            "vae": meta_networks.measure(vae, None, None, files.get("vae", [])),
        }
        factor = int(vae.config.scale_factor_spatial)
        multiple = factor * int(transformer.config.patch_size[1])
        if any(side < 1 or side % multiple for side in size):
            raise InputError(f"The size {size[0]}x{size[1]} cannot be made: both must be multiples of {multiple}.")
        height, width = size[1] // factor, size[0] // factor
        texts = 1 if guidance == 1 else 2
        batch = texts if in_one_call else 1
        clip = torch.empty(
            batch, transformer.config.in_channels, slots, height, width, device=meta_networks.META, dtype=dtype
        )
        context = torch.empty(batch, TOKENS, transformer.config.text_dim, device=meta_networks.META, dtype=dtype)
        times = torch.empty(batch, slots, device=meta_networks.META)
        # `forward` compares the values of the timesteps, and tensors on the meta device have no values.
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
        branches = texts * (len(networks) - 2)
        kept = per_clip.kept_bytes(transformer.config, PROMPT, branches, dtype.itemsize)
        config = transformer.config
        fixed, for_each_block = kept_states
        tokens = slots * height * width // prod(config.patch_size)
        state = tokens * config.num_attention_heads * config.attention_head_dim * dtype.itemsize
        kept += branches * (fixed + for_each_block * config.num_layers) * state
        return cls(networks, text, sample, plain, tiled, size, frames, texts // batch, on_cpu, kept, tuple(assumed))

    def needs(self, profile: Profile) -> Needs:
        """Return what the clip needs with a profile."""
        return self._on_cpu(profile) if self.on_cpu else self._on_gpu(profile)

    @property
    def flops(self) -> int:
        """The operations of one step."""
        return self.passes * self.sample.flops

    def _decode(self, profile: Profile) -> tuple[Pass, float]:
        """Return the pass, and the bytes of frames in the machine's memory, which are more when tiles are joined."""
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
            "sample": RUNTIME + later + self.kept + self.sample.peak + widening["transformer"],
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
            "sample": resident + sample + self.kept + FRAGMENTATION * self.sample.peak,
            "decode": resident + one_layer + FRAGMENTATION * decode.peak,
        }
        # The expert that is not in use is in the machine's memory.
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
        """Return the bytes of each network's weights as the profile stores them."""
        return {kind: float(one.stored(profile, kind.removesuffix("_2"))) for kind, one in self.networks.items()}

    def _loading(self) -> float:
        """Return the bytes that loading needs besides the weights: those to check the largest tensor for NaN."""
        return float(max(2 * network.widest for network in self.networks.values()))


def choose(rehearsal: Rehearsal, device: float | None, host: float) -> Profile:
    """Return the fastest profile with which the clip fits in the free bytes. InputError if there is none."""
    names = [name for name in PROFILES if (name in ("80gb", "cpu", "8gb")) or not rehearsal.on_cpu]
    candidates = [PROFILES[name] for name in names if rehearsal.on_cpu or name != "cpu"]
    candidates.sort(key=lambda profile: profile.transformer == "disk")
    needs = [rehearsal.needs(profile) for profile in candidates]
    for profile, need in zip(candidates, needs, strict=True):
        if need.fits(device, host):
            return profile
    raise too_large(min(needs, key=lambda need: (need.device_peak, need.host_peak)), rehearsal, device, host)


def too_large(needs: Needs, rehearsal: Rehearsal, device: float | None, host: float) -> InputError:
    """Return the error for a clip that does not fit."""
    width, height = rehearsal.size
    over = [
        f"{need / 1e9:.1f} GB {where}, of which {have / 1e9:.1f} GB are free"
        for need, have, where in (
            (needs.device_peak, device, "of device memory"),
            (needs.host_peak, host, "of memory"),
        )
        if have is not None and need > have
    ]
    return InputError(
        f"There is not enough memory: {rehearsal.frames} frames of {width}x{height} need about {' and '.join(over)} "
        f"(profile {needs.profile}); give fewer --frames, a smaller --size, a smaller model or another --memory, or "
        "skip this check with --memory none."
    )


def bytes_on_disk(folder: Path, beside: Beside | None = None) -> int:
    """Return the bytes of a model's files of weights on this machine."""
    return sum(file.stat().st_size for files in meta_networks.files_of(folder, beside or {}).values() for file in files)


def free_memory(device: torch.device) -> tuple[float | None, float]:
    """Return the free bytes of the device (None for a CPU) and of the machine, within the limits of its container."""
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
    """Return the pass of decoding `slots` slots, from a rehearsal with the slots of `z`."""

    def run() -> None:
        for _ in autoencoder.decoded(vae, z):
            pass

    found = rehearse(run, on_cpu)
    return Pass(found.peak, found.flops * slots // z.shape[2])
