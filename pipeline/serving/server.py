"""The process that listens: slow heads, the end by a signal, logs."""

import asyncio
import json
import logging
import socket
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.core.errors import UserError
from pipeline.serving.app import create_app
from pipeline.serving.guard import Guard, Tokens
from pipeline.serving.limits import Limits
from pipeline.serving.service import Service

log = logging.getLogger(__name__)
BACKLOG = 2048
"""Connections that the system queues."""
LAST_REQUESTS_SECONDS = 1.0
"""How long open connections may still send a request, once the server was told to end."""
ACCEPT_SECONDS = 0.1
"""How long connections that the system has queued are still taken up."""


def serve(service: Service, tokens: Tokens, *, host: str, port: int, grace: float) -> None:
    """Answers requests until SIGTERM or SIGINT, and then those that were accepted, for at most `grace` seconds.

    A second signal ends it at once. Raises UserError where it cannot listen there.
    """
    server = Server(create_app(service, tokens), service.limits, grace)
    try:
        with listening_on(host, port) as listening:
            server.run([listening])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port} ({reason}): choose another --host or --port") from error
    finally:
        service.close()
    log.info("ended", extra={"fields": {"accepted": server.guard.accepted}})


def listening_on(host: str, port: int) -> socket.socket:
    """A socket that listens, whose connections send at once. OSError where it cannot.

    Head and body of an answer are two packets: the second would wait 40 ms until the first is acknowledged.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class Server(uvicorn.Server):
    """Ends without losing what it has accepted, and with status 0."""

    def __init__(self, guard: Guard, limits: Limits, grace: float) -> None:
        """`grace`: seconds for answers to what was accepted, once it is to end."""
        super().__init__(
            uvicorn.Config(
                guard,
                http=_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=max(1, round(grace)),
                backlog=BACKLOG,
            )
        )
        self.guard = guard

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        log.info("listening", extra={"fields": {"host": host, "port": port}})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Open connections get time for the request that is on its way, and answers close them."""
        self.guard.ending = True
        await asyncio.sleep(ACCEPT_SECONDS)
        for server in self.servers:
            server.close()
        until = time.monotonic() + LAST_REQUESTS_SECONDS
        while self.server_state.connections and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection whose next request's head does not come to an end."""

    class PatientProtocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_head()

        def _watch_head(self) -> None:
            """Waits where the beginning of a head has come, until its end has."""
            if self.conn.their_state is not h11.IDLE:
                self._stop_waiting()
            elif self.conn.trailing_data[0] and self._late is None:
                self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            self._late = self.loop.call_later(limits.head_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return PatientProtocol


class JsonLines(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
