"""Keys, sizes, numbers: what is refused before anything is done."""

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from apriel_assets.errors import UserError
from apriel_assets.serving.gate import Gate, Limits


def request(key=None, body=b"", announced=None, **more):
    headers = [] if key is None else [(b"authorization", key.encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in more.items()]
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


def test_a_body_that_does_not_come_is_not_waited_for():
    async def receive():
        await asyncio.sleep(60)

    slow = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(Gate(Limits(most_body_seconds=0.01), []).body(slow))
    assert refused.value.status_code == 408


@pytest.mark.parametrize("announced", ["²", "-1", "x", ""])
def test_an_announcement_that_is_no_number_says_nothing(announced):
    own = request(body=b"12", **{"content-length": announced})
    assert asyncio.run(Gate(Limits(most_body_bytes=8), []).body(own)) == b"12"


LOCAL = [
    {"host": "localhost:8000"}, {"host": "127.0.0.1:8000"}, {"host": "127.9.9.9"}, {"host": "[::1]:8000"}, {},
    {"host": "ui.localhost", "origin": "http://localhost:3000"},
]  # fmt: skip
ELSEWHERE = [
    ({"host": "rebound.example:8000"}, 421),
    ({"host": "127.0.0.1.rebound.example"}, 421),
    ({"host": "localhost.rebound.example"}, 421),
    ({"host": "[::1"}, 421),
    ({"host": ""}, 421),
    ({"host": "localhost", "origin": "https://page.example"}, 403),
    ({"host": "localhost", "origin": "null"}, 403),
]


@pytest.mark.parametrize("headers", LOCAL)
def test_who_asks_from_here_may(headers):
    Gate(Limits(), [], only_local=True).check(request(**headers))


@pytest.mark.parametrize(("headers", "status"), ELSEWHERE)
def test_pages_of_other_sites_may_not_unless_they_have_a_key(headers, status):
    with pytest.raises(HTTPException) as refused:
        Gate(Limits(), [], only_local=True).check(request(**headers))
    assert refused.value.status_code == status
    Gate(Limits(), ["right"], only_local=True).check(request("Bearer right", **headers))
    Gate(Limits(), []).check(request(**headers))
