"""What one request may ask, and how long it may take its time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Beyond these a request is refused, before anything is read by the backbone."""

    texts: int = 256
    """Per request."""
    labels: int = 256
    """Of its own, per request."""
    characters: int = 100_000
    """Per text: what the tokenizer is to be bothered with. The backbone reads the adapter's `data.max_length`."""
    tokens: int = 1_000_000
    """Read for one request: its texts' tokens, once per label that is read with them."""
    body: int = 4 * 2**20
    """Bytes of a request's body."""
    body_seconds: float = 20.0
    """From a request's head to the end of its body."""
    head_seconds: float = 20.0
    """From a connection, or the first byte of a further request on it, to the end of that request's head."""
    waiting: int = 4096
    """Texts of all requests that wait for a batch."""
    connections: int = 2048
    """Open at the same time."""
