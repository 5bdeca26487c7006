"""The queue of videos: DBOS workflows, one for each video, in the same database as the videos.

DBOS keeps the order, gives each workflow to one worker, and gives it to another one when this worker is dead. What a
workflow does here may be begun again at any time; `Store.complete` accepts the result of the last beginning only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from dbos import DBOS, DBOSClient

NAME = "pusa"
"""of the application, in the tables of DBOS"""
_QUEUE = "pusa-videos"
_WORKFLOW = "make_video"
_VERSION = "1"
"""of the workflow; a worker takes workflows of its own version only, so it grows if the argument changes"""
_PACE = 0.1
"""seconds between two looks of an idle worker at the queue"""


def prepare(engine: sa.Engine) -> None:
    """Make or update the tables of DBOS."""
    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    url = engine.url.set(drivername="postgresql" if engine.dialect.name == "postgresql" else "sqlite")
    DBOS.migrate(url.render_as_string(hide_password=False))


class Queue:
    """The queue, for processes that add videos and take them out. The tables exist."""

    def __init__(self, engine: sa.Engine) -> None:
        self._client = DBOSClient(system_database_engine=engine, application_name=NAME, retry_connection_errors=False)

    def add(self, connection: sa.Connection, video: str) -> None:
        """Append a video, in the transaction that makes its record."""
        self._client.enqueue_in_transaction(
            connection,
            {"workflow_name": _WORKFLOW, "queue_name": _QUEUE, "workflow_id": video, "app_version": _VERSION},
            video,
        )

    def cancel(self, video: str) -> None:
        """Take a video out of the queue, wherever it stands."""
        self._client.cancel_workflow(video)

    def forget(self, videos: Sequence[str]) -> None:
        """Remove what DBOS keeps of videos that are ready, have failed or were taken out."""
        self._client.delete_workflows(list(videos))


def work(engine: sa.Engine, worker: str, make: Callable[[str], None]) -> None:
    """Begin to take videos from the queue in a thread of this process, one at a time.

    worker: the id of this process. make: is given the id of a video. An error of it must be an error of the program,
    and the video counts as done.
    """
    logging.getLogger("dbos").setLevel(logging.CRITICAL)

    @DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)
    def make_video(video: str) -> None:
        make(video)

    url = engine.url.set(drivername="postgresql" if engine.dialect.name == "postgresql" else "sqlite")
    DBOS(
        config={
            "name": NAME,
            "system_database_url": url.render_as_string(hide_password=False),
            "system_database_engine": engine,
            "executor_id": worker,
            "application_version": _VERSION,
            "run_migrations": False,
            "use_listen_notify": False,
            "log_level": "CRITICAL",
        }
    )
    DBOS.listen_queues([_QUEUE])
    DBOS.launch()
    DBOS.register_queue(_QUEUE, worker_concurrency=1, polling_interval_sec=_PACE, on_conflict="always_update")


def recover(workers: Sequence[str]) -> None:
    """Give the videos of dead workers back to the queue. Only a process in which `work` was called can do this.

    It may be called by many processes at once: DBOS moves a workflow only while a dead worker still holds it.
    """
    DBOS._recover_pending_workflows(list(workers))  # has no other name for recovery by another executor


def rest() -> None:
    """Take no more videos."""
    DBOS.destroy(workflow_completion_timeout_sec=0)
