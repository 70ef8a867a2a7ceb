"""Metrics of the service for Prometheus."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.service.data.records import TIME_BOUNDS, Times
from cluster.service.data.states import FINAL, QUEUED

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class _JobTimes(Collector):
    """Times of jobs, counted by the database, so that they are those of all servers and restarts.

    Histograms are of ended jobs, whose times never change: a counter must not fall.
    """

    times: Callable[[], Sequence[Times]]

    def describe(self) -> tuple[()]:
        """Nothing: the registry must not ask the database when it is made."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        times = self.times()
        ended = [row for row in times if row.state in FINAL]
        waits = HistogramMetricFamily("mint_job_wait_seconds", "Seconds that jobs waited, all but their work.")
        waits.add_metric(
            [],
            _buckets([row.waited_counts for row in ended], [row.begun for row in ended]),
            sum(row.waited for row in ended),
        )
        works = HistogramMetricFamily("mint_job_seconds", "Seconds of work on jobs, by final state.", labels=["state"])
        for state in FINAL:
            rows = [row for row in ended if row.state == state]
            counts = _buckets([row.worked_counts for row in rows], [row.begun for row in rows])
            works.add_metric([state], counts, sum(row.worked for row in rows))
        number = GaugeMetricFamily("mint_person_jobs", "Jobs of a person in a state.", labels=["person", "state"])
        seconds = CounterMetricFamily("mint_person_work_seconds", "Work on ended jobs of a person.", labels=["person"])
        for row in times:
            number.add_metric([row.owner, row.state], row.number)
        for owner in sorted({row.owner for row in ended}):
            seconds.add_metric([owner], sum(row.worked for row in ended if row.owner == owner))
        first = min((row.first_queued_at for row in times if row.state == QUEUED), default=None)
        oldest = 0.0 if first is None else max(0.0, time.time() - first)
        yield from (waits, works, number, seconds)
        yield GaugeMetricFamily("mint_queue_oldest_seconds", "Seconds that the oldest queued job waits.", oldest)


def _buckets(counts: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[tuple[str, float]]:
    """The cumulated counts of a histogram, summed over rows."""
    bounds = [str(bound) for bound in TIME_BOUNDS]
    sums = [sum(column) for column in zip(*counts, strict=True)] or [0] * len(bounds)
    return [*zip(bounds, map(float, sums), strict=True), ("+Inf", float(sum(numbers)))]


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
