"""Ctrl-C, and the SIGTERM that a cluster sends some time before it kills: how a training is asked to stop.

The first one is remembered, so that the step can be finished and a checkpoint written. From then on signals do what
they did before, and a second one ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ANSWER = b"pusa: stopping after this step, with a checkpoint; once more stops at once.\n"


@contextmanager
def listening(*, answer: bool) -> Iterator[Callable[[], bool]]:
    """For the block, yields whether a signal has come. answer: say on stderr that it was heard.

    Does nothing in other threads than the main one, which get no signals, nor about signals that are ignored.
    """
    heard = False
    usual = {each: signal.getsignal(each) for each in SIGNALS}
    usual = {each: handler for each, handler in usual.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        usual = {}

    def restore() -> None:
        for each, handler in usual.items():
            signal.signal(each, handler)

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        restore()
        if answer:
            os.write(2, b"\n" * os.isatty(2) + _ANSWER)  # print may be what the signal interrupted

    for each in usual:
        signal.signal(each, hear)
    try:
        yield lambda: heard
    finally:
        restore()
