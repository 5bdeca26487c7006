"""The output of a verb: its result on stdout, notes and progress on stderr.

stdout gets only the result, which is the path of each clip or one JSON object, so that a script can read it. A progress
bar is drawn only if stderr is a terminal.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pusa.core.sampler import Step
    from pusa.generation.clip import GeneratedClip


@dataclass
class Report:
    """The result of a verb.

    record: the output with `--json`. text: the output without it. clips: the clips, for callers in the same process.
    exit_code: 1 if the verb finished, but found a problem that needs attention.
    """

    record: dict[str, Any]
    text: str = ""
    clips: list[GeneratedClip] = field(default_factory=list)
    exit_code: int = 0

    def print(self, as_json: bool) -> None:
        """Print the record or the text on stdout."""
        if as_json:
            print_json(self.record)
        elif self.text:
            print(self.text)


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON object on stdout. A byte of a path that is not UTF-8 is printed as the escape `\\udcXX`."""
    print(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8"))


def _paths_as_they_are(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what the output cannot: bytes of a path that are not UTF-8 as they are, other letters as escapes."""
    error.end = error.start + 1  # type: ignore[attr-defined]
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def print_anything() -> None:
    """Let no path and no letter make printing on stdout fail; a script gets the bytes of a path as they are."""
    codecs.register_error("pusa.paths", _paths_as_they_are)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="pusa.paths")


class Terminal:
    """Notes and progress on stderr.

    verbose: whether anything is printed; it is False with --quiet and --json. drawing: whether progress bars are drawn.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.drawing = verbose and sys.stderr.isatty()

    def note(self, text: str) -> None:
        """Print one line."""
        if self.verbose:
            print(printable(text), file=sys.stderr)

    @contextmanager
    def status(self, text: str, *, line: bool = False) -> Iterator[None]:
        """Show `text` with a spinner while the block runs.

        line: print `text` as a line if no spinner can be drawn.
        """
        if not self.drawing:
            if line:
                self.note(text)
            yield
            return
        with _console().status(f"[dim]{text}[/]"):
            yield

    @contextmanager
    def steps(self, text: str) -> Iterator[Callable[[Step], None]]:
        """Show a progress bar for a sampler; yields the sampler's callback. The bar appears with the first step."""
        if not self.drawing:
            yield lambda step: None
            return
        with _progress("pace") as progress:
            task = progress.add_task(text, total=None, pace="")
            started = time.perf_counter()

            def advance(step: Step) -> None:
                done = step.index + 1
                seconds = (time.perf_counter() - started) / done
                progress.update(task, completed=done, total=step.steps, pace=pace(seconds, step.steps - done))
                if done == step.steps:
                    progress.update(task, description="Decoding")

            yield advance

    @contextmanager
    def counting(self, every: float = 30.0) -> Iterator[Callable[[str, int, int], None]]:
        """Show the progress of long work; yields a callback that takes (activity, units finished, units in all).

        On a terminal, draw a bar with the remaining time. Otherwise print a line when an activity begins, then a line
        every `every` seconds. If 5 % of the work takes between `every` / 6 and `every` seconds, print a line every 5 %.
        """
        activity, started, first, last_note, part = "", 0.0, 0, time.monotonic(), 0

        def remaining(done: int, total: int) -> str:
            finished = done - first
            return clock((time.monotonic() - started) / finished * (total - done)) + " left" if finished > 0 else ""

        def begin(new_activity: str, done: int) -> None:
            nonlocal activity, started, first
            if new_activity != activity:
                activity, started, first = new_activity, time.monotonic(), done

        if not self.drawing:

            def print_note(new_activity: str, done: int, total: int) -> None:
                nonlocal last_note, part
                if new_activity != activity:
                    self.note(f"{new_activity} ({total:,})")
                    last_note, part = time.monotonic(), 20 * done // max(total, 1)
                    begin(new_activity, done)
                    return
                passed, reached = time.monotonic() - last_note, 20 * done // max(total, 1)
                if passed >= every or (passed >= every / 6 and reached > part):
                    last_note, part = time.monotonic(), reached
                    progress_text = f"{new_activity}: {done:,} of {total:,}"
                    self.note(", ".join(filter(None, (progress_text, remaining(done, total)))))

            yield print_note
            return
        with _progress("left") as progress:
            task = progress.add_task("", total=None, left="", visible=False)

            def advance(new_activity: str, done: int, total: int) -> None:
                begin(new_activity, done)
                progress.update(
                    task,
                    description=new_activity,
                    completed=done,
                    total=total,
                    left=remaining(done, total),
                    visible=total > 0,
                )

            yield advance


def count(number: int, thing: str) -> str:
    """Return a number and a noun in the singular or plural: `1 clip`, `1,200 clips`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Replace control characters, which a file name may contain, by escape sequences."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def clock(seconds: float) -> str:
    """Return a duration as `0:02`, `4:50` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """Return a rough duration in words: `9 seconds`, `5 minutes`, `3 hours`, `12 days`."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 1.5 * length:
            return count(round(seconds / length), unit)
    return count(max(1, round(seconds)), "second")


def pace(seconds: float, left: int) -> str:
    """Return the speed and the remaining time: `3.4 steps/s, 0:02 left` or `12.1 s/step, 4:50 left`.

    seconds: the time of one step. left: how many steps remain.
    """
    speed = f"{1 / seconds:.1f} steps/s" if 0 < seconds < 1 else f"{seconds:.1f} s/step"
    minutes, rest = divmod(round(seconds * left), 60)
    return f"{speed}, {minutes}:{rest:02d} left" if left else speed


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _progress(field: str) -> Any:
    """Return a bar on stderr that disappears at its end. It shows the task's `field` at the end of the line."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn(f"[dim]{{task.fields[{field}]}}[/]"),
    )
    return Progress(*columns, console=_console(), transient=True)
