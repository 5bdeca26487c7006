"""`pusa generate --prompts FILE`: make one clip for each line of a file.

A line is the same request as one call of `pusa generate`. The sidecar of a clip records the digest of its request. If
the command is run again, it makes only the missing clips. If a clip was made from another request, the command reports
an error. Several processes can share the work: each claims one clip at a time in the output folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.cli.shared.arguments import slug
from pusa.cli.shared.clip_jobs import bytes_of, check_rate, limits_of, open_pipeline, opened
from pusa.cli.shared.flags import request_of
from pusa.cli.shared.gallery import Shown, show, write_page_of_files
from pusa.cli.shared.options import Model, Output
from pusa.cli.shared.ranks import launched
from pusa.cli.shared.terminal import Report, Terminal, clock, count
from pusa.errors import STOPS, InputError, sentence
from pusa.files import check_name, existing_file, lines_of, read_text
from pusa.generation.options import options_of
from pusa.generation.outputs import SUFFIXES, check_place, latents_path, sidecar_path
from pusa.generation.request import Generate

if TYPE_CHECKING:
    from pusa.work.workers import Worker

PATHS = ("image", "last_image", "edit")
LISTS = ("keyframe", "video")
FIELDS = tuple(name for name in options_of(Generate) if name not in ("conditions", "init", "matrix"))
"""The fields of a request that a line may set by the name of the field."""
KEYS = ("name", *PATHS, *LISTS, "noise", "matrix", *FIELDS)


@dataclass(frozen=True)
class Line:
    """A clip to make.

    number: of the line, from 1. where: the file and the line, for error messages. path: the clip. digest: a hash of the
    request and the model; see `_digest`. bytes: what the clip takes on the disk, roughly.
    """

    number: int
    where: str
    path: Path
    request: Generate
    digest: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class BatchResult:
    """The result of one process. made: the lines of the clips that it made. failed: error messages by line."""

    made: tuple[str, ...]
    failed: Mapping[str, str]


def make_batch(
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
    """Make the clips of a file and report them; a clip that fails does not stop the others.

    flags, options: values for the keys that a line does not set. ray, workers: see `pusa generate`. If lines are wrong,
    raises InputError, which names all of them, before the model is loaded.
    """
    if launched():
        raise InputError(
            "--prompts cannot run under torchrun, because all processes would make every clip: start the command once "
            "for each device, or give --ray."
        )
    if workers is not None and ray is None:
        raise InputError("--workers needs --ray: without --ray, start the command once for each process.")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    if output.out is not None and output.out.suffix in SUFFIXES:
        raise InputError(f"--out {output.out}: --prompts writes several clips; give a folder.")
    started = time.perf_counter()
    lines, wrong = read(file, flags, options, output.out or Path("outputs"))
    for line in lines:
        with _collecting(wrong, line.number):
            opened(line.request, terminal)  # its pictures are not kept
    limits = limits_of(model, terminal)
    check_rate(output, limits)
    notes: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        with _collecting(wrong, line.number):
            lines[i] = replace(line, bytes=bytes_of(limits, line.request.check(limits)))
            for note in line.request.notes(limits):
                notes.setdefault(note, []).append(line.number)
    _refuse(file, wrong)
    told = [f"{file}, {_lines(numbers)}: {note}" for note, numbers in notes.items()]
    for note in told:
        terminal.note(f"pusa: {note}")
    with terminal.status("Reading the model's files"):
        identity = model_identity(model)
    missing = []
    for line in lines:
        with _collecting(wrong, line.number):
            identified = replace(line, digest=_digest(line.request, identity))
            if not _is_done(identified, output.overwrite):
                check_place(line.path, line.request.files())
                missing.append(identified)
    _refuse(file, wrong)
    if missing:
        check_place(missing[0].path, bytes_needed=sum(line.bytes for line in missing))
    result = BatchResult((), {})
    if missing:
        with terminal.counting() as progress:
            make_clips = partial(_make_on_cluster, address=ray, workers=workers) if ray else _make_in_this_process
            result = make_clips(missing, model, output, terminal, partial(progress, "Clips"))
    made = [line for line in missing if line.where in result.made]
    failed = [{"line": line.where, "path": str(line.path), "reason": result.failed[line.where]}
              for line in missing if line.where in result.failed]  # fmt: skip
    existing = len(lines) - len(made) - len(failed)
    record: dict[str, Any] = {
        "made": [str(line.path) for line in made],
        "there": [str(line.path) for line in lines if line.where not in {*result.made, *result.failed}],
        "failed": failed,
        "seconds": round(time.perf_counter() - started, 3),
    } | ({"notes": told} if told else {})
    shown = [Shown(line.path, line.request.prompt, line.request.seed, sidecar_path(line.path))
             for line in lines if line.path.is_file()]  # fmt: skip
    if len(shown) > 1:
        record |= write_page_of_files(shown[0].path.with_name(f"{file.stem}.html"), shown, terminal)
    if output.open and shown:
        show(Path(record.get("page", shown[0].path)), terminal)
    summary = f"{count(len(made), 'clip')} made, {existing} already there, {len(failed)} failed; " + clock(
        record["seconds"]
    )
    terminal.note(summary)
    for failure in failed:
        terminal.note(f"{failure['line']}: {failure['reason']}")
    return Report(record, "\n".join(map(str, record["made"])), exit_code=int(bool(failed)))


# ------------------------------------------------------------------------------------------------------------- the file


def read(
    file: Path, flags: Mapping[str, Any], options: Mapping[str, Any], folder: Path
) -> tuple[list[Line], dict[int, str]]:
    """Read the lines of a .jsonl or .txt file and check what can be checked without the model.

    flags, options: values for the keys that a line does not set. folder: the folder of the clips. Paths in a line are
    relative to the file. Returns the lines that are right, and what is wrong with the others, by their numbers. Raises
    InputError if the file cannot be read or has no line.
    """
    texts = lines_of(read_text(existing_file(file), f"--prompts {file}"))
    numbered = [(number, text) for number, text in enumerate(texts, 1) if text.strip()]
    if not numbered:
        raise InputError(f"--prompts {file} has no line; write one JSON object or one prompt on each line.")
    lines: list[Line] = []
    wrong: dict[int, str] = {}
    taken: dict[Path, int] = {}
    for number, text in numbered:
        with _collecting(wrong, number):
            record = {"prompt": text.strip()} if file.suffix.lower() == ".txt" else _parse_line(text)
            values = {key: _resolve_paths(key, value, file.parent) for key, value in record.items()}
            request = request_of(
                **{key: values.get(key, value) for key, value in flags.items()},
                options={**options, **{key: values[key] for key in (*FIELDS, "matrix") if key in values}},
            )
            name = record.get("name", f"{number:04d}_{slug(request.prompt)}_{request.seed}")
            if record.get("noise") and not request.conditions:
                raise InputError(f"noise {record['noise']:g} needs a picture or a clip; give one, or leave noise out")
            if not name or Path(name).name != name or name.startswith(".") or name.endswith(".mp4"):
                raise InputError(f"the name {name!r} is not a file name; give one without folder and suffix")
            path = folder / f"{name}.mp4"
            check_name(latents_path(path.absolute()))
            if path in taken:
                raise InputError(f"it would write {path}, as line {taken[path]} does; give another name")
            taken[path] = number
            lines.append(Line(number, f"{file}, line {number}", path, request))
    return lines, wrong


def _parse_line(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text, object_pairs_hook=_once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError('it is not a JSON object; write for example {"prompt": "a cat", "seed": 1}')
    for key, value in record.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(KEYS)}"
            raise InputError(f"it has the unknown key {key!r}; {hint}")
        if key in LISTS:
            record[key] = value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InputError(f"{key} is {value!r}: give a list of texts")
        elif key in (*PATHS, "name", "matrix") and not isinstance(value, str):
            raise InputError(f"{key} is {value!r}: give a text")
        elif key == "noise" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{key} is {value!r}: give a number")
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values. Of a key that is there twice, `json` would drop the first value."""
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise InputError(f"it has the key {key!r} twice; keep one of them")
        record[key] = value
    return record


def _resolve_paths(key: str, value: Any, folder: Path) -> Any:
    """Return the value; if it is a path or a list of paths, make it relative to `folder`."""
    if key in (*PATHS, "matrix"):
        return str(folder / value)
    return tuple(str(folder / path) for path in value) if key in LISTS else value


@contextmanager
def _collecting(wrong: dict[int, str], number: int) -> Iterator[None]:
    """Enter an error of the block in `wrong` as that of line `number`, unless this line has one."""
    try:
        yield
    except STOPS:
        raise
    except Exception as error:
        wrong.setdefault(number, sentence(error))


def _lines(numbers: Sequence[int]) -> str:
    """`line 3` or `lines 3, 4, 5`; of many, the first ten."""
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:10]))}{more}"


def _refuse(file: Path, wrong: Mapping[int, str]) -> None:
    """Raise InputError if lines are wrong. Lines with the same mistake are named together."""
    numbers: dict[str, list[int]] = {}
    for number in sorted(wrong):
        numbers.setdefault(wrong[number], []).append(number)
    if len(wrong) == 1:
        ((number, message),) = wrong.items()
        raise InputError(f"{file}, line {number}: {message}")
    if wrong:
        raise InputError(
            f"{file} has {len(wrong)} wrong lines, so no clip was made:",
            [f"{_lines(found)}: {text}" for text, found in numbers.items()],
        )


# ------------------------------------------------------------------------------------------------------ existing clips


def model_identity(model: Model) -> dict[str, Any]:
    """Return everything about the model that changes a clip, without loading it: hashes, strengths, type, memory."""
    from pusa.models.loading import configurations, sources
    from pusa.models.lora import header, runtime

    name, folder = sources.find(model.source)
    parts = model.separate_parts()
    transformers = configurations.check(
        name,
        folder,
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        transformer_2=parts["transformer_2"],
    )
    loras = [*((lora.path, lora.scale, lora.expert) for lora in configurations.own_loras(name)), *model.loras()]
    return {
        "model": configurations.fingerprint(folder, parts, transformers),
        "loras": [[runtime.fingerprint(header.file_of(path)), scale, expert] for path, scale, expert in loras],
        "dtype": model.dtype,
        "memory": None if model.memory in ("auto", "none") else model.memory,
    }


def _digest(request: Generate, identity: Mapping[str, Any]) -> str:
    """Return a hash of a request, the content of its files, and the model. identity: see `model_identity`."""
    from pusa.files import sha256

    files = {str(path): sha256(path) for path in request.files()}
    text = json.dumps([request.to_dict(), files, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_done(line: Line, overwrite: bool) -> bool:
    """Return whether the clip of a line exists and is complete.

    Raises InputError if the path or its sidecar holds another clip and `overwrite` is False.
    """
    from pusa.files import sha256

    sidecar = sidecar_path(line.path)
    existing = next((file for file in (line.path, sidecar) if file.exists()), None)
    if existing is None:
        return False
    recipe: Any = {}
    with suppress(OSError, ValueError):
        recipe = json.loads(sidecar.read_text(encoding="utf-8"))
    same = isinstance(recipe, dict) and recipe.get("request") == line.digest
    if same and existing == sidecar:  # its clip was removed
        return False
    if same and recipe.get("result", {}).get("sha256") == sha256(line.path):
        return True
    if not overwrite:
        what = "was made with other settings" if recipe else "has no readable sidecar"
        what = "has changed since it was made" if same else what
        what = "belongs to no clip of these lines" if existing == sidecar else what
        raise InputError(
            f"{existing} exists already and {what}; give --overwrite to replace it, or give another name or --out."
        )
    return False


# ---------------------------------------------------------------------------------------------------- making the clips


def _make_in_this_process(
    lines: Sequence[Line], model: Model, output: Output, terminal: Terminal, progress: Callable[[int, int], None]
) -> BatchResult:
    """Make the clips of these lines in this process, without those that other processes make."""
    from pusa.work.units import Unit, make_units

    largest = max(lines, key=lambda line: line.bytes).request
    pipe = open_pipeline(
        model,
        terminal,
        size=largest.size,
        frames=largest.frames,
        sampling=largest,
    )

    def make(line: Line) -> None:
        check_place(line.path, bytes_needed=line.bytes)
        try:
            clip = line.request.run(pipe)
            clip.recipe["request"] = line.digest
            clip.save(line.path)
        except BaseException:
            if output.verbosity.debug:
                traceback.print_exc()
            raise

    units = [
        Unit(
            line.path.name,
            line.path,
            partial(make, line),
            also=(latents_path(line.path),),
            is_done=partial(_is_done, line, overwrite=True),
        )
        for line in lines
    ]
    outcome = make_units(
        units,
        lines[0].path.parent / ".claims",
        "clips",
        lambda _, finished, total: progress(finished, total),
        collect=(BaseException,),
    )
    made = tuple(line.where for line in lines if line.path.name in outcome.made)
    failed = {line.where: outcome.failed[line.path.name] for line in lines if line.path.name in outcome.failed}
    return BatchResult(made, {where: sentence(error) for where, error in failed.items()})


def _make_on_cluster(
    lines: Sequence[Line],
    model: Model,
    output: Output,
    terminal: Terminal,
    progress: Callable[[int, int], None],
    *,
    address: str,
    workers: int | None,
) -> BatchResult:
    """Run `_make_in_this_process` in the processes of a Ray cluster and combine the results."""
    from pusa.work.cluster import over_cluster
    from pusa.work.workers import watch_files

    lines = [replace(line, path=line.path.absolute()) for line in lines]
    watch = watch_files([line.path for line in lines], "Clips", lambda _, finished, total: progress(finished, total))
    job = partial(_on_node, lines, model, output)
    parts = over_cluster(address, workers, job, lines[0].path.parent, watch, "clips")
    made = tuple(where for part in parts for where in part.made)
    failed = {where: message for part in parts for where, message in part.failed.items() if where not in made}
    return BatchResult(made, failed)


def _on_node(lines: Sequence[Line], model: Model, output: Output, worker: Worker) -> BatchResult:
    return _make_in_this_process(lines, model, output, Terminal(False), lambda finished, total: None)
