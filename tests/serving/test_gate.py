"""Keys, sizes, numbers: what is refused before anything is done."""

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from apriel_assets.errors import UserError
from apriel_assets.serving.gate import Gate, Limits


def request(key=None, body=b"", announced=None):
    headers = [] if key is None else [(b"authorization", key.encode())]
    if announced is not None:
        headers.append((b"content-length", str(announced).encode()))
    chunks = [body[at : at + 4] for at in range(0, len(body), 4)] or [b""]
    events = [{"type": "http.request", "body": own, "more_body": True} for own in chunks]
    events.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return events.pop(0)

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic right", "Bearer right2", "right"]
)
def test_wrong_keys_are_refused(key):
    with pytest.raises(HTTPException) as refused:
        Gate(Limits(), ["right", "other"]).check(request(key))
    assert refused.value.status_code == 401


@pytest.mark.parametrize("key", ["Bearer right", "bearer other", "Bearer right "])
def test_right_keys_pass(key):
    Gate(Limits(), ["right", "other"]).check(request(key))


def test_no_keys_ask_for_none():
    Gate(Limits(), []).check(request())


def test_bodies_have_a_size():
    gate = Gate(Limits(most_body_bytes=8), [])
    assert asyncio.run(gate.body(request(body=b"12345678"))) == b"12345678"
    for own in (request(body=b"123456789"), request(body=b"1", announced=9)):
        with pytest.raises(HTTPException) as refused:
            asyncio.run(gate.body(own))
        assert refused.value.status_code == 413


def test_a_body_without_a_key_is_not_read():
    with pytest.raises(HTTPException) as refused:
        asyncio.run(Gate(Limits(most_body_bytes=1), ["key"]).body(request(body=b"123456789")))
    assert refused.value.status_code == 401


def test_as_many_as_may_be_and_one_more_when_one_leaves():
    gate = Gate(Limits(most_requests=2), [])
    leave, _ = gate.enter(), gate.enter()
    with pytest.raises(HTTPException) as refused:
        gate.enter()
    assert (refused.value.status_code, refused.value.headers["Retry-After"]) == (429, "1")
    leave()
    gate.enter()


def test_limits_are_checked():
    with pytest.raises(UserError, match="positive"):
        Limits(most_requests=0)
