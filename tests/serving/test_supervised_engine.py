"""An engine's process: one that never worked is told of, one that dies comes back, nothing of it is left behind."""

import asyncio
import os
import signal
import sys

import psutil
import pytest

from apriel_assets.serving import supervised_engine as module
from apriel_assets.serving.engine_process import EngineSettings
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
