"""Figures of the service for Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.service.http.middleware import Answered

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one service; what others know is asked for when somebody looks."""

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
        """Count what a download sent."""
        self._sent.inc(nbytes)

    def refused(self, code: str) -> None:
        """Count a refusal."""
        self._refused.labels(code).inc()

    def watch(self, name: str, help: str, look: Callable[[], float]) -> None:
        """Show a figure that `look` tells when it is asked for."""
        self.watch_many(name, help, "", lambda: {"": look()})

    def watch_many(self, name: str, help: str, label: str, look: Callable[[], dict[str, float]]) -> None:
        """Show figures, one for each value of a label, that `look` tells when it is asked for."""
        self.registry.register(_Looked(name, help, label, look))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Looked(Collector):
    def __init__(self, name: str, help: str, label: str, look: Callable[[], dict[str, float]]) -> None:
        self._name, self._help, self._label, self._look = name, help, label, look

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._help, labels=[self._label] if self._label else [])
        for label, value in self._look().items():
            family.add_metric([label] if self._label else [], value)
        yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(self._name, self._help)
