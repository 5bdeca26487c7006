"""What a verb says: notes and a progress bar on stderr, its result on stdout.

stdout carries only the result (the path of each clip, or one JSON object), so that a script can read it; everything
meant for eyes goes to stderr, and the bar only when stderr is a terminal.
"""

from __future__ import annotations

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
    """What a verb did: `record` for `--json`, `text` for people, and the clips for callers in the same process.

    exit_code: 1 when the verb did its work and something needs attention all the same.
    """

    record: dict[str, Any]
    text: str = ""
    clips: list[GeneratedClip] = field(default_factory=list)
    exit_code: int = 0

    def print(self, as_json: bool) -> None:
        if as_json:
            print(json.dumps(self.record, ensure_ascii=False))
        elif self.text:
            print(self.text)


class Terminal:
    """The person's side of a run; `talkative` is False under --quiet and --json."""

    def __init__(self, talkative: bool) -> None:
        self.talkative = talkative
        self.drawing = talkative and sys.stderr.isatty()

    def note(self, text: str) -> None:
        """One line on stderr."""
        if self.talkative:
            print(printable(text), file=sys.stderr)

    @contextmanager
    def status(self, text: str, *, line: bool = False) -> Iterator[None]:
        """A spinner beside `text` while something without steps runs; where nothing is drawn, with `line`, a line."""
        if not self.drawing:
            if line:
                self.note(text)
            yield
            return
        with _console().status(f"[dim]{text}[/]"):
            yield

    @contextmanager
    def steps(self, text: str) -> Iterator[Callable[[Step], None]]:
        """A progress bar; yields the sampler's callback. It appears with the first step, as the total is known then."""
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
        """Progress through long work; yields a callback for (what is done, how much of it, of how much).

        A bar with the time left on a terminal. Else a line at the beginning, and one every `every` seconds or, where a
        twentieth takes longer than a sixth of that, every twentieth. What is done may change on the way.
        """
        what, started, first, told, part = "", 0.0, 0, time.monotonic(), 0

        def left(done: int, total: int) -> str:
            passed = done - first
            return clock((time.monotonic() - started) / passed * (total - done)) + " left" if passed > 0 else ""

        def begin(now: str, done: int) -> None:
            nonlocal what, started, first
            if now != what:
                what, started, first = now, time.monotonic(), done

        if not self.drawing:

            def tell(now: str, done: int, total: int) -> None:
                nonlocal told, part
                if now != what:
                    self.note(f"{now} ({total:,})")
                    told, part = time.monotonic(), 20 * done // max(total, 1)
                    begin(now, done)
                    return
                passed, reached = time.monotonic() - told, 20 * done // max(total, 1)
                if passed >= every or (passed >= every / 6 and reached > part):
                    told, part = time.monotonic(), reached
                    self.note(", ".join(filter(None, (f"{now}: {done:,} of {total:,}", left(done, total)))))

            yield tell
            return
        with _progress("left") as progress:
            task = progress.add_task("", total=None, left="", visible=False)

            def advance(now: str, done: int, total: int) -> None:
                begin(now, done)
                progress.update(
                    task, description=now, completed=done, total=total, left=left(done, total), visible=total > 0
                )

            yield advance


def count(number: int, thing: str) -> str:
    """`1 clip`, `1,200 clips`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Control characters, which a file's name may hold, as their escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def clock(seconds: float) -> str:
    """`0:02`, `4:50` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def pace(seconds: float, left: int) -> str:
    """Speed and time left, in the unit that reads well: `3.4 steps/s, 0:02 left` or `12.1 s/step, 4:50 left`."""
    speed = f"{1 / seconds:.1f} steps/s" if 0 < seconds < 1 else f"{seconds:.1f} s/step"
    minutes, rest = divmod(round(seconds * left), 60)
    return f"{speed}, {minutes}:{rest:02d} left" if left else speed


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _progress(field: str) -> Any:
    """A bar on stderr that goes when it is done; the task's `field` stands behind it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn(f"[dim]{{task.fields[{field}]}}[/]"),
    )
    return Progress(*columns, console=_console(), transient=True)
