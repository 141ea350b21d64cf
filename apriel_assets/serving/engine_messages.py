"""What an engine process and the endpoint tell each other: one JSON object a line, over a socket.

To the engine: `{"submit": {...}}`, `{"cancel": id}`. From it: `{"ready": {...}}` or `{"failed": reason}` once, then
after each step `{"events": [[id, token, finish], ...], "running": n, "waiting": n}`.
"""

import json
from dataclasses import asdict
from typing import Any

from apriel_assets.serving.batching import Event, Request
from apriel_assets.serving.sampling import Sampling


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def request_to_dict(request: Request) -> dict[str, Any]:
    """Return a request as plain JSON."""
    return {
        "id": request.id,
        "prompt": list(request.prompt),
        "sampling": asdict(request.sampling),
        "stop_ids": sorted(request.stop_ids),
    }


def request_from_dict(values: dict[str, Any]) -> Request:
    """Read what `request_to_dict` wrote."""
    return Request(
        id=values["id"],
        prompt=tuple(values["prompt"]),
        sampling=Sampling(**values["sampling"]),
        stop_ids=frozenset(values["stop_ids"]),
    )


def events_to_list(events: list[Event]) -> list[list[Any]]:
    """Return events as plain JSON."""
    return [[event.id, event.token, event.finish] for event in events]
