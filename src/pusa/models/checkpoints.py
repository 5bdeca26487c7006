"""Find and load a text-to-video model: the embedded base, a diffusers folder or a hub id.

A checkpoint is an ordinary diffusers Wan folder. Its parts are loaded as the stock classes and the transformer is then
upgraded to one timestep per frame, so nothing about the files is ours. What a model likes by default (frame rate,
length, size, steps) is read from `pusa.json` beside `model_index.json` where there is one, else from the Wan family it
belongs to. Everything that can be refused is refused from the configs, before any weight is read or downloaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from pusa import embedded
from pusa.errors import InputError
from pusa.models import lora
from pusa.models.latents import FRAMES_PER_SLOT, latent_frames
from pusa.models.wan import VectorWanTransformer3DModel

TINY, TINY_BASE = "tiny", "tiny-base"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_KINDS: dict[str, tuple[type, ...]] = {
    "fps": (int, float),
    "frames": (int,),
    "size": (list,),
    "steps": (int,),
    "guidance": (int, float),
    "shift": (int, float),
}


@dataclass(frozen=True)
class Defaults:
    """What a model is asked for when the user says nothing: fps, pixel frames (4n+1), (width, height) and sampling."""

    fps: float = 16
    frames: int = 81
    size: tuple[int, int] = (832, 480)
    steps: int = 10
    guidance: float = 3.0
    shift: float = 5.0


WAN21 = Defaults()
WAN22_5B = Defaults(fps=24, frames=121, size=(1280, 704))


@dataclass
class Components:
    """A loaded model: the diffusers and transformers objects, what it is called and what it likes.

    source: what was asked for, in a form that `load` takes again (folders as absolute paths). fingerprint: changes
    when a file of the checkpoint does. loras: the adapters loaded so far.
    """

    transformer: VectorWanTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    fingerprint: str
    defaults: Defaults
    loras: tuple[lora.Lora, ...] = ()

    @property
    def multiple(self) -> int:
        """Width and height must be multiples of this many pixels."""
        return int(self.vae.config.scale_factor_spatial) * int(self.transformer.config.patch_size[1])


def load(
    source: str | Path = TINY, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Components:
    """Load a model and put it on `device` in `dtype` (the autoencoder stays in float32).

    source: "tiny" (the embedded base with its adapter), "tiny-base" (without), a folder in the diffusers layout, or a
    hub id such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers". device: a GPU where there is one, by default. dtype: bfloat16 on
    a GPU, float32 on a CPU, by default. Raises InputError when there is no such model or it is of an unsupported kind.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device here: give device='cpu'.")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    name, folder = find(source)
    check(name, folder)

    def part(kind: str, loader: Callable[..., Any]) -> Any:
        try:
            with _no_bars():
                return loader(str(folder / kind), local_files_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"The {kind} of {name} cannot be loaded, copy it again ({reason}).") from error

    def network(kind: str, cls: Any, **options: Any) -> Any:
        model, report = part(kind, partial(cls.from_pretrained, output_loading_info=True, **options))
        if missing := sorted(report["missing_keys"]):
            lost = missing[0] if len(missing) == 1 else f"{missing[0]} nor {len(missing) - 1} others"
            raise InputError(f"The {kind} of {name} is incomplete: it has no {lost}; copy it again.")
        return model

    stock = network("transformer", WanTransformer3DModel, torch_dtype=dtype)
    components = Components(
        transformer=VectorWanTransformer3DModel.upgrade(stock).eval().requires_grad_(False).to(device),
        vae=network("vae", AutoencoderKLWan, torch_dtype=torch.float32).eval().requires_grad_(False).to(device),
        text_encoder=network("text_encoder", UMT5EncoderModel, dtype=dtype).eval().requires_grad_(False).to(device),
        tokenizer=part("tokenizer", AutoTokenizer.from_pretrained),
        source=name,
        fingerprint=fingerprint(folder),
        defaults=defaults_of(folder),
    )
    if name == TINY:
        adapter = lora.load(components.transformer, embedded.adapter(), name="pusa")
        components = replace(components, loras=(adapter,))
    return components


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


def fingerprint(folder: Path) -> str:
    """A hash over the checkpoint's files: names, sizes and both ends of each, so that 30 GB take no time."""
    digest = hashlib.sha256()
    for path in sorted(p for kind in PARTS for p in (folder / kind).rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)))
            digest.update(file.read())
    return digest.hexdigest()


def find(source: str | Path, *, weights: bool = True) -> tuple[str, Path]:
    """The model's lasting name and its folder on this machine, downloaded when it is a hub id.

    weights: False downloads the configs only.
    """
    text = str(source)
    if text in (TINY, TINY_BASE):
        if not embedded.folder().is_dir():
            raise InputError(
                "The embedded model is not part of this installation: install pusa again, or give a folder."
            )
        return text, embedded.folder()
    path = Path(source).expanduser()
    if path.is_file():
        raise InputError(f"{path} is a file, but a model is a folder in the diffusers layout: give the folder.")
    if path.is_dir():
        return str(path.resolve()), path
    if isinstance(source, str) and _HUB_ID.fullmatch(text):
        return text, _download(text, weights)
    near = difflib.get_close_matches(text.lower(), (TINY, TINY_BASE), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "give 'tiny', a folder or a hub id."
    raise InputError(f"There is no model {text!r}: {hint}")


def _download(hub_id: str, weights: bool = True) -> Path:
    """Fetch a hub checkpoint, its configs first so that the wrong one costs nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=patterns))
        except GatedRepoError as error:
            raise InputError(
                f"{hub_id} is gated: accept its terms on huggingface.co and log in with `hf auth login`."
            ) from error
        except RepositoryNotFoundError as error:
            raise InputError(f"There is no model {hub_id!r} on huggingface.co and no folder of that name.") from error
        except LocalEntryNotFoundError as error:
            raise InputError(
                f"{hub_id} is neither a folder nor in the local cache, and huggingface.co cannot be reached: connect, "
                "or give the path of a folder."
            ) from error
        except HFValidationError as error:
            raise InputError(f"There is no folder {hub_id} and no hub id can look like that; check it.") from error
        except OSError as error:
            raise InputError(f"{hub_id} could not be downloaded ({str(error).splitlines()[0]}); try again.") from error

    configs = fetch(["model_index.json", "pusa.json", "*/config.json"])
    check(hub_id, configs)
    if not weights:
        return configs
    return fetch(["model_index.json", "pusa.json", "scheduler/*", *(f"{kind}/*" for kind in PARTS)])


def check(name: str, folder: Path) -> None:
    """Raise InputError unless the configs in `folder` are those of a plain Wan text-to-video model."""
    if not (folder / "model_index.json").is_file():
        found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        listing = f"it holds {', '.join(found[:8])}{more}" if found else "it is empty"
        raise InputError(f"{name} is no model: it needs a model_index.json as diffusers writes it, but {listing}.")
    index = _read_json(folder / "model_index.json")
    transformer = config(name, folder, "transformer")
    vae = config(name, folder, "vae")
    two_experts = bool((index.get("transformer_2") or [None])[0])
    channels, latent = transformer.get("in_channels", 16), vae.get("z_dim", 16)
    if channels == 36:
        right = "Wan-AI/Wan2.2-T2V-A14B-Diffusers" if two_experts else "Wan-AI/Wan2.1-T2V-14B-Diffusers"
        raise InputError(
            f"{name} is an image-to-video checkpoint (36 input channels); one timestep per frame makes a text-to-video "
            f"model do that: use {right}."
        )
    kind = (index.get("transformer") or [None, "nothing"])[1]
    if kind != "WanTransformer3DModel":
        raise InputError(
            f"{name} has {kind} as its transformer, but only a plain WanTransformer3DModel will do: use for example "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        )
    if two_experts:
        raise InputError(
            f"{name} has two experts (transformer and transformer_2), which are not supported yet: use a model with "
            "one, such as Wan-AI/Wan2.1-T2V-14B-Diffusers."
        )
    if channels != latent:
        raise InputError(
            f"{name} reads {channels} channels where its autoencoder has {latent}: it is no text-to-video model."
        )
    if vae.get("scale_factor_temporal", 4) != FRAMES_PER_SLOT:
        raise InputError(f"The autoencoder of {name} compresses time by {vae['scale_factor_temporal']} instead of 4.")


def config(name: str, folder: Path, kind: str) -> dict[str, Any]:
    """The config.json of a part of the model in `folder`, which is called `name` in errors."""
    path = folder / kind / "config.json"
    if not path.is_file():
        raise InputError(f"{name} is incomplete: there is no {kind}/config.json in it; copy or download it again.")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again.") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged (it holds a {type(data).__name__}); copy it again.")
    return data


def defaults_of(folder: Path) -> Defaults:
    """The defaults of the checkpoint in a folder: its family's, changed by its `pusa.json` if it has one."""
    family = WAN22_5B if config(str(folder), folder, "vae").get("z_dim", 16) == 48 else WAN21
    path = folder / "pusa.json"
    if not path.is_file():
        return family
    wishes = _read_json(path)
    for key, value in wishes.items():
        if key not in _KINDS:
            raise InputError(f"{path} has the unknown key {key!r}: it may have {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            raise InputError(f"{path} has {value!r} for {key!r}, which is not of the right kind.")
    if "frames" in wishes:
        latent_frames(wishes["frames"])
    if "size" in wishes:
        if len(wishes["size"]) != 2:
            raise InputError(f"{path} has {wishes['size']!r} for 'size': write [width, height].")
        wishes["size"] = tuple(wishes["size"])
    return replace(family, **wishes)
