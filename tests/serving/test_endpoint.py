"""The endpoint in this process, with a tokenizer made up here: a long text keeps nobody else waiting."""

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from apriel_assets.serving.endpoint import Endpoint, ServedText
from apriel_assets.serving.engine_process import EngineSettings
from apriel_assets.serving.gate import Limits
from apriel_assets.serving.release import Release
from apriel_assets.serving.routing import RoutingPolicy
from apriel_assets.serving.supervised_engine import SupervisedEngine

pytest.importorskip("prometheus_client")


class SlowTokenizer:
    """Reads a text until it is let go."""

    chat_template = None
    backend_tokenizer = Tokenizer(BPE())

    def __init__(self):
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self, text):
        self.begun.set()
        assert self.let_go.wait(5), "nothing else was done meanwhile"
        return SimpleNamespace(input_ids=[1, 2])


@pytest.fixture
def tokenizer():
    return SlowTokenizer()


@pytest.fixture
def app(tokenizer):
    """One engine, which was never started: who asks it is told to come back."""
    own: Any = tokenizer
    release = Release(directory=Path(), name="tiny", default="safe", placements=("safe",), throughput={})
    settings = EngineSettings(directory="", num_slots=1, capacity=8, num_threads=1)
    text = ServedText(tokenizer=own, stop_ids=frozenset(), context_tokens=64)
    return Endpoint(
        release, [SupervisedEngine("safe", settings)], text, policy=RoutingPolicy(), limits=Limits(most_requests=1)
    ).app  # fmt: skip


async def ask(app, path, content=None):
    """Return the status of an answer."""
    body, sent = json.dumps(content).encode(), []
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if not events:
            await asyncio.sleep(60)
        return events.pop()

    async def send(event):
        sent.append(event)

    method = "GET" if content is None else "POST"
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "a"}),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_others_are_answered_and_counted_while_a_long_text_is_read(path, content, app, tokenizer):
    async def scenario():
        long = asyncio.create_task(ask(app, path, content))
        await asyncio.to_thread(tokenizer.begun.wait, 5)
        assert await ask(app, "/v1/models") == 200
        assert await ask(app, path, content) == 429
        assert await ask(app, path, {**content, "model": "other"}) == 404
        tokenizer.let_go.set()
        assert await long == 503
        assert await ask(app, path, content) == 503  # the place is free again

    asyncio.run(scenario())
