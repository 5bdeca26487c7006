"""Functions that all verbs that make clips share: load the model, show progress, save the clips, report them."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pusa.cli.shared import gallery
from pusa.cli.shared.memory_report import profile_for
from pusa.cli.shared.options import Model, Output
from pusa.cli.shared.ranks import launched
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import STOPS, InputError, sentence
from pusa.generation.outputs import media_path, shortened, sidecar_path
from pusa.generation.request import Request
from pusa.generation.sampling import Sampling
from pusa.models import kernels

if TYPE_CHECKING:
    from pusa.core.sampler import Step
    from pusa.generation.clip import GeneratedClip
    from pusa.generation.limits import Limits
    from pusa.generation.pipeline import Pipeline
    from pusa.generation.settings import Settings
    from pusa.models.backbone import Expert

    Callback = Callable[[Step], None]

LATENT_CHANNELS = 16
"""of Wan2.1, to estimate how much disk a clip needs"""

AnyRequest = TypeVar("AnyRequest", bound=Request)


def open_pipeline(
    model: Model,
    terminal: Terminal,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    sampling: Sampling = Sampling(),
) -> Pipeline:
    """Load the model. A later call in the same process with the same options returns the same pipeline.

    size (width, height), frames, sampling: of the clip, to choose or check the memory profile; None is the model's
    default. Raises InputError if the model cannot be loaded or the clip does not fit into memory.
    """
    kernels.check(model.attention)
    if model.compile:
        terminal.note("pusa: --compile: the first step takes longer, from half a minute to several minutes.")
    with terminal.status(f"Loading {model.source}"):
        from pusa.models.lora import header

        for path, *_ in model.loras():  # a missing file is told before torch is imported
            header.file_of(path)
        if not terminal.drawing:
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
        from pusa.processes import current_group, from_rank_zero

        group = current_group()
        memory = from_rank_zero(group, lambda: profile_for(model, size, frames, sampling))
        return _open(
            model.source,
            tuple(model.separate_parts().items()),
            model.loras(),
            model.dtype,
            memory,
            group.size > 1,
            model.attention,
            model.compile,
        )


@lru_cache(maxsize=1)
def _open(
    source: str,
    separate_parts: tuple[tuple[str, str | None], ...],
    loras: tuple[tuple[Path, float, Expert | None], ...],
    dtype: str,
    memory: str | None,
    share_tokens: bool,
    attention: kernels.Attention,
    compiled: bool,
) -> Pipeline:
    import torch

    from pusa.generation.pipeline import load
    from pusa.models.lora.header import LoraFile
    from pusa.models.memory.profiles import explained

    parts = dict(separate_parts)
    with explained(memory, on_cpu=not torch.cuda.is_available()):
        return load(
            source,
            vae=parts["vae"],
            text_encoder=parts["text_encoder"],
            transformer_2=parts["transformer_2"],
            lora=[LoraFile(*one) for one in loras],
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            memory=memory,
            share_tokens=share_tokens,
            attention=attention,
            compiled=compiled,
        )


def opened(request: AnyRequest, terminal: Terminal) -> AnyRequest:
    """Return the request with decoded pictures. Raises InputError for an unreadable picture or a missing clip."""
    with terminal.status("Starting"):
        return request.opened()


def limits_of(model: Model, terminal: Terminal) -> Limits:
    """Return the limits of the model, without loading it."""
    with terminal.status(f"Reading the configuration of {model.source}"):
        from pusa.generation.limits import Limits
        from pusa.models.loading import sources

        return Limits.of(*sources.find(model.source, ()), model.separate_parts())


def check_rate(output: Output, limits: Limits) -> None:
    """Raise InputError if --fps is given and is not the frame rate that the model makes."""
    own = limits.defaults.fps
    if output.fps is not None and output.fps != own:
        raise InputError(
            f"--fps {output.fps:g}: {limits.source} makes {own:g} frames per second, because it has learnt how far "
            "things move between frames; leave --fps out, and change the speed of the file in a video editor."
        )


def check_shares(model: Model, size: tuple[int, int] | None, frames: int | None) -> None:
    """Raise InputError if torchrun's processes cannot share the clip. None is the model's default.

    This needs no loaded model. Without torchrun, nothing is checked.
    """
    if launched():
        from pusa.models.context_parallel import check_clip
        from pusa.processes import current_group

        check_clip(model.source, model.separate_parts(), size, frames, current_group().size)


def make(
    jobs: Mapping[Path, Callable[[Callback], GeneratedClip]],
    output: Output,
    terminal: Terminal,
    *,
    replaces: Path | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Run the jobs one after the other, save each clip at its path, and report the clips.

    jobs: by path, which `check_paths` has checked; a job takes the sampler's callback and returns the clip. If a file
    has appeared at the path meanwhile, the clip gets a new name. If one of several clips fails, the others are made.
    notes: for the record.
    """
    from pusa.processes import current_group, from_rank_zero

    group = current_group()
    clips: list[GeneratedClip] = []
    records: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for number, (path, job) in enumerate(jobs.items(), 1):
        started = time.perf_counter()
        try:
            with terminal.steps("Sampling" if len(jobs) == 1 else f"Clip {number} of {len(jobs)}") as callback:
                clip = job(callback)
            path = from_rank_zero(group, partial(_save, clip, path, output, terminal, replaces))
        except STOPS:
            raise
        except BaseException as error:
            if len(jobs) == 1 or group.size > 1:  # the processes of a group would wait for each other
                raise
            failed.append({"path": str(path), "reason": sentence(error)})
            terminal.note(f"{path}: {sentence(error)}")
            if output.verbosity.debug:
                traceback.print_exc()
            continue
        seconds = time.perf_counter() - started
        clips.append(clip)
        records.append(record(clip, path, seconds))
        count, height, width, _ = clip.frames.shape
        terminal.note(f"{count} frames of {width}x{height} at {clip.fps:g} fps in {seconds:.1f} s{_computed(clip)}")
    said: dict[str, Any] = {"clips": records} | ({"failed": failed} if failed else {})
    said |= {"notes": list(notes)} if notes else {}
    if records and group.is_rank_zero:
        said |= _show(records, clips, output, terminal)
    return Report(said, "\n".join(record["path"] for record in records), clips, exit_code=int(bool(failed)))


def _computed(clip: GeneratedClip) -> str:
    """Return how much of an accelerated clip was computed, for the note about it."""
    if "acceleration" not in clip.recipe:
        return ""
    share = clip.recipe["acceleration"]["computed"]
    return f", {share:.0%} of the blocks computed" if share < 1 else "; the acceleration left nothing out"


def _show(
    records: Sequence[Mapping[str, Any]], clips: Sequence[GeneratedClip], output: Output, terminal: Terminal
) -> dict[str, str]:
    """Write the page of several clips, and show what --open asks for; return the paths of the page and its sheet."""
    first, pages = Path(records[0]["path"]), {}
    if len(records) > 1:
        shown = [gallery.Shown(Path(one["path"]), one["prompt"], one["seed"], Path(one["sidecar"])) for one in records]
        page = first.with_name(f"{first.stem}_x{len(records)}.html")
        pages = gallery.write_page(page, shown, [clip.frames for clip in clips], terminal)
    if output.open:
        gallery.show(Path(pages.get("page", first)), terminal)
    return pages


def say_notes(request: Request, limits: Limits, model: Model, terminal: Terminal) -> list[str]:
    """Print and return what becomes of the sources of a request, and how long a large clip takes."""
    from pusa.cli.shared.memory_report import LARGE, relative_size, time_of
    from pusa.generation.footage import footage

    notes = request.notes(limits)
    settings: Settings = request.check(limits)
    if relative_size(limits.defaults, settings.size, settings.frames) > LARGE:
        joined = [getattr(request, name) for name in ("clip", "a", "b") if hasattr(request, name)]
        coded = settings.frames + 2 * sum(footage(clip, limits.defaults.fps).count or 0 for clip in joined)
        with terminal.status("Estimating"):
            needed = time_of(model, settings.size, settings.frames, settings.guidance, settings.steps, coded)
        notes.append(f"The clip takes about {needed} here, by a rough estimate.")
    for note in notes:
        terminal.note(f"pusa: {note}")
    return notes


def check_paths(
    paths: Iterable[Path],
    output: Output,
    sources: Iterable[Path] = (),
    *,
    replaces: Path | None = None,
    bytes_needed: int = 0,
) -> None:
    """Raise InputError, in every process of torchrun, if no clip can be saved at one of the paths.

    sources, replaces, bytes_needed: see `Output.check_path`.
    """
    paths, sources = list(paths), list(sources)

    def check() -> None:
        for path in paths:
            output.check_path(path, sources, replaces=replaces, bytes_needed=bytes_needed)

    _in_rank_zero(check)


def check_output(output: Output, sources: Iterable[Path] = ()) -> None:
    """Raise InputError if --out is no usable folder or file. The names of the clips need not be known yet."""
    _in_rank_zero(partial(output.check, list(sources)))


def _in_rank_zero(check: Callable[[], None]) -> None:
    if not launched():
        check()
        return
    from pusa.processes import current_group, from_rank_zero

    from_rank_zero(current_group(), check)


def bytes_of(limits: Limits, settings: Settings) -> int:
    """Return roughly how many bytes the three files of a clip take: float32 latents, and an fiftieth of the pixels."""
    width, height = settings.size
    geometry = limits.geometry
    latents = 4 * prod(geometry.latent_shape(LATENT_CHANNELS, settings.frames, settings.size))
    return latents + settings.frames * width * height * 3 // 50


def _save(clip: GeneratedClip, path: Path, output: Output, terminal: Terminal, replaces: Path | None) -> Path:
    """Save a clip and return its path.

    If another program has written a file there meanwhile, the clip is saved beside it. If SIGTERM arrives meanwhile, no
    half-written file stays; torchrun sends it if another rank died.
    """
    wanted, number = path, 2
    while output.taken(path, replaces) is not None:
        path, number = wanted.with_stem(shortened(wanted.stem, f"_{number}")), number + 1
    if path != wanted:
        terminal.note(f"{wanted} was written by another program meanwhile, so the clip is saved as {path}.")
    main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)) if main_thread else None
    try:
        clip.save(path)
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, previous)
    return path


def record(clip: GeneratedClip, path: Path, seconds: float) -> dict[str, Any]:
    """Return the entry of a clip in the output of `--json`. seconds: the time that the clip took."""
    count, height, width, _ = clip.frames.shape
    return {
        "path": str(media_path(path)),
        "sidecar": str(sidecar_path(path)),
        "prompt": clip.prompt,
        "seed": clip.recipe["seed"],
        "frames": count,
        "size": [width, height],
        "fps": clip.fps,
        "seconds": round(seconds, 3),
        **{name: clip.recipe[name] for name in ("accelerate", "acceleration") if name in clip.recipe},
    }
