"""One request's way to text with an engine made up here: time, stop strings, endings, and that leaving cancels."""

import asyncio
from contextlib import aclosing

import pytest

from apriel_assets.serving.completing import Work, pieces
from apriel_assets.serving.problems import body_of, status_of
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.supervised_engine import EngineGoneError


class MadeUp:
    """Gives these tokens, one a step, and notes when it is left."""

    name = "made up"

    def __init__(self, tokens, finish="length", wait=0.0):
        self.given, self.finish, self.wait, self.left = tokens, finish, wait, False

    async def tokens(self, prompt, sampling, stop_ids):
        try:
            for index, token in enumerate(self.given, 1):
                await asyncio.sleep(self.wait)
                yield [token], self.finish if index == len(self.given) else None
        finally:
            self.left = True


def collect(engine, tokenizer, stops=(), seconds=5.0, take=None):
    async def run():
        work = Work(
            engine=engine, prompt=[1], sampling=Sampling(max_new_tokens=9), stop_ids=frozenset([2]), stops=stops,
            seconds=seconds,
        )  # fmt: skip
        found = []
        async with aclosing(pieces(work, tokenizer)) as source:
            async for piece in source:
                found.append(piece)
                if len(found) == take:
                    break
        return found

    return asyncio.run(run())


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_text_and_ending(tokenizer):
    engine = MadeUp(ids(tokenizer, "b c d"))
    found = collect(engine, tokenizer)
    assert "".join(piece.text for piece in found) == "b c d"
    assert [piece.finish for piece in found] == [None, None, "length"]
    assert engine.left


def test_the_stop_token_is_no_text_and_counts(tokenizer):
    found = collect(MadeUp([*ids(tokenizer, "b c"), 2], finish="stop"), tokenizer)
    assert "".join(piece.text for piece in found) == "b c"
    assert sum(piece.num_tokens for piece in found) == 3


def test_a_stop_string_ends_the_text_and_the_work(tokenizer):
    engine = MadeUp(ids(tokenizer, "b c d e f"))
    found = collect(engine, tokenizer, stops=[" d"])
    assert ("".join(piece.text for piece in found), found[-1].finish) == ("b c", "stop")
    assert engine.left


def test_leaving_cancels(tokenizer):
    engine = MadeUp(ids(tokenizer, "b c d e f"))
    assert len(collect(engine, tokenizer, take=2)) == 2
    assert engine.left


def test_too_long_is_an_error_of_ours(tokenizer):
    engine = MadeUp(ids(tokenizer, "b c d"), wait=0.2)
    with pytest.raises(TimeoutError) as raised:
        collect(engine, tokenizer, seconds=0.3)
    assert engine.left
    assert status_of(raised.value) == 504
    assert body_of(raised.value)["error"]["type"] == "server_error"


def test_a_request_that_the_engine_does_not_take_is_no_empty_answer(tokenizer):
    with pytest.raises(EngineGoneError):
        collect(MadeUp([5], finish="cancelled"), tokenizer)
