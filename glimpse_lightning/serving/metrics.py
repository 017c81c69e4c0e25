"""Counts and times of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "glimpse_requests", "Chat requests, by HTTP status (499: the client left).", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "glimpse_request_seconds", "Seconds from a request's arrival to the end of its answer.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batch = Histogram("glimpse_batch_size", "Requests in a batch.", buckets=SIZES, registry=registry)
        self.seen = Counter("glimpse_visual_tokens", "Visual tokens of answered prompts.", registry=registry)
        self.kept = Counter("glimpse_visual_tokens_kept", "Those of them that were kept.", registry=registry)
        self.prompted = Counter("glimpse_prompt_tokens", "Tokens of answered prompts.", registry=registry)
        self.written = Counter("glimpse_completion_tokens", "Tokens of answers.", registry=registry)
        self.waiting = Gauge("glimpse_waiting_requests", "Requests that wait for a batch.", registry=registry)
