"""A clip that several processes make: torchrun runs the same command in each, and they speak and end like one.

Process 0 speaks. Whichever fails first says why, and all end with its exit code. Every other verb, also under torchrun,
sees to this itself or runs alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import FrameType

TOGETHER = ("generate", "extend", "transition")


@contextmanager
def together(tokens: Sequence[str]) -> Iterator[None]:
    """Run the block, a command line that makes clips, with the processes that torchrun started; else as it is."""
    if not (tokens and tokens[0] in TOGETHER and int(os.environ.get("WORLD_SIZE", 1)) > 1):
        yield
        return
    with _interrupted_once(), ExitStack() as stack:
        from pusa.processes import join

        if not stack.enter_context(join()).is_rank_zero:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def first_to_fail(code: int) -> int | None:
    """`pusa.processes.first_to_fail` where processes have met; None, this one is, where not."""
    if "pusa.processes" not in sys.modules:
        return None
    from pusa.processes import first_to_fail

    return first_to_fail(code)


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """For the block and from Ctrl-C on, a second one is not heard: torchrun repeats what the terminal sent already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is hear:
            signal.signal(signal.SIGINT, usual)
