"""Stop a training on Ctrl-C, or on the SIGTERM that a cluster sends before it kills a process.

The first signal is noted, so that the training can finish its step and write a checkpoint. After that, the former
signal handlers are active again, and a second signal ends the process immediately.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE = b"pusa: training will stop after this step and write a checkpoint; repeat to stop immediately.\n"


@contextmanager
def catching(*, announce: bool) -> Iterator[Callable[[], bool]]:
    """Note signals inside the block. Yields a function that returns whether a signal has come.

    announce: print a message to stderr when it comes. Ignored signals stay ignored. In a thread that is not the main
    thread, this does nothing, because only the main thread gets signals.
    """
    received = False
    usual = {each: signal.getsignal(each) for each in SIGNALS}
    usual = {each: handler for each, handler in usual.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        usual = {}

    def restore() -> None:
        for each, handler in usual.items():
            signal.signal(each, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        restore()
        if announce:
            os.write(2, b"\n" * os.isatty(2) + _MESSAGE)  # the signal may have interrupted a print

    for each in usual:
        signal.signal(each, handle)
    try:
        yield lambda: received
    finally:
        restore()
