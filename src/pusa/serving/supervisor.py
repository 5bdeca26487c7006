"""Starts the workers of a server, replaces those that die, and stops them."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import threading
import time
from multiprocessing.process import BaseProcess

from pusa.serving import worker_process
from pusa.serving.worker import WorkerOptions

log = logging.getLogger("pusa.serving.supervisor")
_PACE = 0.25
_SOON = 5.0
"""A worker that lives for fewer seconds has failed to start."""
_LONGEST_PAUSE = 60.0
"""seconds between two starts of a worker that fails to start"""
_PATIENCE = 20.0
"""seconds that a worker has to end after it was told to"""


class Supervisor:
    """The worker processes of this server. options: one for each."""

    def __init__(self, options: list[WorkerOptions]) -> None:
        self._options = options
        self._context = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        self._running: dict[int, tuple[BaseProcess, float]] = {}
        self._failures = dict.fromkeys(range(len(options)), 0)
        self._next = dict.fromkeys(range(len(options)), 0.0)
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def start(self) -> None:
        """Start the workers, in a thread that stays to watch them."""
        if self._options:
            self._thread.start()

    def living(self) -> int:
        """How many workers run."""
        return sum(process.is_alive() for process, _ in list(self._running.values()))

    def stop(self) -> None:
        """Stop the workers after their step; those that do not end are killed."""
        self._stopping.set()
        if not self._options:
            return
        self._thread.join()
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for number in range(len(self._options)):
                self._look_after(number)
            self._stopping.wait(_PACE)

    def _look_after(self, number: int) -> None:
        now = time.monotonic()
        if (entry := self._running.get(number)) is not None:
            process, since = entry
            if process.is_alive():
                if now - since > _SOON:
                    self._failures[number] = 0
                return
            del self._running[number]
            log.error("worker %d ended with code %s and is started again", number, process.exitcode)
            if now - since < _SOON:
                self._failures[number] += 1
                self._next[number] = now + min(_LONGEST_PAUSE, 2.0 ** self._failures[number])
        if now >= self._next[number]:
            process = self._context.Process(
                target=worker_process.run, args=(pickle.dumps(self._options[number]),), daemon=True
            )
            process.start()
            self._running[number] = process, now
