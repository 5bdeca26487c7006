"""Find a model: its name, its folder or file on this machine, and the place of each network in it.

A source is the embedded model, a folder in the diffusers layout or in Wan's own layout, a file, or a hub id, which is
downloaded. Nothing here reads weights, only headers and configurations.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pusa import embedded
from pusa.errors import InputError
from pusa.files import refuse_pointer
from pusa.models import hub, weight_files
from pusa.models.backbone import Expert
from pusa.models.wan import original_layout, published, recognise
from pusa.models.wan.recognise import TRANSFORMER, TRANSFORMER_2
from pusa.models.weight_files import Stored

TINY, TINY_BASE = embedded.NAMES
ENCODERS = ("vae", "text_encoder", "tokenizer")
PARTS = (TRANSFORMER, TRANSFORMER_2, *ENCODERS)
BESIDE = ("vae", "text_encoder")
"""The parts that may be missing in a file. The user gives them separately, like the second of two experts."""
Beside = Mapping[str, str | Path | None]
"""{part: source} of the parts that do not come from the model's own source"""
_TITLES = {"vae": "an autoencoder", "text_encoder": "a text encoder", TRANSFORMER_2: "a transformer"}
_CLASSES = {
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel", "UMT5Model", "UMT5ForConditionalGeneration"),
    TRANSFORMER_2: ("WanTransformer3DModel",),
}
"""The class names in the configurations of parts."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find(source: str | Path, parts: Sequence[str] = PARTS) -> tuple[str, Path]:
    """Return the model's name, with an absolute path, and its folder or file on this machine.

    A hub id is downloaded: the configs of all parts, and the weights of `parts`. Without parts, the configs of Wan's
    published models need no network, because they are part of the package. Raises InputError if there is no such
    model.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise InputError(f"{source!r} is not a model: give a name, a path or a hub id.")
    text = str(source)
    if text in (TINY, TINY_BASE):
        if not embedded.folder().is_dir():
            raise InputError(
                "The embedded model is not part of this installation: install pusa again, or give a folder."
            )
        return text, embedded.folder()
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in weight_files.SUFFIXES:
            raise InputError(f"{path} is not a file of weights: give a .safetensors or .gguf file, or a folder.")
        return str(path.resolve()), path
    if path.is_dir():
        return str(path.resolve()), path
    if path.suffix.lower() in weight_files.SUFFIXES:
        raise InputError(f"There is no file {path}; check the path.")
    if isinstance(source, str) and _HUB_ID.fullmatch(text):
        if not parts and (configs := published.folder(text)) is not None:
            return text, configs
        return text, _download(text, parts)
    near = difflib.get_close_matches(text.lower(), (TINY, TINY_BASE), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "give 'tiny', a folder, a file or a hub id."
    raise InputError(f"There is no model {text!r}: {hint}")


def _download(hub_id: str, parts: Sequence[str]) -> Path:
    """Download a checkpoint from the hub. The configs come first, so that a wrong model fails before its weights."""
    configs = ["model_index.json", "pusa.json", "config.json", "*/config.json"]
    folder = hub.snapshot(hub_id, configs)
    if {TRANSFORMER, TRANSFORMER_2} & set(parts) or set(parts) >= set(BESIDE):
        check_transformer(hub_id, folder)
    if not parts:
        return folder
    if original_layout.is_original(folder):
        return hub.snapshot(hub_id, [*configs, *(glob for kind in parts for glob in original_layout.DOWNLOADS[kind])])
    return hub.snapshot(hub_id, [*configs, "scheduler/*", *(f"{kind}/*" for kind in parts)])


def locate(name: str, path: Path, kind: str, beside: Beside | None = None) -> Path | original_layout.Part:
    """Return the place of a network of the model at `path`.

    It is a diffusers folder, or a part for `original_layout.network`. kind: transformer, transformer_2, vae or
    text_encoder. Raises InputError if the model does not have it.
    """
    if given := (beside or {}).get(kind):
        _, path = find(given, (kind, "tokenizer") if kind == "text_encoder" else (kind,))
        if path.is_dir() and kind == TRANSFORMER_2 and original_layout.is_original(path):
            return original_layout.in_folder(TRANSFORMER, path)
        if path.is_dir() and not original_layout.files_of(kind, path):
            home = path / kind if (path / kind).is_dir() else path
            if not (home / "config.json").is_file():
                raise InputError(f"{given} is not {_TITLES[kind]}: give its folder, or a file of weights.")
            own = read_json(home / "config.json")
            if str(own.get("_class_name") or (own.get("architectures") or [""])[0]) not in _CLASSES[kind]:
                raise InputError(f"{given} is not {_TITLES[kind]}: give the folder of one.")
            return home
    if path.is_file():
        if kind == TRANSFORMER_2:
            return original_layout.from_files(TRANSFORMER, path, [path])
        if kind != TRANSFORMER and not (beside or {}).get(kind) and kind not in original_layout.kinds_in(path):
            raise InputError(
                f"{path} has no {_TITLES[kind].split(' ', 1)[1]}: give the missing parts with --vae and --text-encoder."
            )
        return original_layout.from_files(kind, path, [path])
    if original_layout.is_original(path):
        return original_layout.in_folder(kind, path)
    return path / kind


def config(name: str, folder: Path, kind: str, beside: Beside | None = None) -> dict[str, Any]:
    """Return the configuration of a part of the model at `folder`. name: the model's, for messages."""
    found = locate(name, folder, kind, beside)
    if isinstance(found, original_layout.Part):
        return found.config
    path = found / "config.json"
    if not path.is_file():
        raise InputError(f"{name} is incomplete: there is no {kind}/config.json in it; copy or download it again.")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        refuse_pointer(path)
        data = json.loads(path.read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{error}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again.") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged (it contains a {type(data).__name__}); copy it again.")
    return data


def check_transformer(name: str, folder: Path) -> dict[str, Any]:
    """Return the configuration of the transformer at `folder`. InputError unless it is a Wan text-to-video model."""
    index: dict[str, Any] = {}
    if folder.is_dir() and not original_layout.is_original(folder):
        if not (folder / "model_index.json").is_file():
            found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            listing = f"contains {', '.join(found[:8])}{more}" if found else "is empty"
            raise InputError(f"{name} is not a model: it needs a model_index.json of diffusers, and it {listing}.")
        index = read_json(folder / "model_index.json")
    transformer = config(name, folder, TRANSFORMER)
    recognise.refuse_config(name, transformer, wan22=bool(experts_of(folder)) or not transformer.get("image_dim"))
    kind = (index.get("transformer") or [None, "nothing"])[1] if index else "WanTransformer3DModel"
    if kind != "WanTransformer3DModel":
        raise InputError(
            f"The transformer of {name} is a {kind}: use a model with a WanTransformer3DModel, for example "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        )
    return transformer


def transformers_of(name: str, folder: Path, beside: Beside | None = None, only: Expert | None = None) -> list[str]:
    """Return the transformers of the model at `folder` that a clip needs: one, or the two experts.

    only: the only expert to use; the other one may be missing. Raises InputError if an expert is missing, if the names
    of the two show that they are swapped, if they differ in size, and for `only` if there is one transformer.
    """
    second = (beside or {}).get(TRANSFORMER_2)
    if folder.is_file():
        called = recognise.expert_of(folder.stem)
        if only is not None:
            if called not in (None, only):
                raise InputError(f"{name} is the {called}-noise expert: give the {only}-noise expert.")
            return [TRANSFORMER]
        if second is None and called is not None:
            raise InputError(
                f"{name} is one expert of two, for {called} noise: give the file for high noise as the model and the "
                "one for low noise with --transformer-2."
            )
    there = experts_of(folder)
    if only is not None:
        if len(there) < 2:
            raise InputError(f"{name} has one transformer and no {only}-noise expert: leave the expert out.")
        return [TRANSFORMER if only == "high" else TRANSFORMER_2]
    if second is None and len(there) < 2:
        return [TRANSFORMER]
    if second is not None and Path(second).expanduser().resolve() == folder.resolve():
        raise InputError(f"{name} is given as both experts: give the one for low noise with --transformer-2.")
    for given, wrong in ((folder if folder.is_file() else None, "low"), (second, "high")):
        if given is not None and recognise.expert_of(Path(given).stem) == wrong:
            raise InputError(
                f"The experts are swapped: by its name, {given} is the one for {wrong} noise; give the expert for high "
                "noise as the model, and the one for low noise with --transformer-2."
            )
    high, low = (config(name, folder, kind, beside) for kind in (TRANSFORMER, TRANSFORMER_2))
    keys = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "ffn_dim", "text_dim")
    if differing := [key for key in keys if high.get(key) != low.get(key)]:
        key = differing[0]
        raise InputError(
            f"{second or name} is not the second expert of {name}: its transformers have {high.get(key)} and "
            f"{low.get(key)} as {key}; give two experts of one model."
        )
    recognise.refuse_config(str(second or name), low, wan22=True)
    return [TRANSFORMER, TRANSFORMER_2]


def expert_notes(name: str, folder: Path, beside: Beside | None = None) -> list[str]:
    """Return a sentence for each file whose name may mean another expert than it is used as, without stating one."""
    second = (beside or {}).get(TRANSFORMER_2)
    notes = []
    if folder.is_file() and (maybe := recognise.maybe_expert(folder.stem)) and (second is None or maybe == "low"):
        where = "alone" if second is None else "for high noise"
        notes.append(
            f"By its name, {name} may be the expert of Wan2.2 for {maybe} noise, and it is used {where}: if it is, "
            "give the expert for high noise as the model, and the one for low noise with --transformer-2."
        )
    if second is not None and recognise.maybe_expert(Path(second).stem) == "high":
        notes.append(
            f"By its name, {second} may be the expert of Wan2.2 for high noise, and it is used for low noise: if it "
            "is, exchange it with the model."
        )
    return notes


def missing_parts(path: Path) -> list[str]:
    """Return the parts that a file does not contain, so that the user must give them; an empty list for a folder."""
    return [kind for kind in BESIDE if kind not in original_layout.kinds_in(path)] if path.is_file() else []


def contents(path: Path) -> dict[str, list[Stored]]:
    """Return {network: its tensors} of the model at `path`, from the headers of the files on this machine."""
    found: dict[str, list[Stored]] = {}
    for kind in (TRANSFORMER, TRANSFORMER_2, *BESIDE):
        home = path / kind
        if path.is_file():
            if kind in original_layout.kinds_in(path):
                found[kind] = original_layout.tensors_of(kind, [path])
        elif original_layout.is_original(path):
            files = original_layout.files_of(kind, path)
            if files or kind in BESIDE:
                found[kind] = original_layout.tensors_of(TRANSFORMER if kind == TRANSFORMER_2 else kind, files)
        elif kind != TRANSFORMER_2 or home.is_dir():
            files = original_layout.shards(home, "")
            found[kind] = [one for file in files for one in weight_files.listing(file).values()]
    return found


def experts_of(folder: Path) -> list[str]:
    """Return the names of a model's two experts; the name of the expert in a file; or an empty list."""
    if folder.is_file():
        which = recognise.expert_of(folder.stem)
        return [which] if which else []
    if (folder / "model_index.json").is_file():
        second = (read_json(folder / "model_index.json").get("transformer_2") or [None])[0]
        return ["transformer", "transformer_2"] if second else []
    if found := original_layout.experts(folder):
        return [path.name for path in found]
    return []


def files_of(folder: Path, beside: Beside, transformers: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (name, path) of every file that decides what a model computes. Names do not depend on the location."""
    plain = (folder / "model_index.json").is_file()
    files = []
    for kind in (*transformers, *ENCODERS):
        if plain and beside.get("text_encoder" if kind == "tokenizer" else kind) is None:
            home = folder / kind
            files += [(p.relative_to(folder).as_posix(), p) for p in home.rglob("*") if p.is_file()]
            continue
        if kind == "tokenizer":
            continue
        found = locate(str(folder), folder, kind, beside)
        own = found.files if isinstance(found, original_layout.Part) else [p for p in found.rglob("*") if p.is_file()]
        files += [(f"{kind}/{p.name}", p) for p in own]
    return sorted(files)


def absolute(given: str | Path) -> str:
    """Return a source with an absolute path, so that it does not depend on the working directory."""
    path = Path(given).expanduser()
    return str(path.resolve()) if path.exists() else str(given)
