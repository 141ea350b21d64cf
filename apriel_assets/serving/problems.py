"""What went wrong, as a status and OpenAI's error body; what a client sent is never repeated back in full."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from apriel_assets.errors import UserError
from apriel_assets.serving.supervised_engine import EngineGoneError

_CLIENT_LEFT = 499  # nobody reads it; it stands in the access log


def status_of(error: Exception) -> int:
    """Return the HTTP status for an error."""
    match error:
        case HTTPException():
            return error.status_code
        case ValidationError() | UserError():
            return 400
        case TimeoutError():
            return 504
        case ClientDisconnect():
            return _CLIENT_LEFT
    assert isinstance(error, EngineGoneError)
    return 503


def body_of(error: Exception) -> dict[str, Any]:
    """Return the JSON body for an error."""
    param = None
    match error:
        case HTTPException():
            message = str(error.detail)
        case ValidationError():
            first = error.errors(include_url=False, include_input=False)[0]
            param = ".".join(str(part) for part in first["loc"]) or None
            reason = first["msg"].removeprefix("Value error, ")
            message = f"{param}: {reason}" if param else reason
        case EngineGoneError():
            message = "the engine stopped and is being started again; try again in a moment"
        case TimeoutError():
            message = "the answer took too long"
        case _:
            message = str(error)
    kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


async def _answer(request: Request, error: Exception) -> Response:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(error, EngineGoneError):
        headers["Retry-After"] = "1"
    return JSONResponse(body_of(error), status_of(error), headers)


HANDLERS: Mapping[Any, Callable[[Request, Exception], Any]] = dict.fromkeys(
    (HTTPException, ValidationError, UserError, EngineGoneError, TimeoutError, ClientDisconnect), _answer
)
"""For Starlette; anything else is our bug and a 500."""
