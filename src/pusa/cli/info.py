"""`pusa info`: show the installed versions, the device, and the properties of a model, a LoRA or a timestep matrix."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.options import OUTPUT, File, Many, Model, Switch, Whole, model_default
from pusa.cli.shared.terminal import Report
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.models.backbone import Expert
    from pusa.models.wan.recognise import Family
    from pusa.models.weight_files import Stored

MATRIX = Group.create_ordered("Timestep matrix")
MEMORY = Group.create_ordered("Memory")


def info(
    model: str | None = None,
    *,
    presets: Annotated[bool, Switch] = False,
    schedule: Annotated[str | None, Parameter(group=MATRIX, metavar="NAME[,KEY=N ...]")] = None,
    matrix: Annotated[Path | None, File, Parameter(group=MATRIX, metavar="FILE.json")] = None,
    steps: Annotated[int | None, Whole, Parameter(group=MATRIX, show_default=model_default)] = None,
    shift: Annotated[float | None, Parameter(group=MATRIX, show_default=model_default)] = None,
    out: Annotated[Path | None, File, Parameter(group=MATRIX, metavar="FILE", show_default=False)] = None,
    memory: Annotated[
        Literal["all", "80gb", "48gb", "24gb", "16gb", "12gb", "8gb", "cpu"] | None,
        Parameter(group=MEMORY, show_default=False),
    ] = None,
    size: Annotated[str | None, Parameter(group=MEMORY, metavar="WxH", show_default=model_default)] = None,
    frames: Annotated[int | None, Whole, Parameter(group=MEMORY, show_default=model_default)] = None,
    guidance: Annotated[float | None, Parameter(group=MEMORY, show_default=model_default)] = None,
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], Parameter(group=MEMORY)] = "auto",
    rate: Annotated[float | None, Parameter(group=MEMORY, metavar="TFLOPS")] = None,
    vae: Annotated[str | None, Parameter(group=MEMORY, metavar="PATH")] = None,
    text_encoder: Annotated[str | None, Parameter(group=MEMORY, metavar="PATH")] = None,
    transformer_2: Annotated[str | None, Parameter(group=MEMORY, metavar="PATH")] = None,
    lora: Annotated[tuple[str, ...], Many, Parameter(name="--lora", group=MEMORY, metavar="PATH[:SCALE]")] = (),
    json: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
    debug: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
) -> Report:
    """Show versions, the device and the embedded models; or, with MODEL, the properties of a model or a LoRA.

    The model is not loaded.

    Parameters
    ----------
    model
        A model: tiny, tiny-base, a folder, a .safetensors or .gguf file, or a hub id. Or a LoRA file or its folder.
    presets
        List the options that each --preset of generate, extend and transition sets.
    schedule
        Print and draw the timestep matrix of a schedule, such as staircase,block=3,delay=5.
    matrix
        Print and draw the timestep matrix of a JSON file.
    steps
        Sampling steps of the schedule.
    shift
        Timestep shift of the schedule.
    out
        Write the matrix to a file: a heat map (.png), or JSON for --matrix (.json).
    memory
        Show the memory and time that a clip needs with one memory profile, or with all.
    size
        Width and height of the clip.
    frames
        Length of the clip: 4n+1.
    guidance
        Guidance scale. With 1, the model is called once per step, not twice.
    dtype
        Number type of the transformer and the text encoder; auto is bfloat16 on a GPU and float32 on a CPU.
    rate
        Speed of the device in large matrix products. By default it is measured.
    vae
        The autoencoder, if the model is a file that does not contain one. By default Wan's is assumed.
    text_encoder
        The text encoder, if the model is a file that does not contain one. By default Wan's is assumed.
    transformer_2
        The low-noise expert, if the model is a file of the high-noise expert.
    lora
        A LoRA to load on the model. Repeatable.
    json
        Print one JSON object on stdout, also for an error.
    debug
        Print the traceback of an error.
    """
    if presets:
        if model is not None or memory or schedule or matrix:
            raise InputError("--presets only lists the presets; give it without other options.")
        return _presets()
    if schedule is not None or matrix is not None:
        from pusa.cli.shared.matrix_report import matrix_report

        if memory or size is not None or guidance is not None:
            raise InputError("--schedule and --matrix show a matrix; leave --memory, --size and --guidance out.")
        return matrix_report(model or "tiny", schedule, matrix, frames=frames, steps=steps, shift=shift, out=out)
    if any(option is not None for option in (steps, shift, out)):
        raise InputError("--steps, --shift and --out need --schedule or --matrix; give one of them.")
    if memory:
        from pusa.cli.shared.memory_report import memory_report

        chosen = Model(
            model=model, vae=vae, text_encoder=text_encoder, transformer_2=transformer_2, lora=lora, dtype=dtype
        )
        shape = None if size is None else read_size(size)
        chosen_profile = None if memory == "all" else memory
        return memory_report(chosen, size=shape, frames=frames, guidance=guidance, profile=chosen_profile, rate=rate)
    memory_options = (size, frames, guidance, rate, vae, text_encoder, transformer_2)
    if any(option is not None for option in memory_options) or lora or dtype != "auto":
        raise InputError(
            "--size, --frames, --guidance, --dtype, --rate, --vae, --text-encoder, --transformer-2 and --lora need "
            "--memory; give it."
        )
    record = _machine() if model is None else _lora(Path(model)) or _model(model)
    width = max(len(name) for name in record)
    return Report(record, "\n".join(f"{name:{width}}  {_plain(value)}" for name, value in record.items()))


def _presets() -> Report:
    from pusa.models.loading.presets import PRESETS

    lines = []
    for name, preset in PRESETS.items():
        lines += [name, f"  {preset.note}"]
        for option, value in preset.options().items():
            flag = "--" + option.replace("_", "-")
            several = value if isinstance(value, tuple) else (value,)
            lines += [f"  {flag} {each:g}" if isinstance(each, float) else f"  {flag} {each}" for each in several]
        lines.append("")
    record = {name: {"note": preset.note, **preset.options()} for name, preset in PRESETS.items()}
    return Report(record, "\n".join(lines).rstrip())


def _machine() -> dict[str, Any]:
    import os
    import platform

    from pusa import embedded
    from pusa.versions import gpu_name, versions

    found = versions()
    return {
        "pusa": found.pop("pusa"),
        "device": gpu_name() or f"cpu, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        **found,
        "models": {
            "tiny": f"embedded, adapter of {_megabytes(embedded.adapter())}",
            "tiny-base": f"embedded, {_megabytes(embedded.folder())}",
        }
        if embedded.folder().is_dir()
        else "this installation has no embedded model",
    }


def _lora(path: Path) -> dict[str, Any] | None:
    """Return the properties of a LoRA, or None if the path is not a LoRA."""
    from pusa.models.lora import header

    file = header.in_folder(path) or path
    if not file.is_file() or _is_whole_model(file):
        return None
    from pusa.models.lora import dialects  # imports torch, as reading the numbers of a LoRA does

    if not dialects.is_lora(path):
        return None
    file = header.file_of(path)
    experts: tuple[Expert | None, ...] = ("high", "low") if header.is_for_both(file) else (None,)
    parts = [dialects.read(file, expert=expert) for expert in experts]
    changes = parts[0]
    ranks = sorted({len(down) for part in parts for down, _ in part.factors.values()})
    queries = [down.shape[1] for module, (down, _) in changes.factors.items() if module.endswith("attn1.to_q")]
    queries += [product.shape[1] for module, product in changes.products.items() if module.endswith("attn1.to_q")]
    width = queries[0] if queries else None
    stated, maybe = header.expert_for(file), header.maybe_for(file)
    expert = f"{stated} noise" if stated else f"perhaps {maybe} noise, according to its name" if maybe else None
    if len(parts) > 1:
        expert = "high and low noise, a LoRA for each"
    whole = sum(len(part.differences) for part in parts)
    metadata = {key.removeprefix("pusa."): value for key, value in changes.metadata.items() if key.startswith("pusa.")}
    return {
        "lora": str(file.resolve()),
        "files": {file.name: _size(file)},
        **({} if changes.kinds == "LoRA" else {"kind": changes.kinds}),
        "layers": sum(len(part.factors) + len(part.products) for part in parts),
        **({"ranks": "-".join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))} if ranks else {}),
        **({"whole": f"{whole} parameters"} if whole else {}),
        **({} if width is None else {"for": f"{dialects.made_for(width) or 'a model'}, {width} wide"}),
        **({} if expert is None else {"expert": expert}),
        "per frame": "yes" if header.is_per_frame(file) else "unknown",
        **({"distilled": "yes, according to its name"} if header.is_distilled(file) else {}),
        **metadata,
    }


def _is_whole_model(file: Path) -> bool:
    """Return whether the header of a file has a network of Wan and no factor of a LoRA."""
    from pusa.models import weight_files
    from pusa.models.wan import recognise

    if file.suffix.lower() not in (*weight_files.SAFETENSORS, *weight_files.GGUF):
        return False
    names = weight_files.listing(file)
    return bool(recognise.prefixes(names)) and not any("lora" in name for name in names)


def _model(source: str) -> dict[str, Any]:
    from pusa.models.loading import configurations, sources
    from pusa.models.wan import published, recognise

    name, path = sources.find(source, parts=())
    config, refused, lacking = None, None, []
    try:
        sources.check_transformer(name, path)
        lacking = sources.missing_parts(path)
        if not lacking:
            configurations.check(name, path)
    except InputError as error:
        refused = str(error)
    with suppress(InputError):
        config = sources.config(name, path, "transformer")
    parts = sources.contents(path)
    if refused and config is None and not any(parts.values()):
        raise InputError(refused)
    experts = sources.experts_of(path)
    if path.is_file() and experts:
        lacking = ["transformer_2", *lacking]
    notes = sources.expert_notes(name, path)
    adapter = ", ".join(f"{lora.path} at strength {lora.scale:g}" for lora in configurations.own_loras(name))
    family = None if config is None else recognise.family(config, experts=bool(experts))
    return {
        "model": source,
        **({} if family is None else {"kind": family.name}),
        **({"experts": " and ".join(experts)} if experts else {}),
        **_place(path),
        **({"adapter": adapter} if adapter else {}),
        **({} if published.is_published(path) else _contents(path, parts)),
        "licence": "Apache-2.0" if name in (sources.TINY, sources.TINY_BASE) else _licence(family),
        **({} if config is None else _defaults(path)),
        **({"note": " ".join(notes)} if notes else {}),
        **({"needs": ", ".join(f"--{kind.replace('_', '-')}" for kind in lacking)} if lacking else {}),
        **({"refused": f"pusa generate cannot use this model: {refused}"} if refused else {}),
    }


def _place(path: Path) -> dict[str, str]:
    from pusa.models.wan import published

    if published.is_published(path):
        return {"weights": "downloaded when they are needed; the configuration is part of pusa"}
    return {"folder" if path.is_dir() else "file": str(path.resolve())}


def _contents(path: Path, parts: dict[str, list[Stored]]) -> dict[str, Any]:
    weights = {part: _weights(tensors) for part, tensors in parts.items()}
    return {**weights, "files": {_relative_name(file, path): _size(file) for file in _files(parts)}}


def _licence(family: Family | None) -> str:
    return "unknown" if family is None else family.licence


def _defaults(path: Path) -> dict[str, Any]:
    from pusa.models.loading import configurations

    defaults = configurations.defaults_of(path)
    return {
        "frames": defaults.frames,
        "fps": defaults.fps,
        "size": list(defaults.size),
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "shift": defaults.shift,
        **({} if defaults.boundary is None else {"boundary": defaults.boundary}),
    }


def _relative_name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if folder.is_dir() else file.name


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"


def _files(parts: dict[str, list[Stored]]) -> list[Path]:
    return sorted({one.file for tensors in parts.values() for one in tensors})


def _weights(tensors: list[Stored]) -> str:
    """Return the number of parameters and their types, the most frequent type first."""
    counts: Counter[str] = Counter()
    for one in tensors:
        counts[one.dtype] += one.count
    if not counts:
        return "missing"
    return f"{counts.total() / 1e6:,.1f} M parameters in {' and '.join(kind for kind, _ in counts.most_common())}"


def _megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "none" if value is None else str(value)
