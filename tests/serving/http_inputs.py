"""Anything that can be sent to an endpoint: bytes, JSON of nearly the right shape, heads; and what may come of it."""

import contextlib
import json
import re
import socket

from hypothesis import strategies as st

from tests.fuzzing import ODD_TEXTS, mutated

COMMON = {
    "model": "tiny", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "n": 1, "seed": 1, "stop": ["x", "y"],
    "stream": False, "stream_options": {"include_usage": True}, "user": "u",
    "policy": {"latency_ms_per_token": 5.0},
}  # fmt: skip
COMPLETION = {**COMMON, "model": "tiny-auto", "prompt": "recall : a = 1 . ask a ?"}
TOKENS = {"model": "tiny-turbo", "prompt": [5, 6, 7], "max_tokens": 3, "stream": True}
CHAT = {
    **COMMON,
    "max_completion_tokens": 3,
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b = 2"}, {"type": "text", "text": "ask b ?"}]},
    ],
}
PATHS = {"/v1/completions": [COMPLETION, TOKENS], "/v1/chat/completions": [CHAT]}
_INSERTED = [
    "",
    "",
    "",
    "\\ud800",
    "\\u0000",
    "NaN",
    "1e999",
    "[" * 3000,
    "9" * 5000,
    "\ufeff",
    "\x85",
    '"x":1,',
]


def _is_json(content):
    with contextlib.suppress(TypeError, ValueError):
        return json.dumps(content, skipkeys=True) is not None
    return False


@st.composite
def json_requests(draw):
    """A path and a body: a request with some values replaced by odd ones, sometimes with a piece of text in it."""
    path = draw(st.sampled_from(list(PATHS)))
    content = draw(mutated(draw(st.sampled_from(PATHS[path])), most=3).filter(_is_json))
    text = json.dumps(content, skipkeys=True, ensure_ascii=draw(st.booleans()))
    at = draw(st.integers(0, len(text)))
    text = text[:at] + draw(st.sampled_from(_INSERTED)) + text[at:]
    return path, text.encode(errors="surrogatepass")


BYTES = st.tuples(
    st.sampled_from(list(PATHS)),
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, 30_000).map(lambda size: b"[" * size),
        st.tuples(st.binary(max_size=20), st.integers(0, 2000)).map(lambda own: own[0] * own[1]),
        st.text(max_size=100).map(lambda text: json.dumps({"model": text, "prompt": text}).encode()),
    ),
)

_METHODS = [
    "GET",
    "POST",
    "HEAD",
    "OPTIONS",
    "PUT",
    "CONNECT",
    "TRACE",
    "PRI",
    "get",
    "",
    "G\x00T",
    "A" * 300,
]
_TARGETS = [
    "/health", "/metrics", "/v1/models", "/v1/models/tiny", "/v1/models/%ff%00%2e%2e", "/v1/completions", "*", "",
    "http://127.0.0.1/health", "//", "/%", "/../../etc/passwd", "/v1/models/" + "x" * 70_000, "/\xff", "/?" + "&" * 999,
]  # fmt: skip
_VERSIONS = ["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "HTTP/1.1 x", "", "http/1.1"]
_NAMES = [
    "Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Expect", "Authorization", "Origin",
    "Content-Type", "Accept-Encoding", "Cookie", "X-Forwarded-For", "Sec-WebSocket-Key", "", "a b", "\xfc", ":",
]  # fmt: skip
_VALUES = [
    "localhost", "127.0.0.1", "[::1", "http://[", "0", "5", "-1", "+5", "5, 5", "5, 6", "1e9", "99999999999999999999",
    "chunked", "gzip, chunked", "chunked, identity", "close", "keep-alive", "Upgrade, HTTP2-Settings", "websocket",
    "h2c", "100-continue", "Bearer x", "Bearer", "null", "", " ", "\t", "x" * 70_000, "\xff\xfe", "a\x00b",
    "\r\n folded",
]  # fmt: skip
_BODIES = [
    b"",
    b"{}",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"zz\r\n",
    b"f" * 40,
    b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
]


@st.composite
def heads(draw):
    """The bytes of a request whose head is made of odd parts, and perhaps of a body."""
    odd = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20))
    parts = [
        draw(st.one_of(st.sampled_from(own), odd))
        if draw(st.integers(0, 4)) == 0
        else draw(st.sampled_from(own))
        for own in (_METHODS, _TARGETS, _VERSIONS)
    ]
    fields = draw(
        st.lists(st.tuples(st.sampled_from(_NAMES), st.one_of(st.sampled_from(_VALUES), odd)), max_size=4)
    )
    lines = [" ".join(parts), "Host: localhost", *(f"{name}: {value}" for name, value in fields)]
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r"]))
    head = (end.join(lines) + 2 * end).encode("utf-8", errors="surrogatepass")
    at = draw(st.integers(0, len(head)))
    return (
        head[:at]
        + draw(st.sampled_from([b"", b"", b"\x00", b"\xff", b"\r\n"]))
        + head[at:]
        + draw(st.sampled_from(_BODIES))
    )


def post(port, path, body):
    """Send a request with this body; return all that is answered. An answer that does not end is an error."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        return _read(connection)


def send(port, content, seconds=0.1):
    """Send bytes; return what is answered within a moment. What asks for more may be left waiting."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(content)
        connection.settimeout(seconds)
        return _read(connection, silence_ends=True)
    return b""


def _read(connection, silence_ends=False):
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except TimeoutError:
        if not silence_ends:
            raise AssertionError(f"no end of the answer: {found[:500]!r}") from None
    except ConnectionResetError:
        pass
    return found


def statuses(answer):
    """Return the statuses of all answers on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


def check_answered(answer):
    """Check an answer to a request that was well-formed HTTP: whole, ours, and no fault of the server's."""
    head, _, body = answer.partition(b"\r\n\r\n")
    (status,) = statuses(answer)
    assert status in (200, 400, 404, 413), answer[:500]
    if status != 200:
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert len(body) < 2000, "a client's words are not repeated in full"
    elif b"text/event-stream" in head:
        assert b"[DONE]" in body
    else:
        assert json.loads(body)["choices"]
