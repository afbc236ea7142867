"""Around every request: limits of its body, a token, its line in the log and in the counters."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse

from pipeline.serving.faults import GONE, Refused
from pipeline.serving.limits import Limits
from pipeline.serving.monitor import Monitor

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)
OPEN = ("/", "/health", "/metrics", "/docs", "/openapi.json")
"""Paths that need no token: they show neither texts nor labels."""
ROUTES = (*OPEN, "/predict", "/v1/classify", "/v1/adapters")
ADMIN = ("PUT", "DELETE")
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * 2**20
"""How much of a body that is refused is still read, so that its client sees why."""


@dataclass(frozen=True)
class Tokens:
    """What a client must show. None: nothing; of `admin`: nobody may add or remove adapters."""

    user: str | None = None
    admin: str | None = None


@dataclass
class Guard:
    """The application, guarded."""

    app: App
    limits: Limits
    monitor: Monitor
    tokens: Tokens
    ending: bool = False
    """Answers close their connections from now on."""
    accepted: int = field(default=0, init=False)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.accepted += 1
        request, facts = _header(scope, b"x-request-id")[:64] or uuid4().hex, dict[str, Any]()
        scope["state"] = {"id": request, "facts": facts}
        started, status = time.monotonic(), [GONE]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request.encode())]
                if self.ending or status[0] in (408, 413):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        body = _Body(receive, self.limits)
        try:
            await self._serve(scope, body, answer)
        finally:
            self._note(scope, facts, status[0], time.monotonic() - started)

    async def _serve(self, scope: Message, body: "_Body", answer: Send) -> None:
        try:
            self._check_token(scope)
            length = _header(scope, b"content-length")
            if length.isdecimal() and int(length) > self.limits.body:
                await body.linger()
                raise body.too_large
        except Refused as refused:
            await JSONResponse(refused.body, refused.status_code, refused.headers)(scope, body.receive, answer)
            return
        # HEAD is answered as GET; the server that sends the answer leaves its body out.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        await self.app(asked, body.receive, answer)

    def _check_token(self, scope: Message) -> None:
        """Raises Refused."""
        if scope["method"] in ADMIN:
            if self.tokens.admin is None:
                raise Refused("unauthorized", "adapters can be added only where the server has --admin-token-file")
            wanted = self.tokens.admin
        elif self.tokens.user is None or scope["path"] in OPEN:
            return
        else:
            wanted = self.tokens.user
        kind, _, given = _header(scope, b"authorization").partition(" ")
        known = [wanted] if self.tokens.admin is None else [wanted, self.tokens.admin]
        if kind.lower() != "bearer" or not any(_equal(given.strip(), token) for token in known):
            raise Refused("unauthorized", "the header 'Authorization: Bearer TOKEN' is missing or wrong")

    def _note(self, scope: Message, facts: dict[str, Any], status: int, seconds: float) -> None:
        route = _route(scope["path"])
        self.monitor.requests.labels(route, str(status)).inc()
        self.monitor.request_seconds.labels(route).observe(seconds)
        fields = {"request": scope["state"]["id"], "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={"fields": {**fields, "seconds": round(seconds, 6), **facts}})


@dataclass
class _Body:
    """Hands on the body of a request, as long as it keeps to the limits."""

    source: Receive
    limits: Limits
    size: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.limits.body_seconds

    async def receive(self) -> Message:
        """Raises Refused."""
        if self.ended:
            return await self.source()
        try:
            message = await asyncio.wait_for(self.source(), max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            seconds = self.limits.body_seconds
            raise Refused("too_slow", f"the body did not arrive within {seconds:g} seconds") from None
        self.ended = not message.get("more_body", False)
        self.size += len(message.get("body", b""))
        if self.size > self.limits.body:
            await self.linger()
            raise self.too_large
        return message

    @property
    def too_large(self) -> Refused:
        return Refused("too_large", f"the body has more than {self.limits.body} bytes: send fewer or shorter texts")

    async def linger(self) -> None:
        """Reads on a little, and forgets it."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.ended and self.size <= LINGER_BYTES:
                    message = await self.source()
                    self.size += len(message.get("body", b""))
                    self.ended = not message.get("more_body", False)
        except TimeoutError:
            pass


def _route(path: str) -> str:
    """What log and counters call a path: whatever clients ask for, they are few."""
    if path in ROUTES:
        return path
    return "/v1/adapters" if "/v1/adapters/" in path else "other"


def _header(scope: Message, name: bytes) -> str:
    """Its value, printable ASCII alone; empty where there is none."""
    found = next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")
    return "".join(char for char in found if " " <= char <= "~")


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
