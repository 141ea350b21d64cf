"""Who may ask, and how much at once."""

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from apriel_assets.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one client can take from the others."""

    most_body_bytes: int = 1_000_000
    most_requests: int = 64  # at once, waiting ones included
    most_seconds: float = 600.0  # of one request
    most_body_seconds: float = 30.0  # for its body to come

    def __post_init__(self) -> None:
        limits = (self.most_body_bytes, self.most_requests, self.most_seconds, self.most_body_seconds)
        if not all(0 < limit < float("inf") for limit in limits):
            raise UserError(f"limits must be positive numbers, got {self}")


class Gate:
    """Checks a request before anything is done for it."""

    def __init__(self, limits: Limits, api_keys: Sequence[str], *, only_local: bool = False) -> None:
        """
        Args:
            limits: of a request, and of all.
            api_keys: one of these must come with every request; none: no key is asked for.
            only_local: whether the server listens on this machine alone. Without keys, requests that a browser sends
                for another site's page are refused then: any page may address this machine.
        """
        self.limits = limits
        # Hashes of one length: how long a comparison takes says nothing about a key.
        self._keys = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._only_local = only_local and not self._keys
        self._num_open = 0

    def check(self, request: Request) -> None:
        """Check where a request comes from, and its API key, in a time that does not depend on which key it is like.

        Raises:
            HTTPException: 401; 403 for a page of another site, 421 for another host's name.
        """
        if self._only_local:
            _check_local(request)
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
        """Return the request's body, what `check` does first.

        Raises:
            HTTPException: as `check`; 408 for a body that does not come, 413 for one that is too large.
        """
        self.check(request)
        most, found = self.limits.most_body_bytes, bytearray()
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(self.limits.most_body_seconds):
                async for chunk in request.stream():
                    found += chunk
                    if len(found) > most:
                        raise _too_large(most)
        except TimeoutError as error:
            message = f"the body did not come within {self.limits.most_body_seconds:g} s"
            raise HTTPException(408, message, {"Connection": "close"}) from error
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


def _check_local(request: Request) -> None:
    """Refuse what a browser sends for a page of another site; a name that was made to point here counts as one."""
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if origin is not None and not _is_local(origin):
        raise HTTPException(403, "pages of other sites cannot ask here; set --api-keys to let them")
    if host is not None and not _is_local(f"//{host}"):
        raise HTTPException(
            421,
            "this endpoint answers to localhost only; set --api-keys, or another --host, to answer to more",
        )


def _is_local(address: str) -> bool:
    try:
        name = urlsplit(address).hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
