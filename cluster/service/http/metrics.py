"""Metrics of the service for Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.service.http.middleware import Answered

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one service, and gauges that are read when the metrics are."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "mint_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "mint_request_seconds",
            "Seconds from a request to the end of its answer, streams and downloads left out.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._sent = Counter("mint_download_bytes", "Bytes of artifacts that were sent.", registry=self.registry)
        self._refused = Counter(
            "mint_refused", "Requests refused, by the code of the error.", ["code"], registry=self.registry
        )

    def answered(self, answered: Answered) -> None:
        """Count a request."""
        self._requests.labels(answered.method, answered.route, str(answered.status)).inc()
        if not answered.route.endswith(("/events", "/files/{name:path}")):
            self._seconds.labels(answered.method, answered.route).observe(answered.seconds)

    def sent(self, nbytes: int) -> None:
        """Count the bytes of a download."""
        self._sent.inc(nbytes)

    def refused(self, code: str) -> None:
        """Count a refusal."""
        self._refused.labels(code).inc()

    def add_gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value `read` returns."""
        self.add_gauges(name, help, "", lambda: {"": read()})

    def add_gauges(self, name: str, help: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        """Add gauges, one for each value of a label, whose values `read` returns."""
        self.registry.register(_Gauges(name, help, label, read))

    def text(self) -> bytes:
        """All metrics in the format of Prometheus."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, name: str, help: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        self._name, self._help, self._label, self._read = name, help, label, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._help, labels=[self._label] if self._label else [])
        for label, value in self._read().items():
            family.add_metric([label] if self._label else [], value)
        yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._help)
