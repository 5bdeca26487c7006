"""Export LoRAs for other programs: under other names, with a lower rank, or merged into a checkpoint.

Every dialect that `lora.dialects` reads can be written with the names of diffusers, ComfyUI or kohya. B is multiplied
by the scaling, so that the file means W + B A, also for programs that read no alpha. Files of kohya need an alpha, so
they get alpha = r. Factors stay bit-identical if neither scaling, rank nor type change them.

A lower rank keeps the largest singular values of each B A. B A, up to 5120 x 13824, is not computed for this: with the
QR decompositions B = P R and A^T = Q S, its singular values are those of the r x r matrix R S^T.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pusa.errors import InputError
from pusa.files import building, check_writable, replacing, sha256, write_json, write_text_atomic
from pusa.models.backbone import Expert
from pusa.models.loading import configurations, sources
from pusa.models.lora import dialects, header, magnitudes, runtime
from pusa.models.wan.weight_names import original_name, parameter_shapes

Dialect = Literal["diffusers", "comfy", "kohya"]
DType = Literal["float32", "bfloat16", "float16"]
Factors = dict[str, tuple[Tensor, Tensor]]
"""{diffusers module: (A [r, in], B [out, r])}"""

_STALE = (
    *("lora_adapter_metadata", "adapter_config", "format"),
    *("ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash"),
    "modelspec.hash_sha256",
)
"""Metadata that is wrong for the new file: alphas, ranks and hashes of the old one."""
_EXPERT_OF: Mapping[str, Expert] = {"transformer": "high", "transformer_2": "low"}
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
DEFAULTS_FILE = "pusa.json"
"""the file of a checkpoint with default settings, see `pusa.models.backbone.Defaults`"""
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Energy:
    """The share of the squared Frobenius norm of B A that a lower rank keeps, from 0 to 1.

    modules: {module: share}. total: the share for all modules together.
    """

    modules: Mapping[str, float]
    total: float

    @property
    def least(self) -> tuple[str, float]:
        """The module with the least share, and this share."""
        return min(self.modules.items(), key=lambda item: item[1])

    @property
    def median(self) -> float:
        return statistics.median(self.modules.values())


@dataclass(frozen=True)
class Exported:
    """What was written.

    modules: the number of layers that it changes. ranks, dtypes: those of the factors. energy: what a lower rank keeps;
    None if the rank is unchanged. stale: keys of metadata that were left out, because they are wrong for the new file.
    """

    path: Path
    modules: int
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    energy: Energy | None = None
    stale: tuple[str, ...] = field(default=())


def convert(
    source: str | Path,
    target: str | Path,
    to: Dialect,
    *,
    rank: int | None = None,
    dtype: DType | None = None,
    expert: Expert | None = None,
) -> Exported:
    """Write the LoRA `source`, in any dialect, to the safetensors file `target` in the dialect `to`, atomically.

    rank: the greatest rank of the new factors. dtype: of all factors; None keeps the type of each, but B becomes
    float32 if its type cannot represent the product with the scaling exactly. expert: the one whose LoRA is written, of
    a file for both. Raises InputError where `runtime.read` does, if the target is the source or has another suffix, if
    values are not finite in `dtype`, and for an expert of a file that is not for both.
    """
    source, target = Path(source), Path(target)
    _check(to, Dialect, "dialect")
    if target.suffix != ".safetensors":
        raise InputError(f"A LoRA is written as safetensors, so {target} must end in .safetensors.")
    _check_apart(source, target)
    if target.stem == "adapter_model" and target.with_name("adapter_config.json").exists():
        raise InputError(
            f"{target} would get its alpha from the adapter_config.json in its folder: choose another name."
        )
    check_writable(target)
    if expert is not None and not header.is_for_both(source):
        raise InputError(f"The LoRA {source} is not for both experts of Wan2.2: leave --expert out.")
    factors, metadata = runtime.read(source, expert=expert)
    factors, energy = _prepare(source, factors, rank, dtype)
    tensors = {key: value for module, pair in factors.items() for key, value in _named(module, *pair, to).items()}
    stale = tuple(key for key in metadata if key in _STALE and key != "format")
    kept = {key: value for key, value in metadata.items() if key not in _STALE}
    if energy is not None:
        kept["pusa.kept_energy"] = f"{energy.total:.6f}"
    with replacing(target) as part:
        save_file(tensors, str(part), metadata={"format": "pt", **kept})
    return Exported(target, len(factors), _ranks(factors), _dtypes(factors), energy, stale)


def merge(
    source: str | Path,
    base: str | Path,
    target: str | Path,
    *,
    scale: float = 1.0,
    expert: Expert | None = None,
    rank: int | None = None,
    dtype: DType | None = None,
    called: str | None = None,
) -> Exported:
    """Write the checkpoint `base` with W + scale * dW in its transformer, as the diffusers folder `target`.

    dW is the change of the LoRA at strength 1: B A, or that of a LoHa, LoKr, DoRA or whole difference. Of a file for
    both experts, each gets its own.

    The sum is computed in float32, one file of weights at a time. The other parts of the base are copied. The folder
    appears when it is complete.

    base: as for `checkpoints.load`. expert: the expert to change, for a base with two; None for both. rank: as for
    `convert`. dtype: of the weights, except those that diffusers keeps in float32; None keeps the types of the base.
    called: the description of the LoRA in the README, by default the name and hash of its file.

    Raises InputError if the LoRA does not fit the base or is for the other expert, if the target exists and is not
    empty, if a part of the base is missing, or if its weights are quantised.
    """
    source, target = Path(source), Path(target)
    if not abs(scale) < float("inf"):
        raise InputError(
            f"The strength of the LoRA {source} is {scale}: give a finite number; 1 is the trained strength."
        )
    if str(base) == sources.TINY:
        raise InputError("The model tiny is tiny-base with an adapter: give tiny-base as the base of a merged model.")
    _check_apart(source, target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already, and a merged model needs an empty folder: give another one.")
    name, folder = sources.find(base)
    configurations.check(name, folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] is not None]
    if lost := [part for part in parts if not (folder / part).is_dir()]:
        raise InputError(f"{name} is incomplete: there is no folder {lost[0]} in it; copy or download it again.")
    kinds = sources.transformers_of(name, folder, only=expert)
    files = {kind: _weight_files(name, folder / kind) for kind in kinds}
    if sources.experts_of(folder) and (made_for := header.expert_for(source)) not in (None, expert):
        raise InputError(f"The LoRA {source} is for the {made_for}-noise expert: give --expert {made_for}.")

    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder / kinds[0]))
    shapes, both = parameter_shapes(transformer), header.is_for_both(source)
    changes = {kind: dialects.read(source, shapes, _EXPERT_OF[kind] if both else None) for kind in kinds}
    factors, energy = changes[kinds[0]].factors, None
    for kind, own in changes.items():
        if rank is not None and (own.kinds != "LoRA" or len(own.factors) < len(own.changed)):
            raise InputError(
                f"The LoRA {source} is a {own.kinds} with more than factors, so --rank cannot lower its rank."
            )
        lowered, energy = _prepare(source, own.factors, rank, None)
        changes[kind] = replace(own, factors=lowered)

    with building(target) as new:
        for part in parts:
            ignore = shutil.ignore_patterns(*(file.name for file in files.get(part, ())))
            shutil.copytree(folder / part, new / part, ignore=ignore)
        for entry in folder.iterdir():
            is_licence = entry.name.upper().startswith(("LICENSE", "NOTICE"))
            if is_licence or entry.name in ("model_index.json", DEFAULTS_FILE):
                shutil.copy2(entry, new / entry.name)
        for kind in kinds:
            missing = set(changes[kind].changed)
            for file in files[kind]:
                with safe_open(str(file), "pt") as weights:
                    tensors = {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
                    header_of_file = weights.metadata() or {"format": "pt"}
                for key, weight in tensors.items():
                    if key in missing:
                        tensors[key] = _sum(name, key, weight, changes[kind], scale)
                        missing.discard(key)
                    tensors[key] = _stored(name, key, tensors[key], weight.dtype, dtype)
                save_file(tensors, str(new / kind / file.name), metadata=header_of_file)
            if missing:
                raise InputError(f"{name} is incomplete: its {kind} has no {min(missing)}; copy it again.")
        adapter = called or f"{source.name}, sha256 {sha256(source)}"
        if header.is_per_frame(source):
            path = new / DEFAULTS_FILE
            settings = sources.read_json(path) if path.exists() else {}
            write_json(path, settings | {"per_frame": sorted({*settings.get("per_frame", ()), *kinds})})
        place = f" of its {expert}-noise expert" if expert else " of both experts" if kinds[1:] else ""
        metadata = changes[kinds[0]].metadata
        write_text_atomic(new / "README.md", _card(name, place, adapter, scale, metadata))
    changed = changes[kinds[0]].changed
    return Exported(target, len(changed), _ranks(factors), _dtypes(factors), energy)


def reduce(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Return the best factors of rank `rank` for B A, with the energy that they keep and the energy of B A.

    Energy is the squared Frobenius norm. down, up: A [r, in] and B [out, r]. Factors of at most this rank are returned
    unchanged. The computation is in float64. New factors have the types of the old ones, and each has the square root
    of the singular values.
    """
    a, b = down.double(), up.double()
    if rank >= len(down):
        norm = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).item()
        return down, up, norm, norm
    q_up, r_up = torch.linalg.qr(b)
    q_down, r_down = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    energy = s.square()
    root = s[:rank].sqrt()
    new_up = q_up @ (u[:, :rank] * root)
    new_down = (root[:, None] * vh[:rank]) @ q_down.T
    return (
        new_down.to(down.dtype).contiguous(),
        new_up.to(up.dtype).contiguous(),
        energy[:rank].sum().item(),
        energy.sum().item(),
    )


def _prepare(
    source: Path,
    factors: Factors,
    rank: int | None,
    dtype: DType | None,
) -> tuple[Factors, Energy | None]:
    """Check the values, reduce the rank and convert the type."""
    if rank is not None and rank < 1:
        raise InputError(f"The rank {rank} leaves nothing of the LoRA {source}: give at least 1.")
    if dtype is not None:
        _check(dtype, DType, "dtype")
    prepared: Factors = {}
    kept, before = dict.fromkeys(factors, 0.0), dict.fromkeys(factors, 0.0)
    for module, (down, up) in factors.items():
        if not (down.float().isfinite().all() and up.float().isfinite().all()):
            raise InputError(f"The LoRA {source} is damaged: {module} has values that are not finite; copy it again.")
        if up.element_size() > down.element_size() and torch.equal(up.to(down.dtype).to(up.dtype), up):
            up = up.to(down.dtype)
        if rank is not None:
            down, up, kept[module], before[module] = reduce(down, up, rank)
        if dtype is not None:
            down, up = (value.to(getattr(torch, dtype)) for value in (down, up))
            if not (down.isfinite().all() and up.isfinite().all()):
                raise InputError(f"{module} of the LoRA {source} is too large for {dtype}: use bfloat16 or float32.")
        prepared[module] = down, up
    if rank is None:
        return prepared, None
    shares = {module: kept[module] / before[module] if before[module] else 1.0 for module in factors}
    total = sum(before.values())
    return prepared, Energy(shares, sum(kept.values()) / total if total else 1.0)


def _named(module: str, down: Tensor, up: Tensor, to: Dialect) -> dict[str, Tensor]:
    """Return the tensors of one layer under the names of a dialect."""
    down, up = down.contiguous(), up.contiguous()
    if to == "kohya":
        stem = "lora_unet_" + original_name(module).replace(".", "_")
        alpha = torch.tensor(float(len(down)))
        return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}
    stem = f"transformer.{module}" if to == "diffusers" else f"diffusion_model.{original_name(module)}"
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}


def _sum(name: str, key: str, weight: Tensor, changes: dialects.Changes, scale: float) -> Tensor:
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise InputError(f"{key} of {name} is quantised ({weight.dtype}): merge into a checkpoint of at least 16 bits.")
    change = magnitudes.change_of(changes, key, weight)
    assert change is not None
    return weight.float() + scale * change


def _stored(name: str, key: str, value: Tensor, stored: torch.dtype, dtype: DType | None) -> Tensor:
    """Return a weight in `dtype`, or in the type of the base if `dtype` is None or diffusers keeps it in float32."""
    # private; test_merging_into_sharded_weights_of_another_type (tests/models/test_export.py) fails when it moves
    kept = any(part in key for part in WanTransformer3DModel._keep_in_fp32_modules)
    kind = stored if dtype is None or kept or not value.is_floating_point() else getattr(torch, dtype)
    cast = value.to(kind)
    if not cast.isfinite().all():
        raise InputError(f"{key} of {name} has values too large for {kind}: store it in float32 or bfloat16.")
    return cast


def _weight_files(name: str, folder: Path) -> list[Path]:
    """Return the safetensors files that diffusers loads from a transformer's folder."""
    names = [_WEIGHTS]
    if (folder / _INDEX).is_file():
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if missing := [file for file in names if not (folder / file).is_file()]:
        raise InputError(
            f"{name} is incomplete: there is no {folder.name}/{missing[0]} in it; copy or download it again."
        )
    return [folder / file for file in names]


def _card(name: str, place: str, adapter: str, scale: float, metadata: Mapping[str, str]) -> str:
    facts = "".join(f"\n* {key}: {value}" for key, value in sorted(metadata.items()) if key.startswith("pusa."))
    front = f"base_model: {name}\nbase_model_relation: merge\n" if not Path(name).is_absolute() and "/" in name else ""
    return f"""---
{front}library_name: diffusers
pipeline_tag: text-to-video
---

{Path(name).name} with a LoRA in the weights{place or " of its transformer"}: W + {scale:g} B A.

* LoRA: {adapter}{facts}
"""


def _check_apart(source: Path, target: Path) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target} is the LoRA that is read: give another name for the new file.")


def _check(value: str, kind: object, what: str) -> None:
    if value not in get_args(kind):
        raise InputError(f"{value!r} is not a {what}: give {', '.join(get_args(kind))}.")


def _ranks(factors: Factors) -> tuple[int, ...]:
    return tuple(sorted({len(down) for down, _ in factors.values()}))


def _dtypes(factors: Factors) -> tuple[str, ...]:
    return tuple(sorted({str(value.dtype).removeprefix("torch.") for pair in factors.values() for value in pair}))
