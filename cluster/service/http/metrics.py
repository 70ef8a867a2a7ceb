"""Metrics of the service for Prometheus."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from cluster.service.data.records import Times
from cluster.service.data.states import FINAL, QUEUED

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class _JobTimes(Collector):
    """Seconds that jobs waited and ran, summed by the database, so that they are those of all servers and restarts."""

    times: Callable[[], Sequence[Times]]

    def describe(self) -> tuple[()]:
        """Nothing: the registry must not ask the database when it is made."""
        return ()

    def collect(self) -> Iterator[SummaryMetricFamily | GaugeMetricFamily]:
        """The metrics now."""
        times = self.times()
        waits = SummaryMetricFamily(
            "mint_job_wait_seconds",
            "Seconds from the submission of a job to its last start.",
            count_value=sum(row.begun for row in times),
            sum_value=sum(row.waited for row in times),
        )
        runs = SummaryMetricFamily(
            "mint_job_seconds", "Seconds from the last start of a job to its end, by its final state.", labels=["state"]
        )
        for row in times:
            if row.state in FINAL:
                runs.add_metric([row.state], row.begun, row.ran)
        first = next((row.first_created_at for row in times if row.state == QUEUED), None)
        oldest = 0.0 if first is None else max(0.0, time.time() - first)
        yield from (waits, runs)
        yield GaugeMetricFamily("mint_queue_oldest_seconds", "Seconds that the oldest queued job waits.", oldest)


class Metrics:
    """The counters of one service, and gauges that are read when the metrics are; `jobs` counts those in each state."""

    def __init__(self, jobs: Callable[[], Mapping[str, int]], times: Callable[[], Sequence[Times]]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_JobTimes(times))
        self._requests = Counter(
            "mint_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "mint_request_seconds",
            "Seconds from a request to the end of its answer, streams and downloads left out.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.sent = Counter("mint_download_bytes", "Bytes of artifacts that were sent.", registry=registry)
        self.refused = Counter(
            "mint_refused", "Requests refused, by the code of the error.", ["code"], registry=registry
        )
        self._jobs, self._count_jobs = Gauge("mint_jobs", "Jobs in each state.", ["state"], registry=registry), jobs

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is the path of its route, without a query."""
        self._requests.labels(method, route, str(status)).inc()
        if not route.endswith(("/events", "/files/{name:path}")):
            self._seconds.labels(method, route).observe(seconds)

    def add_gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value `read` returns."""
        Gauge(name, help, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """All metrics in the format of Prometheus."""
        for state, count in self._count_jobs().items():
            self._jobs.labels(state).set(count)
        return generate_latest(self._registry)
