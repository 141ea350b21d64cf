"""An engine's process: one that never worked is told of, one that dies comes back, nothing of it is left behind."""

import asyncio
import json
import os
import signal
import socket
import sys

import psutil
import pytest

from apriel_assets.serving import supervised_engine as module
from apriel_assets.serving.engine_process import EngineSettings, serve
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.supervised_engine import EngineGoneError, SupervisedEngine


def engine(directory):
    settings = EngineSettings(directory=str(directory), num_slots=2, capacity=64, num_threads=1)
    return SupervisedEngine("own", settings)


def test_one_that_ends_before_it_is_ready_has_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "command", lambda settings, descriptor: [sys.executable, "-c", "pass"])

    async def run():
        own = engine(tmp_path)
        await asyncio.wait_for(own.start(), 30)
        assert (own.state, "before it was ready" in (own.problem or "")) == ("failed", True)
        with pytest.raises(EngineGoneError):
            await anext(own.tokens([5], Sampling(max_new_tokens=1), frozenset()))
        await own.stop()

    asyncio.run(run())


def test_one_whose_checkpoint_cannot_be_read_says_why(tmp_path):
    async def run():
        own = engine(tmp_path / "nothing")
        await asyncio.wait_for(own.start(), 60)
        assert own.state == "failed"
        assert "cannot be read" in (own.problem or "")
        await own.stop()

    asyncio.run(run())


def test_one_whose_starter_left_while_it_loaded_ends_without_a_word(release):
    ours, theirs = socket.socketpair()
    ours.close()
    settings = EngineSettings(
        directory=str(release / "engines" / "turbo"), num_slots=1, capacity=8, num_threads=1
    )
    with theirs:
        assert serve(settings, theirs) is None


# Speaks as an engine does: one token for each request, then nothing; what it is told goes into a file.
MADE_UP = """
import json, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as connection, open(sys.argv[2], "w", buffering=1) as told:
    stream = connection.makefile("rwb", buffering=0)
    stream.write(b'{"ready": {"pid": 0}}\\n')
    for line in stream:
        told.write(line.decode())
        if "submit" in (message := json.loads(line)):
            event = [message["submit"]["id"], 7, None]
            stream.write(json.dumps({"events": [event], "running": 1, "waiting": 0}).encode() + b"\\n")
"""


def test_leaving_a_request_cancels_it(monkeypatch, tmp_path):
    told = tmp_path / "told"

    def command(settings, descriptor):
        return [sys.executable, "-c", MADE_UP, str(descriptor), str(told)]

    monkeypatch.setattr(module, "command", command)

    async def run():
        own = engine(tmp_path)
        await asyncio.wait_for(own.start(), 30)
        for _ in range(2):
            source = own.tokens([5], Sampling(max_new_tokens=9), frozenset())
            assert await anext(source) == ([7], None)
            await source.aclose()
        for _ in range(200):
            if told.read_text().count("cancel") == 2:
                break
            await asyncio.sleep(0.02)
        await own.stop()

    asyncio.run(run())
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    assert [next(iter(own)) for own in messages] == ["submit", "cancel", "submit", "cancel"]
    assert [own["cancel"] for own in messages if "cancel" in own] == [0, 1]


def test_one_that_dies_comes_back_and_stopping_leaves_nothing(monkeypatch, release):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.05)

    async def answer(own):
        found = []
        async for tokens, _ in own.tokens([5, 6, 7], Sampling(max_new_tokens=5), frozenset()):
            found += tokens
        return found

    async def run():
        own = engine(release / "engines" / "turbo")
        await asyncio.wait_for(own.start(), 90)
        before, pid = await answer(own), own.facts["pid"]
        assert len(before) == 5
        os.kill(pid, signal.SIGKILL)
        while own.num_restarts == 0 or not own.is_ready:
            await asyncio.sleep(0.05)
        assert own.facts["pid"] != pid
        assert await answer(own) == before
        last = own.facts["pid"]
        await own.stop()
        assert not psutil.pid_exists(last)

    asyncio.run(asyncio.wait_for(run(), 180))
