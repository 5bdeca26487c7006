"""`pusa generate --prompts FILE`: a clip for each line, taken up again where it was, shared by any number of processes.

A line is the same request as a single `pusa generate` makes. Its clip's sidecar keeps the request's digest, so running
the command again makes what is missing and refuses to mix in what was made otherwise. Processes that fill one folder
claim the clips one by one; that is all that they have to agree on.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.cli.shared.arguments import slug
from pusa.cli.shared.clip_jobs import limits_of, open_pipeline, opened
from pusa.cli.shared.flags import request_of
from pusa.cli.shared.options import Model, Output
from pusa.cli.shared.terminal import Report, Terminal, clock, count, printable
from pusa.errors import InputError, PusaError
from pusa.generation.options import options_of
from pusa.generation.request import Generate

if TYPE_CHECKING:
    from pusa.work.workers import Worker

PATHS = ("image", "last_image", "edit")
LISTS = ("keyframe", "video")
FIELDS = tuple(name for name in options_of(Generate) if name not in ("conditions", "init", "matrix"))
"""The fields of a request that a line may set, under their own names."""
KEYS = ("name", *PATHS, *LISTS, "noise", "matrix", *FIELDS)


@dataclass(frozen=True)
class Line:
    """A clip to make. where: the line, for errors. digest: of everything that decides it; see `_digest`."""

    where: str
    path: Path
    request: Generate
    digest: str = ""


@dataclass(frozen=True)
class Shared:
    """What a process has done of the lines: made, and what went wrong with the others, by the place in the file."""

    made: tuple[str, ...]
    failed: Mapping[str, str]


def make_all(
    file: Path,
    flags: dict[str, Any],
    options: dict[str, Any],
    model: Model,
    output: Output,
    terminal: Terminal,
    *,
    ray: str | None = None,
    workers: int | None = None,
) -> Report:
    """Make the clips of a file. flags, options: what a line does not say. ray, workers: see `pusa generate`."""
    from pusa.processes import current_group

    if current_group().size > 1:
        raise InputError(
            "--prompts under torchrun would make every clip in all processes: start the command once for each device, "
            "or give --ray."
        )
    if workers is not None and ray is None:
        raise InputError("--workers belongs to --ray: without it, start the command once for each process.")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    if output.out is not None and output.out.suffix == ".mp4":
        raise InputError(f"--out {output.out}: several clips go into a folder; name one.")
    started = time.perf_counter()
    lines = read(file, flags, options, output.out or Path("outputs"))
    for line in lines:
        with _at(line.where):
            opened(line.request, terminal)
    limits = limits_of(model, terminal)
    for line in lines:
        with _at(line.where):
            line.request.check(limits)
    with terminal.status("Looking at the model"):
        known = about(model)
        lines = [replace(line, digest=_digest(line.request, known)) for line in lines]
    missing = [line for line in lines if not _is_there(line, output.overwrite)]
    done = Shared((), {})
    if missing:
        with terminal.counting() as progress:
            told = partial(progress, "Clips")
            share = partial(_over_cluster, address=ray, workers=workers) if ray else _here
            done = share(missing, model, output, terminal, told)
    made = [line for line in missing if line.where in done.made]
    failed = [{"line": line.where, "path": str(line.path), "reason": done.failed[line.where]}
              for line in missing if line.where in done.failed]  # fmt: skip
    kept = len(lines) - len(made) - len(failed)
    record: dict[str, Any] = {
        "made": [str(line.path) for line in made],
        "there": [str(line.path) for line in lines if line not in made and line.where not in done.failed],
        "failed": failed,
        "seconds": round(time.perf_counter() - started, 3),
    }
    summary = f"{count(len(made), 'clip')} made, {kept} there already, {len(failed)} failed; " + clock(
        record["seconds"]
    )
    terminal.note(summary)
    for each in failed:
        terminal.note(f"{each['line']}: {each['reason']}")
    return Report(record, "\n".join(map(str, record["made"])), exit_code=int(bool(failed)))


# ------------------------------------------------------------------------------------------------------------- the file


def read(file: Path, flags: Mapping[str, Any], options: Mapping[str, Any], folder: Path) -> list[Line]:
    """The lines of a .jsonl or .txt, checked as far as no model is needed; InputError names file and line.

    flags, options: for what a line does not say. folder: where the clips go. Paths in a line are relative to the file.
    """
    try:
        texts = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(f"--prompts {file} cannot be read ({reason}); give a .jsonl or .txt file.") from error
    lines: list[Line] = []
    taken: dict[Path, str] = {}
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        where = f"{file}, line {number}"
        with _at(where):
            said = {"prompt": text.strip()} if file.suffix.lower() == ".txt" else _parsed(text)
            own = {key: _placed(key, value, file.parent) for key, value in said.items()}
            request = request_of(
                **{key: own.get(key, value) for key, value in flags.items()},
                options={**options, **{key: own[key] for key in (*FIELDS, "matrix") if key in own}},
            )
            name = said.get("name", f"{number:04d}_{slug(request.prompt)}_{request.seed}")
            if not name or Path(name).name != name or name.startswith("."):
                raise InputError(f"the name {name!r} is no file name; leave folders and suffix out")
            path = folder / f"{name}.mp4"
            if path in taken:
                raise InputError(f"it would write {path}, as {taken[path]} does; give another name")
            taken[path] = f"line {number}"
            lines.append(Line(where, path, request))
    if not lines:
        raise InputError(f"--prompts {file} has no line; write an object or a prompt a line.")
    return lines


def _parsed(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise InputError(f"it is no JSON ({error})") from error
    if not isinstance(said, dict):
        raise InputError('it is no object; write {"prompt": "a cat", "seed": 1}')
    for key, value in said.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KEYS)}"
            raise InputError(f"it has the unknown key {key!r}; {hint}")
        if key in LISTS:
            said[key] = value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise InputError(f"{key} is {value!r}; give a list of texts")
        elif key in (*PATHS, "name", "matrix") and not isinstance(value, str):
            raise InputError(f"{key} is {value!r}; give a text")
        elif key == "noise" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{key} is {value!r}; give a number")
    return said


def _placed(key: str, value: Any, home: Path) -> Any:
    """A value with its path, if it is one, taken from the file's folder."""
    if key in (*PATHS, "matrix"):
        return str(home / value)
    return tuple(str(home / each) for each in value) if key in LISTS else value


class _at:  # noqa: N801
    """For the block, an InputError begins with the line that it is about."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            raise InputError(f"{self.where}: {error}") from error


# ------------------------------------------------------------------------------------------------------- what is there


def about(model: Model) -> dict[str, Any]:
    """What of the model decides a clip, known without loading it."""
    from pusa.models.loading import checkpoints, sources
    from pusa.models.lora import header, runtime

    name, folder = sources.find(model.source)
    beside = model.beside()
    second = beside["transformer_2"]
    transformers = checkpoints.check(
        name, folder, vae=beside["vae"], text_encoder=beside["text_encoder"], transformer_2=second
    )
    own = [(one.path, one.scale, one.expert) for one in checkpoints.own_loras(name)]
    return {
        "model": checkpoints.fingerprint(folder, beside, transformers),
        "loras": [
            [runtime.fingerprint(header.file_of(path)), scale, expert] for path, scale, expert in (*own, *model.loras())
        ],
        "dtype": model.dtype,
        "memory": None if model.memory in ("auto", "none") else model.memory,
    }


def _digest(request: Generate, about: Mapping[str, Any]) -> str:
    """Of a request with the content of its files, and of the model."""
    from pusa.files import sha256

    files = {str(path): sha256(path) for path in request.files()}
    text = json.dumps([request.to_dict(), files, about], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_there(line: Line, overwrite: bool) -> bool:
    """Whether the clip of a line is there, whole; InputError where another one is and may not be replaced."""
    from pusa.files import sha256

    if not line.path.exists():
        return False
    recipe: Any = {}
    with suppress(OSError, ValueError):
        recipe = json.loads(line.path.with_suffix(".json").read_text(encoding="utf-8"))
    same = recipe.get("request") == line.digest
    if same and recipe.get("result", {}).get("sha256") == sha256(line.path):
        return True
    if not overwrite:
        what = "was made otherwise" if recipe else "has no readable sidecar"
        what = "has changed since it was made" if same else what
        raise InputError(
            f"{line.where}: {line.path} is there already and {what}; give --overwrite to replace it, or another name "
            "or --out."
        )
    return False


# ------------------------------------------------------------------------------------------------------------ the work


def _here(
    lines: Sequence[Line], model: Model, output: Output, terminal: Terminal, progress: Callable[[int, int], None]
) -> Shared:
    """Make the clips of these lines that no other process makes, in this process."""
    from pusa.files import check_writable, make_folder
    from pusa.generation.clip import latents_path
    from pusa.work.units import Unit, make_units

    folder = lines[0].path.parent
    make_folder(folder, "clips")
    check_writable(folder / "clip.mp4")
    first = lines[0].request
    pipe = open_pipeline(model, terminal, size=first.size, frames=first.frames, guidance=first.guidance)

    def make(line: Line) -> None:
        clip = line.request.run(pipe)
        clip.recipe["request"] = line.digest
        clip.save(line.path)

    units = [
        Unit(
            line.path.name,
            line.path,
            partial(make, line),
            also=(latents_path(line.path),),
            is_done=partial(_is_there, line, overwrite=True),
        )
        for line in lines
    ]
    outcome = make_units(
        units, folder / ".claims", "clips", lambda _, finished, total: progress(finished, total), collect=(PusaError,)
    )
    made = tuple(line.where for line in lines if line.path.name in outcome.made)
    failed = {line.where: outcome.failed[line.path.name] for line in lines if line.path.name in outcome.failed}
    return Shared(made, {where: printable(str(error)) for where, error in failed.items()})


def _over_cluster(
    lines: Sequence[Line],
    model: Model,
    output: Output,
    terminal: Terminal,
    progress: Callable[[int, int], None],
    *,
    address: str,
    workers: int | None,
) -> Shared:
    """`_here` in the processes of a Ray cluster."""
    from pusa.work.cluster import over_cluster
    from pusa.work.workers import watch_files

    lines = [replace(line, path=line.path.absolute()) for line in lines]
    watch = watch_files([line.path for line in lines], "Clips", lambda _, finished, total: progress(finished, total))
    job = partial(_on_node, lines, model, output)
    parts = over_cluster(address, workers, job, lines[0].path.parent, watch, "clips")
    made = tuple(where for part in parts for where in part.made)
    return Shared(made, {where: why for part in parts for where, why in part.failed.items() if where not in made})


def _on_node(lines: Sequence[Line], model: Model, output: Output, worker: Worker) -> Shared:
    return _here(lines, model, output, Terminal(False), lambda finished, total: None)
