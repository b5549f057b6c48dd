"""`/metrics`: what a Prometheus server reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from fader.engine.stats import Stats
from fader.request import Alignment

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
GAUGES = {
    "running": ("live", "Requests that run"),
    "queue_length": ("waiting", "Requests that wait for memory"),
    "rows_per_second": ("rows_per_second", "Rows read, over the last 10 seconds"),
    "tokens_per_second": ("tokens_per_second", "Tokens read, over the last 10 seconds"),
    "kv_used_bytes": ("kv_used", "KV memory of rows in use"),
    "kv_reserved_bytes": ("kv_reserved", "KV memory that is set aside"),
    "kv_remembered_bytes": ("kv_remembered", "KV memory of prompts kept for later requests"),
    "prompt_share_from_memory": (
        "prompt_share_from_memory",
        "Of the prompt tokens of new rows, the share that was in memory",
    ),
}


class Metrics:
    """Counts and times of one server."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(stats))
        self._requests = Counter(
            "fader_requests",
            "Requests answered",
            ["endpoint", "status", "method"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fader_request_seconds",
            "From the first byte of a request to the last of its answer",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._answers = Counter(
            "fader_answers",
            "Answers begun, by what decides their tokens",
            ["alignment"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "fader_time_to_first_token_seconds",
            "From the request to the first token of its answer",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.between_tokens = Histogram(
            "fader_inter_token_seconds",
            "Between two tokens of an answer",
            buckets=SECONDS,
            registry=self.registry,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered. Paths that there are not are counted as one."""
        route = scope.get("route")
        endpoint = getattr(route, "path", "none")
        self._requests.labels(endpoint, str(status), _method(scope["method"])).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def begun(self, alignment: Alignment) -> None:
        """An answer under this alignment has begun."""
        kinds: set[str] = {guide.kind for guide in alignment.guides}
        kinds |= {"vectors"} if alignment.vectors else set()
        kinds |= set() if alignment.preferences.empty else {"preferences"}
        kinds |= {alignment.search.kind} if alignment.search else set()
        self._answers.labels("+".join(sorted(kinds)) or "none").inc()

    def text(self) -> bytes:
        """All of it as Prometheus' text."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """How busy the backend is, at the moment that it is asked."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats: Any = self._stats()
        for name, (field, said) in GAUGES.items():
            yield GaugeMetricFamily(f"fader_{name}", said, value=getattr(stats, field))


def _method(verb: str) -> str:
    return verb if verb in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD") else "other"
