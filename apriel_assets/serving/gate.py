"""Who may ask, and how much at once."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from apriel_assets.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one client can take from the others."""

    most_body_bytes: int = 1_000_000
    most_requests: int = 64  # at once, waiting ones included
    most_seconds: float = 600.0  # of one request

    def __post_init__(self) -> None:
        if min(self.most_body_bytes, self.most_requests, self.most_seconds) <= 0:
            raise UserError(f"limits must be positive, got {self}")


class Gate:
    """Checks a request before anything is done for it."""

    def __init__(self, limits: Limits, api_keys: Sequence[str]) -> None:
        self.limits = limits
        # Hashes of one length: how long a comparison takes says nothing about a key.
        self._keys = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._num_open = 0

    def check_key(self, request: Request) -> None:
        """Check the request's API key, in a time that does not depend on which key it is like.

        Raises:
            HTTPException: 401.
        """
        if not self._keys:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(given, own) for own in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise HTTPException(
                401, "a valid API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )

    async def body(self, request: Request) -> bytes:
        """Return the request's body, its key checked first.

        Raises:
            HTTPException: 401, or 413 for a body that is too large.
        """
        self.check_key(request)
        most, found = self.limits.most_body_bytes, bytearray()
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most)
        async for chunk in request.stream():
            found += chunk
            if len(found) > most:
                raise _too_large(most)
        return bytes(found)

    def enter(self) -> Callable[[], None]:
        """Count a request in; return what counts it out.

        Raises:
            HTTPException: 429, as many are at work as may be.
        """
        if self._num_open >= self.limits.most_requests:
            message = f"{self._num_open} requests are at work, as many as may be; try again in a moment"
            raise HTTPException(429, message, {"Retry-After": "1"})
        self._num_open += 1

        def leave() -> None:
            self._num_open -= 1

        return leave


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"a request has at most {most} bytes")
