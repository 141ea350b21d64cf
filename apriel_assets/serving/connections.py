"""Connections that cannot be held for nothing: no head that never ends, no reader who stops reading, not too many."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0  # for a request's head to come whole, from when it may begin
STALL_SECONDS = 30.0  # for a client to read some of what waits for it
HEAD_BYTES = 1 << 16  # of a request's head


class BoundedConnection(H11Protocol):
    """uvicorn's connection; one that is over a limit is closed. Of the two parsers the one that bounds the head.

    A body's time and size are the gate's, an answer's time that of who makes it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._forget(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch("stall", STALL_SECONDS)

    def resume_writing(self) -> None:
        self._forget("stall")
        super().resume_writing()

    def _expect_head(self) -> None:
        """Give a client that has been answered, or not asked yet, a while; what it sends meanwhile wins it nothing."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget("head")
        elif "head" not in self._timers and not self.transport.is_closing():
            self._watch("head", HEAD_SECONDS)

    def _watch(self, name: str, seconds: float) -> None:
        self._forget(name)
        self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _forget(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
