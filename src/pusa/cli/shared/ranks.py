"""Make a clip with several processes: torchrun runs the same command in each of them.

Only rank 0 prints. If a rank fails, the first one that fails prints its error, and all ranks end with its exit code.
This applies to `MULTI_RANK_COMMANDS`. Other verbs coordinate their processes themselves, or run in one process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import FrameType

MULTI_RANK_COMMANDS = ("generate", "extend", "transition")


def launched() -> bool:
    """Return whether torchrun or accelerate started several processes for this command. This does not import torch."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def as_one_command(tokens: Sequence[str]) -> Iterator[None]:
    """If torchrun runs a command that makes clips, let its processes act as one command inside the block.

    Otherwise do nothing. Inside the block, only rank 0 prints.
    """
    if not (tokens and tokens[0] in MULTI_RANK_COMMANDS and launched()):
        yield
        return
    with _ignore_second_interrupt(), ExitStack() as stack:
        from pusa.processes import join

        if not stack.enter_context(join()).is_rank_zero:
            devnull = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(devnull))
            stack.enter_context(redirect_stderr(devnull))
        yield


def first_to_fail(code: int) -> int | None:
    """Call `pusa.processes.first_to_fail` if this process belongs to a group; otherwise return None."""
    if "pusa.processes" not in sys.modules:
        return None
    from pusa.processes import first_to_fail

    return first_to_fail(code)


@contextmanager
def _ignore_second_interrupt() -> Iterator[None]:
    """After the first SIGINT, ignore further ones: torchrun sends it again, after the terminal has sent it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, previous)
