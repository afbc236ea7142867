"""What is counted while a server runs, in the form that Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Monitor:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter("ltune_requests", "Requests by what became of them.", ["route", "status"], registry=own)
        self.request_seconds = Histogram(
            "ltune_request_seconds",
            "From the first byte of a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=own,
        )
        self.texts = Counter("ltune_texts", "Texts that were classified.", ["adapter"], registry=own)
        self.tokens = Counter("ltune_tokens", "Tokens of texts that were classified.", ["adapter"], registry=own)
        self.queue = Gauge("ltune_queue_texts", "Texts that wait for a batch.", registry=own)
        self.adapters = Gauge("ltune_adapters", "Adapters that are served.", registry=own)
        self.label_sets = Counter("ltune_label_sets", "Requests with labels of their own.", ["cache"], registry=own)
        self.out_of_memory = Counter("ltune_out_of_memory", "Batches that had to be halved.", registry=own)
        self._batch_texts = Histogram("ltune_batch_texts", "Texts of a batch.", buckets=TEXTS, registry=own)
        self._batch_adapters = Histogram("ltune_batch_adapters", "Adapters in a batch.", buckets=TEXTS, registry=own)
        self._batch_seconds = Histogram("ltune_batch_seconds", "What a batch took.", buckets=SECONDS, registry=own)
        self._passes = Counter("ltune_forward_passes", "Forward passes of the backbone.", registry=own)

    def batch(self, texts: int, adapters: int, passes: int, seconds: float) -> None:
        """A batch is done."""
        self._batch_texts.observe(texts)
        self._batch_adapters.observe(adapters)
        self._batch_seconds.observe(seconds)
        self._passes.inc(passes)

    def exposition(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self._registry)
