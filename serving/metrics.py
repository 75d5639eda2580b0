"""What the server counts, in the text format that Prometheus reads."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """The numbers of one server; `model` is a name of /v1/models."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter(
            "reasonseg_requests",
            "Requests by path and status code; 499 is a client that left.",
            ["path", "status"],
            **own,
        )
        self.seconds = Histogram(
            "reasonseg_request_seconds", "From a request to the end of its answer.", ["path"], buckets=_SECONDS, **own
        )
        self.batch_size = Histogram(
            "reasonseg_batch_size",
            "Requests that were answered together.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            **own,
        )
        self.model_seconds = Histogram(
            "reasonseg_model_seconds", "From the beginning to the end of a batch.", ["model"], buckets=_SECONDS, **own
        )
        self.open_requests = Gauge("reasonseg_open_requests", "Requests that are received or answered now.", **own)
        self.waiting = Gauge("reasonseg_waiting_requests", "Requests that wait for a model.", ["model"], **own)
        self.written_tokens = Counter("reasonseg_written_tokens", "Tokens of answers.", ["model"], **own)
        self.dropped = Counter(
            "reasonseg_dropped_requests", "Requests whose client left before the end.", ["model"], **own
        )

    def text(self) -> bytes:
        """All of it, as `/metrics` shows it."""
        return generate_latest(self.registry)


__all__ = ["Metrics"]
