"""Numbers for Prometheus: the queue and the workers, read from the database when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from pusa.serving.server import Server


class Metrics:
    """A registry with the numbers of a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]  # it has what a collector needs

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The numbers of this moment."""
        videos = GaugeMetricFamily("pusa_videos", "Videos that are kept, by status.", labels=["status"])
        counts = self.server.store.counts()
        for status in ("queued", "in_progress", "completed", "failed"):
            videos.add_metric([status], counts.get(status, 0))
        yield videos
        yield GaugeMetricFamily(
            "pusa_video_seconds", "Median time of the last videos, from beginning to end.", self.server.store.pace()
        )
        yield GaugeMetricFamily("pusa_workers", "Workers of this server that run.", self.server.supervisor.living())
