"""One engine: a process that holds one placement and decodes for whoever started it.

`python -m apriel_assets.serving.engine_process SOCKET_FD SETTINGS_JSON`, started by the endpoint, never by hand. It
ends when the socket does, that is with the process that started it, however that ends.
"""

import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging as transformers_logging

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner_projections import weights_in_place
from apriel_assets.hybrid.any_checkpoint import load_any
from apriel_assets.serving.batching import ContinuousBatch, Event
from apriel_assets.serving.engine_messages import encode, events_to_list, request_from_dict
from apriel_assets.serving.vllm_batch import VllmBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is started with."""

    directory: str  # of a fixed-layout export, or any checkpoint
    num_slots: int
    capacity: int  # most tokens of a request
    num_threads: int  # of torch
    device: str = "cpu"  # of the own runner; vLLM takes that of its build
    runtime: Literal["own", "vllm"] = "own"


class _Channel:
    """Lines over a socket, without waiting unless asked to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._rest = connection, b""

    def send(self, message: dict) -> None:
        self._connection.sendall(encode(message))

    def receive(self, wait: bool) -> list[dict]:
        """Return the messages that have come; with `wait`, at least one.

        Raises:
            EOFError: the other side has gone.
        """
        found: list[dict] = []
        while not found:
            if not select.select([self._connection], [], [], None if wait else 0)[0]:
                break
            if not (data := self._connection.recv(1 << 16)):
                raise EOFError
            *lines, self._rest = (self._rest + data).split(b"\n")
            found = [json.loads(line) for line in lines]
        return found


def serve(settings: EngineSettings, connection: socket.socket) -> None:
    """Load the model, say so, and decode until the socket closes."""
    channel = _Channel(connection)
    # Whoever started us may leave at any moment, also while the model loads; then nobody wants to hear more.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            batch = _load(settings)
        except UserError as error:
            channel.send({"failed": str(error)})
            return
        sizes = {"weight_bytes": batch.weight_bytes, "cache_bytes": batch.cache_bytes}
        channel.send({"ready": {"pid": os.getpid(), **sizes}})
        while True:
            messages = channel.receive(wait=batch.is_idle)
            events = _heed(batch, messages) + batch.step()
            if events or messages:
                counts = {"running": batch.num_running, "waiting": batch.num_waiting}
                channel.send({"events": events_to_list(events), **counts})


def _load(settings: EngineSettings) -> ContinuousBatch | VllmBatch:
    transformers_logging.disable_progress_bar()  # transformers'; nobody watches
    if settings.runtime == "vllm":
        return VllmBatch(Path(settings.directory), num_slots=settings.num_slots, capacity=settings.capacity)
    torch.set_num_threads(settings.num_threads)
    model = load_any(Path(settings.directory))
    with weights_in_place():
        # On a GPU nothing is mapped from a file, and one matrix is faster than several.
        if settings.device == "cpu":
            return ContinuousBatch(model, num_slots=settings.num_slots, capacity=settings.capacity)
    return ContinuousBatch(
        model.to(settings.device),  # pyright: ignore[reportArgumentType]
        num_slots=settings.num_slots,
        capacity=settings.capacity,
    )


def _heed(batch: ContinuousBatch | VllmBatch, messages: list[dict]) -> list[Event]:
    """Carry out what was asked; return events of requests that cannot be."""
    refused = []
    for message in messages:
        if "cancel" in message:
            batch.cancel(message["cancel"])
            continue
        request = request_from_dict(message["submit"])
        try:
            batch.submit(request)
        except UserError as error:
            logger.error("request refused: %s", error)  # the endpoint checks before it asks
            refused.append(Event(request.id, None, "cancelled"))
    return refused


def main() -> None:
    """Entry point of the process."""
    # Ctrl-C reaches every process of a terminal; the endpoint ends us when its streams have ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = EngineSettings(**json.loads(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(settings, connection)


def command(settings: EngineSettings, descriptor: int) -> list[str]:
    """Return how to start the process."""
    values = json.dumps(dataclasses.asdict(settings))
    return [sys.executable, "-m", __name__, str(descriptor), values]


if __name__ == "__main__":
    main()
