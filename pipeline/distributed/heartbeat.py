"""Signs of life between the ranks of a run: where one is dead or hung, the others end instead of waiting for it."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable

from pipeline.core.errors import RANK_LOST
from pipeline.core.output import say_error
from pipeline.distributed.ranks import Ranks

log = logging.getLogger(__name__)

BEAT, LEFT, PING, ALIVE, LOST = b"beat", b"left", b"ping", b"aliv", b"lost"
ANSWER_SECONDS = 3.0
"""A rank that is asked for a sign of life answers sooner, unless it is in trouble."""
GRACE_SECONDS = 5.0
"""Time to end by itself, with a message of its own, for a rank that hears of a lost one."""


class Heartbeat:
    """A thread that sends signs of life to the next rank, and watches for those of the rank before, in a ring.

    Datagrams, since the process group's store hangs with the rank that keeps it, and connections break with their
    process. A thread cannot interrupt a collective, so it ends the process: to a checkpoint that is being written this
    is a kill like any other. Long calls that hold the interpreter's lock stop the thread; the limit must be above them.
    """

    def __init__(self, ranks: Ranks, limit_seconds: float) -> None:
        """Watches among `ranks`. Collective."""
        self.rank, self.limit_seconds = ranks.rank, limit_seconds
        self.interval_seconds = min(limit_seconds / 10, 5.0)
        self.lost: str | None = None
        """Which rank was lost and why, once that is known; this process then ends."""
        self._end_at = float("inf")
        self._socket = _open_socket()
        self._socket.settimeout(self.interval_seconds / 2)
        token = secrets.token_bytes(16)  # strangers' datagrams are not listened to
        peers = ranks.gather((self._socket.getsockname(), socket.gethostname(), token))
        self._addresses = [address for address, _, _ in peers]
        self._hosts = [host for _, host, _ in peers]
        self._token = peers[0][2]
        self._answered: set[int] = set()
        self._ended = threading.Event()
        self._send(BEAT, [self._next])  # at once: it makes the next rank watch this one
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread in good order: the next rank waits for no more signs of life."""
        self._send(LEFT, [self._next])
        self._ended.set()

    def failed(self, message: str) -> None:
        """Tells the others that this rank ends by a failure of its own."""
        self._lose(f"rank {self.rank} on {self._hosts[self.rank]} failed: {message}")

    def find_lost(self) -> str | None:
        """Which rank was lost. Pings every rank: a failed collective does not say which rank died."""
        others = set(range(len(self._addresses))) - {self.rank}
        self._answered.clear()
        deadline = time.monotonic() + ANSWER_SECONDS
        while self.lost is None and time.monotonic() < deadline and not others <= self._answered:
            self._send(PING, others - self._answered)
            time.sleep(0.2)
        if self.lost is None and not others <= self._answered:
            self._lose(self._silence(others - self._answered, ANSWER_SECONDS))
        return self.lost

    @property
    def _next(self) -> int:
        return (self.rank + 1) % len(self._addresses)

    def _watch(self) -> None:
        """Runs until `stop`. The rank before is watched from its first sign of life to its last."""
        watched = (self.rank - 1) % len(self._addresses)
        heard: float | None = None
        beaten = awake = 0.0
        while not self._ended.is_set():
            kind, sender = self._receive()
            now = time.monotonic()
            if sender == watched and kind in (BEAT, LEFT):
                heard = now if kind == BEAT else None
            elif heard is not None and now - awake > self.limit_seconds / 2:
                heard = now  # It was this process that slept.
            awake = now
            if now - beaten > self.interval_seconds:
                self._send(BEAT, [self._next])
                beaten = now
            if heard is not None and now - heard > self.limit_seconds and self.lost is None:
                self._lose(self._silence([watched], self.limit_seconds))
                self._end()
            if now > self._end_at:
                self._end()
        self._socket.close()

    def _receive(self) -> tuple[bytes, int]:
        """Kind and sender of the next datagram; nothing where none comes for half an interval."""
        try:
            data, _ = self._socket.recvfrom(2048)
        except (TimeoutError, OSError):
            return b"", -1
        token, kind, sender, text = data[:16], data[16:20], data[20:24], data[24:]
        if token != self._token:
            return b"", -1
        number = int.from_bytes(sender, "big")
        if kind == PING:
            self._send(ALIVE, [number])
        elif kind == ALIVE:
            self._answered.add(number)
        elif kind == LOST and self.lost is None:
            self._note(text.decode(errors="replace"))
        return kind, number

    def _silence(self, ranks: Iterable[int], seconds: float) -> str:
        names = ", ".join(f"rank {number} on {self._hosts[number]}" for number in sorted(ranks))
        return f"{names}: no sign of life for {seconds:g} s, killed or hung"

    def _lose(self, text: str) -> None:
        """Notes what was lost, and reports it to all others."""
        self._note(text)
        for _ in range(3):  # datagrams may get lost
            self._send(LOST, set(range(len(self._addresses))) - {self.rank}, text.encode()[:1500])

    def _note(self, text: str) -> None:
        self.lost, self._end_at = text, time.monotonic() + GRACE_SECONDS

    def _send(self, kind: bytes, ranks: Iterable[int], text: bytes = b"") -> None:
        for number in ranks:
            try:
                self._socket.sendto(self._token + kind + self.rank.to_bytes(4, "big") + text, self._addresses[number])
            except OSError as error:
                log.debug("heartbeat: rank %d cannot be reached (%s)", number, error)

    def _end(self) -> None:
        say_error(f"rank {self.rank}: error: {self.lost}")
        os._exit(RANK_LOST)


def _open_socket() -> socket.socket:
    """A datagram socket at the address by which this host reaches rank 0's."""
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, kind, _, _, target = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        address = probe.getsockname()[0]
    opened = socket.socket(family, kind)
    opened.bind((address, 0))
    return opened
