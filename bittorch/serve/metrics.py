"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.running = Gauge("bittorch_answers_running", "Answers that have a slot", registry=own)
        self.waiting = Gauge("bittorch_answers_waiting", "Answers that wait for a slot", registry=own)
        self.slots = Gauge("bittorch_slots", "Answers that can be made at the same time", registry=own)
        self.held = Gauge("bittorch_cache_tokens", "Tokens in the cache of keys and values", registry=own)
        self.capacity = Gauge("bittorch_cache_capacity_tokens", "Tokens that the cache can hold", registry=own)
        self.prompt = Counter("bittorch_prompt_tokens", "Tokens of prompts that were read", registry=own)
        self.kept = Counter("bittorch_kept_tokens", "Tokens of prompts that the cache held already", registry=own)
        self.answer = Counter("bittorch_answer_tokens", "Tokens of answers", registry=own)
        self.ended = Counter(
            "bittorch_answers",
            "Answers that ended: stop, length, vectors, cancelled, timeout, error",
            ["reason"],
            registry=own,
        )
        self.refused = Counter("bittorch_refused", "Requests that found no place", registry=own)
        self.requests = Counter("bittorch_http_requests", "Requests by status", ["status"], registry=own)
        self.first = Histogram(
            "bittorch_time_to_first_token_seconds", "From a request to its first token", registry=own, buckets=SECONDS
        )
        self.step = Histogram(
            "bittorch_step_seconds", "One step of the model and all it chooses", registry=own, buckets=STEP_SECONDS
        )
        self.model = Histogram(
            "bittorch_model_seconds", "The model's part of a step", registry=own, buckets=STEP_SECONDS
        )

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self.registry)
