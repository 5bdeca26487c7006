"""Estimate the memory and time of a clip, for the report of `pusa info MODEL --memory` and for `--memory auto`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.acceleration.names import Acceleration
from pusa.cli.shared.options import Model
from pusa.cli.shared.terminal import Report, duration
from pusa.errors import InputError
from pusa.generation.sampling import Sampling

if TYPE_CHECKING:
    import torch

    from pusa.models.backbone import Defaults
    from pusa.models.memory.estimate import Needs, Rehearsal

BUS = 12e9
"""Bytes per second from the machine's memory to a GPU: the least that a PCIe 4.0 slot of 16 lanes reaches."""
LARGE = 4
"""The time of a clip is estimated if it has more than this many times the pixels of the model's default clip."""
LARGE_CLIP = 16
"""A clip is large if it has this many times the pixels of the model's default clip."""
DISK = 1.5e9
"""Bytes per second from a solid-state disk."""


def profile_for(
    model: Model,
    size: tuple[int, int] | None,
    frames: int | None,
    sampling: Sampling = Sampling(),
) -> str | None:
    """Return the name of the memory profile that `--memory` selects, or None if no profile is needed.

    size (width, height), frames, sampling: of the clip; None is the model's default. A model below 100 MB is not
    estimated unless the clip is large (see `LARGE_CLIP`). Raises InputError, before anything is loaded, if the clip
    does not fit into memory with the given profile, or with `auto` under every profile.
    """
    if model.memory == "none":
        return None
    from pusa.models.loading import configurations
    from pusa.models.memory import estimate, profiles

    chosen = None if model.memory == "auto" else profiles.named(model.memory)
    device = _device()
    _, folder = _found(model.source)
    on_disk = estimate.bytes_on_disk(folder, model.separate_parts())
    if 0 < on_disk < estimate.SMALL and relative_size(configurations.defaults_of(folder), size, frames) <= LARGE_CLIP:
        return None if chosen is None else chosen.name
    rehearsal = _rehearse(model, size, frames, sampling, device.type == "cpu")
    on_device, on_host = estimate.free_memory(device)
    free = on_device, on_host / int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # each process of torchrun loads the model
    if chosen is None:
        return estimate.choose(rehearsal, *free).name
    needs = rehearsal.needs(chosen)
    if not needs.fits(*free):
        raise estimate.too_large(needs, rehearsal, *free)
    return chosen.name


def relative_size(default: Defaults, size: tuple[int, int] | None, frames: int | None) -> float:
    """Return the pixels of a clip divided by the pixels of the model's default clip."""
    pixels = math.prod(size or default.size) * (frames or default.frames)
    return pixels / (math.prod(default.size) * default.frames)


def time_of(model: Model, size: tuple[int, int], frames: int, guidance: float, steps: int, coded: int) -> str:
    """Return how long a clip takes on this device, in words. It computes a little, to measure the device.

    size (width, height), frames: of the window that is sampled. coded: how many frames the autoencoder encodes and
    decodes; both are counted as decoding.
    """
    import torch

    from pusa.models.memory import profiles
    from pusa.training.costs import matmul_rate
    from pusa.training.estimate import EFFICIENCY

    device = _device()
    on_cpu = device.type == "cpu"
    rehearsal = _rehearse(model, size, frames, Sampling(guidance=guidance), on_cpu)
    kind = ("float32" if on_cpu else "bfloat16") if model.dtype == "auto" else model.dtype
    rate = _measured_rate(matmul_rate, str(device), getattr(torch, kind))
    profile = profiles.named("cpu" if on_cpu else "80gb")
    each = _seconds(rehearsal.needs(profile), profile.transformer, rate, EFFICIENCY)
    coding = [rehearsal.plain.flops / frames * coded / rate / share for share in reversed(EFFICIENCY)]
    low, high = (duration(one * steps + other) for one, other in zip(each, coding, strict=True))
    if low.split()[1].rstrip("s") == high.split()[1].rstrip("s"):
        low = low.split()[0]
    return high if low == high.split()[0] else f"{low} to {high}"


def memory_report(
    model: Model,
    *,
    size: tuple[int, int] | None,
    frames: int | None,
    guidance: float | None,
    profile: str | None,
    rate: float | None,
) -> Report:
    """Report the memory and time of a clip under one memory profile, or under all.

    size (width, height), frames, guidance: of the clip; None is the model's default. profile: None is all profiles.
    rate: the speed of the device in matrix products, in TFLOPS; None measures it. Raises InputError for an unknown
    profile or a rate that is not above 0.
    """
    import torch

    from pusa.models.memory import estimate, profiles
    from pusa.training.costs import device_name, matmul_rate
    from pusa.training.estimate import EFFICIENCY

    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--rate {rate}: give the TFLOPS of the device, such as 150.")
    chosen = list(profiles.PROFILES.values()) if profile is None else [profiles.named(profile)]
    device = _device()
    free = estimate.free_memory(device)
    rehearsals: dict[bool, Rehearsal] = {}
    rows: list[dict[str, Any]] = []
    for candidate in chosen:
        on_cpu = candidate.gigabytes is None
        if on_cpu not in rehearsals:
            rehearsals[on_cpu] = _rehearse(model, size, frames, Sampling(guidance=guidance), on_cpu)
        needs = rehearsals[on_cpu].needs(candidate)
        runs_here = on_cpu or device.type != "cpu"
        speed = rate * 1e12 if rate else None
        if speed is None and runs_here:
            kind = ("float32" if on_cpu else "bfloat16") if model.dtype == "auto" else model.dtype
            speed = _measured_rate(matmul_rate, "cpu" if on_cpu else str(device), getattr(torch, kind))
        rows.append(
            needs.record()
            | {
                "within": None if candidate.gigabytes is None else needs.device_peak <= candidate.gigabytes * 1e9,
                "fits_here": needs.fits(None if on_cpu else free[0], free[1]) if runs_here else False,
                "seconds_per_step": None
                if speed is None
                else _seconds(needs, candidate.transformer, speed, EFFICIENCY),
            }
        )
    first = next(iter(rehearsals.values()))
    record = {
        "model": model.source,
        "size": list(first.size),
        "frames": first.frames,
        "passes_per_step": first.passes,
        "device": device_name(device),
        "free": {"device": free[0], "host": free[1]},
        "assumed": list(first.assumed),
        "profiles": rows,
    }
    return Report(record, _table(record))


_RATES: dict[tuple[str, Any], float] = {}


def _measured_rate(measure: Any, device: str, dtype: torch.dtype) -> float:
    if (device, dtype) not in _RATES:
        _RATES[device, dtype] = measure(device, dtype)
    return _RATES[device, dtype]


def _seconds(needs: Needs, place: str, rate: float, efficiency: tuple[float, float]) -> list[float]:
    """Return the least and the greatest time of a step: that of computing or of moving the weights, if it is longer."""
    moving = needs.moved / (DISK if place == "disk" else BUS)
    worst, best = efficiency
    return [float(f"{max(needs.flops / rate / share, moving):.3g}") for share in (best, worst)]


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _found(source: str) -> tuple[str, Path]:
    from pusa.models.loading import sources

    return sources.find(source, ())


def _rehearse(
    model: Model,
    size: tuple[int, int] | None,
    frames: int | None,
    sampling: Sampling,
    on_cpu: bool,
) -> Rehearsal:
    import torch

    from pusa.generation.limits import Limits
    from pusa.models.loading import configurations, sources
    from pusa.models.memory import estimate

    name, folder = _found(model.source)
    sources.check_transformer(name, folder)
    settings = Limits.of(name, folder, model.separate_parts()).settings(
        frames=frames, size=size, guidance=sampling.guidance
    )
    accelerate = sampling.accelerate
    return estimate.Rehearsal.of(
        name,
        folder,
        size=settings.size,
        frames=settings.frames,
        guidance=settings.guidance,
        in_one_call=sampling.guidance_batch == "on",
        kept_states=(0, 0) if accelerate is None else Acceleration.parse(accelerate).kept_states,
        dtype=None if model.dtype == "auto" else getattr(torch, model.dtype),
        on_cpu=on_cpu,
        beside=model.separate_parts(),
        loras=[*(Path(one.path) for one in configurations.own_loras(name)), *(path for path, *_ in model.loras())],
    )


def _table(record: dict[str, Any]) -> str:
    width, height = record["size"]
    free = record["free"]
    memory = f"{free['host'] / 1e9:.1f} GB of memory"
    if free["device"] is not None:
        memory = f"{free['device'] / 1e9:.1f} GB of device memory and {memory}"
    lines = [
        f"{record['frames']} frames of {width}x{height} with {record['model']}, "
        f"{record['passes_per_step']} pass{'es' if record['passes_per_step'] > 1 else ''} per step",
        f"Free on {record['device']}: {memory}",
        *(f"The source has no {kind}; the estimate assumes Wan's." for kind in record["assumed"]),
        "",
        f"{'profile':8}  {'device':>9}  {'memory':>9}  {'per step':>14}  fits",
    ]
    for row in record["profiles"]:
        device = f"{row['device'] / 1e9:.1f} GB" if row["within"] is not None else "–"
        seconds = row["seconds_per_step"]
        step = "–" if seconds is None else f"{seconds[0]:.3g}–{seconds[1]:.3g} s"
        fits = "yes" if row["fits_here"] else "in theory" if row["within"] and free["device"] is None else "no"
        lines.append(f"{row['profile']:8}  {device:>9}  {row['host'] / 1e9:>6.1f} GB  {step:>14}  {fits}")
    if free["device"] is None and any(row["within"] is not None for row in record["profiles"]):
        lines += ["", "This machine has no GPU. 'In theory' means that the clip fits on a GPU of the profile's size."]
    return "\n".join(lines)
