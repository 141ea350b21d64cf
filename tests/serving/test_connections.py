"""What holds a connection for nothing loses it: a head without end, a reader who stops, one too many."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from apriel_assets.serving import connections
from apriel_assets.serving.connections import BoundedConnection

HEAD = b"GET %b HTTP/1.1\r\nHost: localhost\r\n"


class Site:
    """A server of endless text at /endless."""

    def __init__(self):
        self.ended = asyncio.Event()
        routes = [
            Route("/", lambda request: PlainTextResponse("here")),
            Route("/endless", lambda request: StreamingResponse(self._endless())),
        ]
        self.socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            Starlette(routes=routes), http=BoundedConnection, log_level="critical", lifespan="off", ws="none",
            limit_concurrency=3, h11_max_incomplete_event_size=connections.HEAD_BYTES,
        )  # fmt: skip
        self.server = uvicorn.Server(config)

    async def _endless(self):
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # as who waits for an engine does
        finally:
            self.ended.set()

    async def connect(self):
        return await asyncio.open_connection(*self.socket.getsockname())


def on_site(scenario):
    """Run a scenario against a site, in one event loop."""

    async def run():
        site = Site()
        serving = asyncio.create_task(site.server.serve(sockets=[site.socket]))
        while not site.server.started:
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(scenario(site), 60)
        finally:
            site.server.should_exit = site.server.force_exit = True
            await serving

    asyncio.run(run())


async def closed(reader):
    """Wait until the other side has gone; return what came before."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := await reader.read(1 << 16):
            found += part
    return found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD % b"/", (HEAD % b"/") + b"\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(sent, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)

    async def scenario(site):
        reader, writer = await site.connect()
        writer.write(sent)
        answer = await closed(reader)
        assert answer.endswith(b"here") == sent.endswith(b"\r\n\r\n")
        writer.close()

    on_site(scenario)


def test_bytes_after_an_answer_hold_nothing(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)

    async def scenario(site):
        reader, writer = await site.connect()
        writer.write((HEAD % b"/") + b"Content-Length: 1000000\r\n\r\n")
        ended = asyncio.create_task(closed(reader))
        while not ended.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        assert b"here" in await ended
        writer.close()

    on_site(scenario)


def test_a_reader_who_stops_ends_the_answer(monkeypatch):
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.2)

    async def scenario(site):
        _, writer = await site.connect()  # the stream's own buffer is bounded: nobody reads on
        writer.write((HEAD % b"/endless") + b"\r\n")
        await site.ended.wait()
        writer.close()

    on_site(scenario)


def test_a_head_has_a_size():
    async def scenario(site):
        reader, writer = await site.connect()
        writer.write((HEAD % b"/") + b"X: a\r\n" * 50_000)
        assert b"400 Bad Request" in await closed(reader)
        writer.close()

    on_site(scenario)


def test_one_too_many_is_closed_at_once():
    async def scenario(site):
        held = [await site.connect() for _ in range(3)]
        reader, writer = await site.connect()
        assert await closed(reader) == b""
        for _, own in (*held, (reader, writer)):
            own.close()

    on_site(scenario)
