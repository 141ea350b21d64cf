"""The endpoint's side of an engine: it starts the process, hands requests over, and starts it again when it dies."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from apriel_assets.serving.batching import Request
from apriel_assets.serving.engine_messages import encode, request_to_dict
from apriel_assets.serving.engine_process import EngineSettings, command
from apriel_assets.serving.sampling import Sampling

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "failed", "stopped"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0  # before an engine that died is started again
_LONG_LIFE_S = 60.0  # after as long, its next death counts as the first
_END_S = 5.0  # between the socket's end and a kill
_LINE_LIMIT = 1 << 24  # bytes


class EngineGoneError(RuntimeError):
    """The engine died, or is not ready, while it was asked for tokens."""


class SupervisedEngine:
    """An engine process that is kept alive."""

    def __init__(self, name: str, settings: EngineSettings) -> None:
        self.name, self.settings = name, settings
        self.state: State = "stopped"
        self.problem: str | None = None  # why it failed for good
        self.num_restarts = 0
        self.num_running = self.num_waiting = 0  # as of its last step
        self.facts: dict[str, Any] = {}  # what it said when it was ready
        self.seconds_per_token: float | None = None  # of one request, smoothed over the last ones
        self._ids = itertools.count()
        self._queues: dict[int, asyncio.Queue[list[tuple[int | None, str | None]] | None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task | None = None
        self._told = asyncio.Event()  # state has left "starting"

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    async def start(self) -> None:
        """Start the process; return when it is ready or has failed."""
        self.state = "starting"
        self._task = asyncio.create_task(self._keep_alive())
        await self._told.wait()

    async def stop(self) -> None:
        """End the process and wait for it."""
        self.state = "stopped"
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def tokens(
        self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[tuple[list[int], str | None], None]:
        """Yield new tokens as they come, with how it ended at the end; leaving the iterator cancels the request.

        Raises:
            EngineGoneError: the engine is not ready, or died meanwhile.
        """
        if self._writer is None or not self.is_ready:
            raise EngineGoneError(self.name)
        request = Request(id=next(self._ids), prompt=tuple(prompt), sampling=sampling, stop_ids=stop_ids)
        queue = self._queues[request.id] = asyncio.Queue()
        writer, ended = self._writer, False
        try:
            writer.write(encode({"submit": request_to_dict(request)}))
            began, count = time.monotonic(), 0
            while not ended:
                events = await queue.get()
                if events is None:
                    ended = True
                    raise EngineGoneError(self.name)
                while not queue.empty() and (more := queue.get_nowait()) is not None:
                    events = events + more
                finish = events[-1][1]
                ended = finish is not None
                new = [token for token, _ in events if token is not None]
                count += len(new)
                if ended:  # whoever listens may not come back after the last tokens
                    self._note_speed(time.monotonic() - began, count)
                yield new, finish
        finally:
            del self._queues[request.id]
            if not ended and not writer.is_closing():
                writer.write(encode({"cancel": request.id}))

    def _note_speed(self, seconds: float, count: int) -> None:
        if count:
            own = seconds / count
            before = self.seconds_per_token
            self.seconds_per_token = own if before is None else 0.8 * before + 0.2 * own

    async def _keep_alive(self) -> None:
        """Run the process again and again, until it fails for good or is to stop."""
        wait = _FIRST_WAIT_S
        while True:
            began = time.monotonic()
            await self._run_once()
            if self.state == "failed":
                return
            if time.monotonic() - began > _LONG_LIFE_S:
                wait = _FIRST_WAIT_S
            self.num_restarts += 1
            logger.warning("engine %s died; starting it again in %.1f s", self.name, wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    async def _run_once(self) -> None:
        """Start the process and listen to it until it ends."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                command(self.settings, theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(self.settings.num_threads)},
            )
        writer = None
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT)
            self._writer = writer
            await self._listen(reader)
        finally:
            self._writer = None
            if self.state == "starting":  # it never worked: trying again would hide that
                self.state, self.problem = "failed", "its process ended before it was ready; see its messages"
                self._told.set()
            elif self.state == "ready":
                self.state = "restarting"
            for queue in self._queues.values():
                queue.put_nowait(None)
            self.num_running = self.num_waiting = 0
            if writer is not None:
                writer.close()
            ours.close()
            await asyncio.shield(asyncio.to_thread(_end, process))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                message = json.loads(line)
                if "events" in message:
                    self._hand_out(message)
                elif "ready" in message:
                    self.state, self.facts = "ready", message["ready"]
                    self._told.set()
                    logger.info("engine %s is ready, pid %d", self.name, self.facts["pid"])
                else:
                    self.state, self.problem = "failed", message["failed"]
                    self._told.set()

    def _hand_out(self, message: dict[str, Any]) -> None:
        self.num_running, self.num_waiting = message["running"], message["waiting"]
        for request_id, token, finish in message["events"]:
            if (queue := self._queues.get(request_id)) is not None:
                queue.put_nowait([(token, finish)])


def _end(process: subprocess.Popen) -> None:
    """Wait for a process whose socket was closed; kill it if it does not end."""
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
