"""Metrics of the service for Prometheus."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one service, and gauges that are read when the metrics are; `jobs` counts those in each state."""

    def __init__(self, jobs: Callable[[], Mapping[str, int]]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
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
