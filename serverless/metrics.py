"""What Prometheus reads of the worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)


class Metrics:
    """Jobs, errors by code, and seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("multitalk_jobs", "Jobs that ended.", ["action", "result"], registry=self.registry)
        self.errors = Counter("multitalk_errors", "Jobs that failed, by code.", ["code"], registry=self.registry)
        self.phases = Histogram("multitalk_phase_seconds", "Seconds of a phase.", ["phase"], registry=self.registry, buckets=SECONDS)
        self.pace = Histogram(
            "multitalk_seconds_per_generated_second", "Seconds of a job for a second of video.", registry=self.registry, buckets=SECONDS
        )
        self.running = Gauge("multitalk_jobs_running", "Jobs at this moment.", registry=self.registry)
        self.deaths = Counter("multitalk_comfyui_deaths", "Times that ComfyUI ended by itself.", registry=self.registry)


class Timings(dict[str, float]):
    """Seconds by phase of one job; they go into the metrics, too."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self[name] = round(self.get(name, 0.0) + time.monotonic() - began, 3)
            self._metrics.phases.labels(name).observe(time.monotonic() - began)
