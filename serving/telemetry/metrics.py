"""What a server counts and times, for Prometheus.

Label values are bounded whatever callers send: ``rpc`` is a method of the services, ``model`` a
served model or empty, ``code`` and ``reason`` come from :mod:`serving.errors`, and ``stage`` is one
of :data:`STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from serving.repository.models import Models
from serving.repository.served import ModelState, Served, State
from serving.scheduling.counters import Statistics
from serving.scheduling.memory import Memory
from serving.telemetry.call import Call

STAGES = ("queue", "decode", "infer", "encode", "total")
# Seconds, from a run of a tiny model to a large model with a queue.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MODEL = ("model", "version")
# Name, description, and value of a batcher's counters.
Figure = tuple[str, str, Callable[[Statistics], float]]


class Telemetry:
    """The counters of one server, in a registry of its own. Thread-safe."""

    def __init__(self) -> None:
        # Otherwise each series comes with a second one for its creation time.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "wsss_requests",
            "Requests answered.",
            ("rpc", "model", "code", "reason"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "wsss_request_seconds",
            "Seconds that a request spent in a stage.",
            ("model", "stage"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        gauge = partial(Gauge, registry=self.registry)
        self._image_bytes = gauge(
            "wsss_image_bytes", "Bytes of memory that the requests in progress take."
        )
        self._image_bytes_limit = gauge("wsss_image_bytes_limit", "Bytes that they may take.")
        self.streams = gauge("wsss_streams", "Streams that are open.")
        self.watches = gauge("wsss_watches", "Watches of the health service that are open.")
        self.captures = Counter(
            "wsss_captures",
            "Images above the doubt of --capture, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
        self.capture_bytes = gauge("wsss_capture_bytes", "Bytes of the folder of --capture.")
        self.ready = gauge("wsss_ready", "1 while the server takes requests, 0 while it ends.")
        ProcessCollector(registry=self.registry)

    def follow(self, models: Models) -> None:
        """Report every model that ``models`` serves from now on."""
        self.registry.register(_ModelCollector(models))

    def watch(self, memory: Memory) -> None:
        """Report the memory of the requests in progress."""
        self._image_bytes.set_function(lambda: memory.taken)
        self._image_bytes_limit.set(memory.limit)

    def ended(self, call: Call) -> None:
        """Count a request that was answered, successfully or not."""
        self._requests.labels(call.rpc, call.model, call.code, call.reason).inc()
        if call.stages:
            for name, _, seconds in call.stages:
                self._seconds.labels(call.model, name).observe(seconds)
            self._seconds.labels(call.model, "total").observe(call.ended - call.began)

    def refused(self, rpc: str, code: str, reason: str) -> None:
        """Count a call that was refused before its message was read."""
        self._requests.labels(rpc, "", code, reason).inc()

    def page(self, accept: str) -> tuple[bytes, str]:
        """Every metric, and the content type for an ``Accept`` header."""
        encoder, kind = choose_encoder(accept)
        return encoder(self.registry), kind


class _ModelCollector(Collector):
    """Asks the batchers when Prometheus asks, at no cost to requests."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._copy()
        models.subscribe(self._copy)

    def _copy(self, change: ModelState | None = None) -> None:
        # Prometheus asks in another thread than the one in which models change, so it gets a copy.
        self._live = tuple(self._models.served())
        self._states = tuple(self._models.index())

    def collect(self) -> Iterator[Metric]:
        """A family per figure, with a sample per model."""
        info = GaugeMetricFamily(
            "wsss_model_info", "Models served.", labels=(*MODEL, "kind", "engine", "sha256")
        )
        ready = GaugeMetricFamily("wsss_model_ready", "1 for a model that is served.", labels=MODEL)
        for model in self._live:
            card = model.card
            info.add_metric(
                (*_labels(model), card.kind, model.engine.description, card.graph_sha256), 1
            )
        for state in self._states:
            ready.add_metric((state.name, str(state.version)), float(state.state == State.READY))
        yield from (info, ready)
        figures = [(_labels(model), model.batcher.statistics()) for model in self._live]
        for family, rows in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, text, value in rows:
                metric = family(name, text, labels=MODEL)
                for labels, statistics in figures:
                    metric.add_metric(labels, value(statistics))
                yield metric


GAUGES: tuple[Figure, ...] = (
    ("wsss_queue_depth", "Requests that wait for the engine.", lambda s: s.waiting),
    ("wsss_running", "Requests in a run of the engine.", lambda s: s.running),
    (
        "wsss_in_flight",
        "Requests that hold a place in the queue, from decoding to encoding.",
        lambda s: s.admitted,
    ),
)
COUNTERS: tuple[Figure, ...] = (
    ("wsss_executions", "Runs of the engine.", lambda s: s.executions),
    ("wsss_inferences", "Images or tensors in all runs.", lambda s: s.inferences),
    ("wsss_refused", "Requests refused because the queue was full.", lambda s: s.refused),
    (
        "wsss_dropped",
        "Requests whose caller left or whose deadline passed before they were answered.",
        lambda s: s.dropped,
    ),
)


def _labels(model: Served) -> tuple[str, str]:
    return model.card.name, str(model.card.version)
