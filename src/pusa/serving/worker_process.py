"""The first code of a worker process. It imports little, so that Ctrl-C does not meet a worker that still starts.

Ctrl-C in a terminal reaches every process of the command. The server decides what it means for its workers.
"""

from __future__ import annotations

import pickle
import signal


def run(options: bytes) -> None:
    """Be a worker. options: a pickled `WorkerOptions`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from pusa.serving import worker

    worker.run(pickle.loads(options))
