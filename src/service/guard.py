"""What stands before every route: who may ask, what every answer carries, and what is counted."""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from src.service.pictures import Refused

if TYPE_CHECKING:
    from src.service.app import Service

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
OPEN = ("/", "/health")
"""Paths that need no token, and all below /page/: they say nothing of captioner or pictures."""
METHODS = ("GET", "HEAD", "POST")
DRAINED = 64_000_000
"""Bytes of a refused request's body that are read and thrown away: a client cut off while it sends sees no answer."""
PATIENCE = 5.0
"""Seconds for that."""
GONE = 499
"""nginx's status for a client that did not wait for the answer; nobody receives it."""

Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Any], Any]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """An ASGI application around another.

    Args:
        app: the other.
        service: what it shares: its counters count every request, and while it is `stopping` all are refused.
        token: that requests must bring; None: none.
        hosts: names that a request may give for this machine, besides loopback's; None: any. A page of another site
            whose name was made to mean 127.0.0.1 (DNS rebinding) gives another.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Any],
        service: "Service",
        token: str | None = None,
        hosts: Collection[str] | None = (),
    ) -> None:
        self.app, self.service, self.token = app, service, token
        self.hosts = None if hosts is None else {name.lower() for name in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, whole = time.perf_counter(), GONE, False

        async def receiving() -> Any:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body")
            return message

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if not whole:
                    await drained(receiving)
                status = message["status"]
                own = dict(message["headers"])
                extra = {name.encode(): value.encode() for name, value in HEADERS.items()}
                message = {**message, "headers": list((extra | own).items())}
            await send(message)

        try:
            try:
                self.check(scope)
            except Refused as error:
                await refusal(error)(scope, receiving, sending)
                return
            await self.app(scope, receiving, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.service.counters.add(method, route, status, time.perf_counter() - begun)

    def check(self, scope: Scope) -> None:
        """Raises Refused for a request that no route is to see."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.hosts is not None and not self.known(host):
            raise Refused(
                421, f"{host or 'no Host'}: not a name of this service: call it by 127.0.0.1, or start it with --name"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Refused(403, f"{origin}: pages of other sites may not ask here")
        path = scope["path"]
        opens = path == "/" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not opens:
            raise Refused(403, "pages of other sites may not ask here")
        if self.service.stopping:
            raise Refused(503, "the service is about to stop: ask again later", {"retry-after": "10"})
        if self.token is not None and path not in OPEN and not path.startswith("/page/"):
            self.check_token(headers)

    def known(self, host: str) -> bool:
        """Whether a Host header names this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in (self.hosts or ())

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Raises Refused where a request brings no token, or a wrong one."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        # In constant time: how long it takes tells nothing of how much of it was right.
        right = hmac.compare_digest(given.strip().encode("latin-1"), (self.token or "").encode())
        if kind.lower() != "bearer" or not right:
            said = "a wrong token" if given else "a token is needed"
            raise Refused(401, f"{said}: send `Authorization: Bearer TOKEN`", {"www-authenticate": "Bearer"})


def refusal(error: Refused) -> JSONResponse:
    """As an answer."""
    return JSONResponse({"error": error.reason}, error.status, error.headers)


async def drained(receive: Receive) -> None:
    """Read what is left of a request's body, within limits, and forget it."""
    left = DRAINED
    try:
        async with asyncio.timeout(PATIENCE):
            while left > 0:
                message = await receive()
                if not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return
