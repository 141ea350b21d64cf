"""What Prometheus reads of an endpoint. Names carry units; no label holds text that a client sent."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from apriel_assets.serving.supervised_engine import SupervisedEngine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one endpoint, and gauges read off its engines."""

    def __init__(self, engines: Iterable[SupervisedEngine]) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("apriel_requests", "Requests answered", ["model", "code"], registry=registry)
        self.tokens = Counter(
            "apriel_tokens", "Tokens read and written", ["model", "kind"], registry=registry
        )
        self.routed = Counter(
            "apriel_routed_requests", "Requests that the router placed", ["placement"], registry=registry
        )
        self.disconnects = Counter(
            "apriel_disconnects", "Requests whose client left", ["model"], registry=registry
        )
        self.first_token = Histogram(
            "apriel_time_to_first_token_seconds", "From the request to its first token", ["model"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "apriel_request_seconds",
            "From the request to its last token",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._registry.register(_EngineGauges(tuple(engines)))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineGauges:
    """Read when asked for, so that they cost nothing between."""

    def __init__(self, engines: tuple[SupervisedEngine, ...]) -> None:
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        figures = {
            "apriel_engine_up": ("1 if the engine answers", lambda own: float(own.is_ready)),
            "apriel_engine_restarts": ("Times that it was started again", lambda own: own.num_restarts),
            "apriel_engine_running_requests": ("Requests being decoded", lambda own: own.num_running),
            "apriel_engine_waiting_requests": ("Requests waiting for a slot", lambda own: own.num_waiting),
            "apriel_engine_cache_bytes": (
                "KV caches and states of all slots",
                lambda own: own.facts.get("cache_bytes", 0),
            ),
        }
        for name, (text, read) in figures.items():
            family = GaugeMetricFamily(name, text, labels=["placement"])
            for engine in self._engines:
                family.add_metric([engine.name], read(engine))
            yield family
