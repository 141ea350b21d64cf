"""One request's way from its engine's tokens to text, and how it ends early: stop strings, time, a client that left."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedTokenizerBase

from apriel_assets.serving.detokenizing import TextStream
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.supervised_engine import EngineGoneError, SupervisedEngine

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One completion to make."""

    engine: SupervisedEngine
    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    stops: Sequence[str]
    seconds: float  # that it may take


@dataclass(frozen=True, slots=True)
class Piece:
    """What came at once."""

    text: str
    num_tokens: int
    finish: str | None  # None: more follows


async def pieces(work: Work, tokenizer: PreTrainedTokenizerBase) -> AsyncGenerator[Piece, None]:
    """Yield the text as it comes; leaving the iterator cancels the work.

    Raises:
        EngineGoneError: the engine is not ready, or died.
        TimeoutError: it takes too long.
    """
    text, deadline = TextStream(tokenizer, work.stops), time.monotonic() + work.seconds
    async with aclosing(work.engine.tokens(work.prompt, work.sampling, work.stop_ids)) as tokens:
        while True:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                new, finish = await anext(tokens)
            if finish == "cancelled":
                raise EngineGoneError(work.engine.name)
            shown = new[:-1] if finish == "stop" else new  # the stop token is no text
            out = "".join(text.push(token) for token in shown)
            if text.stopped:
                finish = "stop"
            elif finish is not None:
                out += text.finish()
            yield Piece(out, len(new), finish)
            if finish is not None:
                return


async def or_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return what an awaitable gives, or give it up when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for own in (task, gone):
            own.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await own


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events, after which `on_end` is called, however the stream ends."""

    def __init__(self, events: AsyncGenerator[bytes, None], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            self._on_end()
