"""Connections: uvicorn's, with an end to what a client may leave unfinished, and to how many there are."""

import asyncio
import math
import resource
from typing import TYPE_CHECKING

import uvicorn

from src.service.guard import Guard

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:  # this one, or the faster one where httptools is installed
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as Protocol

MOST = 1000
"""Connections at a time, or half of the files that this process may open, where that is fewer."""


class Connection(Protocol):
    """Closed where its client owes it something for `timeout_keep_alive` seconds: a whole header, a further request, or
    room for an answer. uvicorn itself waits for a header's first byte alone, and that only after an answer. Where there
    are `limit_concurrency`, the one that has sent no request for the longest time makes room."""

    patience: asyncio.TimerHandle

    @property
    def silent(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.patience = self.loop.call_later(self.timeout_keep_alive, self.lose_patience)
        if len(self.connections) >= (self.limit_concurrency or math.inf):
            others = [each for each in self.connections - {self} if isinstance(each, Connection) and each.silent]
            if others:
                min(others, key=lambda each: each.patience.when()).cut()

    def on_response_complete(self) -> None:
        self.wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.wait()
        super().pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.patience.cancel()
        super().connection_lost(exc)

    def wait(self) -> None:
        """For the client, from now on."""
        self.patience.cancel()
        self.patience = self.loop.call_later(self.timeout_keep_alive, self.lose_patience)

    def lose_patience(self) -> None:
        if self.silent or self.flow.write_paused:
            self.cut()

    def cut(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


def configured(app: Guard) -> uvicorn.Config:
    """How the service is run."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return uvicorn.Config(
        app,
        http=Connection,
        lifespan="on",
        log_level="warning",
        server_header=False,
        backlog=100,  # so many are accepted at once, before any other can make room
        timeout_keep_alive=math.ceil(app.service.limits.seconds),
        limit_concurrency=MOST if files == resource.RLIM_INFINITY else min(MOST, files // 2),
    )
